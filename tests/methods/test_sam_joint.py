"""Joint training with added logits, and SAM on the joint loss: one step against the equations in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from torch.nn import functional
from training_cases import digits

from igm_fast.methods import together
from igm_fast.methods.joint import Joint
from igm_fast.methods.sam import Sam

THREE = together(["fourier", "zernike", "morphological"], 10)[0]


def joint_loss(batch, *, added):
    """Cross-entropy of the joint logits, put together here from the features."""

    def loss(network):
        features = network.features(double_inputs(batch))
        if added:
            logits = sum(network.branch(name).head(feature) for name, feature in features.items())
        else:
            logits = network.joint_head(torch.cat(list(features.values()), dim=1))
        return functional.cross_entropy(logits, batch.labels)

    return loss


def test_added_logits_are_one_loss_over_all_branches():
    data, method = digits(), Joint(fusion="sum")
    model, context = workshop(method, data, THREE)
    batch, before = batch_of(data), snapshot(model)
    gradients = autograd_gradients(model, joint_loss(batch, added=True))
    assert len(gradients) == len(list(model.parameters()))
    method.step(THREE, batch, 0.0, context)
    assert_moved(model, before, {name: 0.1 * g for name, g in gradients.items()})
    logits = model(batch.inputs)
    torch.testing.assert_close(method.fuse(logits), sum(logits[m] for m in model.modalities).softmax(dim=1))


@pytest.mark.parametrize(
    ("fusion", "adaptive", "rho"), [("concat", False, 0.3), ("sum", False, 0.3), ("concat", True, 2.0)]
)
def test_step_uses_the_gradient_at_the_worst_point_nearby(fusion, adaptive, rho):
    data, method = digits(), Sam(fusion=fusion, rho=rho, adaptive=adaptive)
    model, context = workshop(method, data, THREE)
    batch, before = batch_of(data), snapshot(model)
    loss = joint_loss(batch, added=fusion == "sum")
    gradients, moved = autograd_gradients(model, loss), copy.deepcopy(model).double()
    weights = {name: p.detach().abs() if adaptive else torch.ones_like(p) for name, p in moved.named_parameters()}
    norm = torch.sqrt(sum(((weights[name] * g) ** 2).sum() for name, g in gradients.items()))
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += rho * weights[name] ** 2 * gradients[name] / norm
    at_worst = autograd_gradients(moved, loss)
    assert max(float((at_worst[n] - g).abs().max() / g.abs().max()) for n, g in gradients.items()) > 0.05
    method.step(THREE, batch, 0.0, context)
    assert_moved(model, before, {name: 0.1 * g for name, g in at_worst.items()})


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan")])
def test_bad_radius(rho):
    with pytest.raises(ValueError, match=f"sam: rho is {rho}, expected a number > 0"):
        Sam(rho=rho)
