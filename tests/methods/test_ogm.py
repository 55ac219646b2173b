"""OGM and OGM-GE: coefficients and gradients against float64 numpy, the epochs they work in, what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_cases import (
    PLAIN,
    assert_moved,
    autograd_gradients,
    batch_of,
    double_inputs,
    snapshot,
    softmax,
    workshop,
)
from torch.nn import functional
from training_cases import digits, waves

from igm_fast.methods import together
from igm_fast.methods.contributions import lead
from igm_fast.methods.ogm import Ogm
from igm_fast.methods.ogm_ge import OgmGe

THREE = together(["fourier", "zernike", "morphological"], 10)[0]


def numpy_coefficients(model, batch, alpha, ratio):
    """Equation by equation, from the features: share of the joint logits, score, ratio, k."""
    scores = []
    for m, name in enumerate(model.modalities):
        features = model.features(batch.inputs, [name])[name].detach().double().numpy()
        if model.head == "joint":
            weight = model.joint_head.weight.detach().double().numpy()[:, m * 64 : (m + 1) * 64]
            bias = model.joint_head.bias.detach().double().numpy() / len(model.modalities)
        else:
            head = model.branch(name).head
            weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
        p = softmax(features @ weight.T + bias)
        scores.append(p[np.arange(len(p)), batch.labels.numpy()].sum())
    k = {}
    for m, name in enumerate(model.modalities):
        others = [s for j, s in enumerate(scores) if j != m]
        rho = scores[m] / (np.mean(others) if ratio == "mean" else np.sum(others))
        k[name] = 1 - np.tanh(alpha * rho) if rho > 1 else 1.0
    return k


@pytest.mark.parametrize(("fusion", "ratio"), [("concat", "mean"), ("sum", "mean"), ("concat", "sum")])
def test_the_modality_ahead_gets_a_smaller_gradient(fusion, ratio):
    data, method = digits(), Ogm(alpha=0.3, fusion=fusion, ratio=ratio)
    model, context = workshop(method, data, THREE)
    batch = batch_of(data)
    with torch.no_grad():  # a head that knows the answers from the first modality: ahead of the sum of the others too
        features = model.features(batch.inputs, ["fourier"])["fourier"]
        answers = torch.linalg.pinv(features) @ functional.one_hot(batch.labels, 10).float()
        (model.joint_head if fusion == "concat" else model.branch("fourier").head).weight[:, :64] = 2 * answers.T
    k = numpy_coefficients(model, batch, 0.3, ratio)
    assert min(k.values()) < 0.9
    if ratio == "sum":
        assert sorted(k.values())[1] == 1.0  # one at most
    before = snapshot(model)
    gradients = autograd_gradients(
        model, lambda network: functional.cross_entropy(network(double_inputs(batch))["joint"], batch.labels)
    )
    method.begin_epoch(THREE, 0, context)
    method.step(THREE, batch, 0.0, context)
    updates = {}
    for name, gradient in gradients.items():
        modality = name.split(".")[1]
        modulated = ".encoder." in name and gradient.dim() >= 2
        updates[name] = 0.1 * gradient * (k[modality] if modulated else 1.0)
    assert_moved(model, before, updates)


@pytest.mark.parametrize("epoch", [0, 1, 5, 9])
def test_it_works_in_its_share_of_the_epochs_only(epoch):
    data, method = digits(60), Ogm(alpha=1.0, begin=0.1, end=0.5)
    model, context = workshop(method, data, THREE)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    method._coefficients = torch.tensor([0.5, 1.0, 0.25])
    method.begin_epoch(THREE, epoch, context)
    method.modify(THREE, context)
    for name, k in zip(model.modalities, (0.5, 1.0, 0.25), strict=True):
        for parameter in model.branch(name).encoder.parameters():
            expected = k if 1 <= epoch < 5 and parameter.dim() >= 2 else 1.0
            assert torch.equal(parameter.grad, torch.full_like(parameter, expected))


def test_kernels_are_what_convolutions_have():
    data, method = waves(), Ogm(scope="kernels")
    stage = together(["left", "right"], 2)[0]
    model, context = workshop(method, data, stage, PLAIN)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    method._coefficients = torch.tensor([0.5, 0.5])
    method.begin_epoch(stage, 0, context)
    method.modify(stage, context)
    halved = {name for name, p in model.named_parameters() if p.grad.flatten()[0] == 0.5}
    assert halved == {f"branches.{m}.encoder.conv{i}.weight" for m in ("left", "right") for i in (1, 2, 3)}
    data = digits(60)
    _, context = workshop(method, data, THREE)
    method._coefficients = torch.ones(3)
    with pytest.raises(ValueError, match=r"encoder of fourier has no weight of scope kernels.*--scope weights"):
        method.modify(THREE, context)


def test_noise_has_the_spread_of_each_gradient():
    """GE: k g + N(0, std(g)²), on every modality; the same seed makes the same noise."""
    data = digits(60)
    seen = []
    for _ in range(2):
        method = OgmGe()
        model, context = workshop(method, data, THREE)
        torch.manual_seed(3)
        gradients = {}
        for name, parameter in model.named_parameters():
            gradients[name] = parameter.grad = torch.randn_like(parameter) * 0.01 + 5.0
        before = {name: gradient.clone() for name, gradient in gradients.items()}
        method._coefficients = torch.tensor([0.5, 1.0, 1.0])
        method.begin_epoch(THREE, 0, context)
        method.modify(THREE, context)
        seen.append({name: gradient.clone() for name, gradient in gradients.items()})
    for name, gradient in seen[0].items():
        assert torch.equal(gradient, seen[1][name])
        modulated = ".encoder." in name and gradient.dim() >= 2
        if not modulated:
            assert torch.equal(gradient, before[name])
            continue
        k = 0.5 if "fourier" in name else 1.0
        noise = (gradient - k * before[name]).double().numpy()
        sigma, count = float(before[name].double().std(correction=0)), gradient.numel()
        assert abs(noise.std() / sigma - 1) < 5 / np.sqrt(2 * count)  # five standard errors
        assert abs(noise.mean()) < 5 * sigma / np.sqrt(count) + 1e-6


def test_ratios():
    scores = np.array([0.5, 3.0, 1.5])
    mean = [scores[m] / np.mean(np.delete(scores, m)) for m in range(3)]
    total = [scores[m] / np.sum(np.delete(scores, m)) for m in range(3)]
    np.testing.assert_allclose(lead(torch.from_numpy(scores)).numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(lead(torch.from_numpy(scores), "sum").numpy(), total, rtol=1e-12)
    two = torch.tensor([2.0, 5.0])
    assert torch.equal(lead(two), lead(two, "sum"))
    nothing = lead(torch.tensor([0.0, 0.0]))
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ogm(alpha=0.0), "ogm: alpha is 0.0, expected a number > 0"),
        (lambda: OgmGe(begin=0.5, end=0.5), "ogm-ge: begin is 0.5 and end 0.5, expected shares"),
        (lambda: Ogm(end=1.5), "ogm: begin is 0.0 and end 1.5"),
        (lambda: Ogm(ratio="means"), "unknown ratio 'means'. Did you mean 'mean'"),
        (lambda: Ogm(scope="weight"), "unknown scope 'weight'. Did you mean 'weights'"),
        (lambda: Ogm(fusion="cat"), "ogm: unknown fusion 'cat'"),
        (lambda: Ogm().modalities(["sight"]), "ogm: the data have one modality, sight; expected at least two"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
