"""AGM: Shapley responses, κ and the modulated gradient against the equations in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations
from math import factorial

import numpy as np
import pytest
import torch
from method_cases import PLAIN, batch_of, double_inputs, snapshot, softmax, workshop
from torch.nn import functional
from training_cases import digits, waves

from igm_fast.methods import together
from igm_fast.methods.agm import Agm

THREE = together(["fourier", "zernike", "morphological"], 10)[0]
TWO = together(["left", "right"], 10)[0]


def shapley(network, inputs):
    """Each modality's response by the definition, from whole forward passes with zero inputs."""

    def value(chosen):
        if not chosen:
            return 0.0
        network.train(len(chosen) == len(inputs))  # batch norm uses the batch where everything is given
        return network({m: x if m in chosen else torch.zeros_like(x) for m, x in inputs.items()})["joint"]

    values = {frozenset(s): value(s) for k in range(len(inputs), -1, -1) for s in combinations(inputs, k)}
    count = len(inputs)
    return {
        m: sum(
            factorial(len(s)) * factorial(count - len(s) - 1) / factorial(count) * (values[s | {m}] - values[s])
            for s in values
            if m not in s
        )
        for m in inputs
    }


def surprise_of(responses, labels):
    truth = [softmax(z.detach().numpy())[np.arange(len(labels)), labels.numpy()] for z in responses.values()]
    return np.array([-np.log(np.maximum(p, 1e-8)).mean() for p in truth])


def relative(surprise):
    count = len(surprise)
    return np.exp(count / (count - 1) * (surprise.mean() - surprise))


@pytest.mark.parametrize(
    ("make", "stage", "fusion"), [(digits, THREE, "concat"), (waves, TWO, "concat"), (waves, TWO, "sum")]
)
def test_responses_are_shapley_values(make, stage, fusion):
    data, method = make(), Agm(fusion=fusion)
    model, context = workshop(method, data, stage)
    model(data.train.inputs)  # running statistics that are not the first ones
    batch, double = batch_of(data, 16), copy.deepcopy(model).double()
    expected = shapley(double, double_inputs(batch))
    found = method._responses(batch, context)
    for name, z in expected.items():
        torch.testing.assert_close(found[name].double(), z, rtol=1e-4, atol=1e-5)
    for (name, mine), theirs in zip(model.named_buffers(), double.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-4, atol=1e-5, msg=name)  # one pass alone
    assert all(part.training for part in model.modules())


def test_two_modalities_are_the_papers_form():
    surprise = np.array([0.7, 1.9])
    np.testing.assert_allclose(relative(surprise), np.exp(surprise[::-1] - surprise), rtol=1e-12)
    method = Agm(alpha=1.5)
    method.surprise, method.steps = torch.tensor([1.0, 1.2], dtype=torch.float64), 4
    kappa = method._factors(torch.from_numpy(surprise)).numpy()
    usual = np.exp(np.array([0.2, -0.2]))
    np.testing.assert_allclose(kappa, np.exp(1.5 * (usual - np.exp(surprise[::-1] - surprise))), rtol=1e-12)
    assert kappa[0] < 1 < kappa[1]  # the first is further ahead than usual
    np.testing.assert_allclose(method.surprise.numpy(), [(4 * 1.0 + 0.7) / 5, (4 * 1.2 + 1.9) / 5], rtol=1e-12)
    assert method.steps == 5


def test_exponent_has_a_limit():
    method = Agm(alpha=1.0)
    method.surprise, method.steps = torch.tensor([0.0, 9.0], dtype=torch.float64), 1
    kappa = method._factors(torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert float(kappa[0]) == pytest.approx(np.exp(10.0))


@pytest.mark.parametrize(("make", "stage", "clip"), [(digits, THREE, 0.0), (digits, THREE, 3.0), (waves, TWO, 0.0)])
def test_two_steps(make, stage, clip):
    """κ = 1 first, then from the first step's surprise; gradient κᵐ ∂L/∂zᵐ into each response; then the clip."""
    data, method = make(), Agm(alpha=0.8, clip=clip)
    model, context = workshop(method, data, stage, replace(PLAIN, lr=0.01))
    batch, seen = batch_of(data, 16), []
    with torch.no_grad():
        model.joint_head.weight *= 20  # so that modalities differ
    if clip:
        for x in batch.inputs.values():
            x *= 30  # so that the head's gradient exceeds 1
    for _ in range(2):
        before, double = snapshot(model), copy.deepcopy(model).double()
        responses = shapley(double, double_inputs(batch))
        seen.append(surprise_of(responses, batch.labels))
        usual = relative(seen[0])  # the mean of one
        kappa = np.exp(0.8 * np.minimum(usual - relative(seen[-1]), 10))
        total = sum(responses.values())
        (upstream,) = torch.autograd.grad(functional.cross_entropy(total, batch.labels), total, retain_graph=True)
        sum((z * upstream.detach() * k).sum() for z, k in zip(responses.values(), kappa, strict=True)).backward()
        gradients = {name: p.grad for name, p in double.named_parameters()}
        if clip:
            assert gradients["joint_head.weight"].abs().max() > 1
            norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
            assert norm > clip
            gradients = {name: g * (clip / norm) for name, g in gradients.items()}
        method.step(stage, batch, 0.0, context)
        size = max(float(g.abs().max()) for g in gradients.values())
        assert size > 1e-5
        for name, parameter in model.named_parameters():  # a bias before batch norm has no gradient but rounding
            moved = before[name].double() - 0.01 * gradients[name]
            torch.testing.assert_close(
                parameter.double(), moved, rtol=2**-22, atol=1e-5 * size, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert np.abs(kappa - 1).max() > 0.05


def test_clip_waits_for_a_large_head_gradient():
    data, method = digits(60), Agm(clip=1.0)
    model, context = workshop(method, data, THREE)
    for size, scaled in ((0.9, False), (1.1, True)):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        model.joint_head.weight.grad[0, 0] = -size
        norm = float(torch.sqrt(sum((p.grad**2).sum() for p in model.parameters())))
        method.modify(THREE, context)
        expected = 0.5 / norm if scaled else 0.5
        assert float(model.joint_head.bias.grad[0]) == pytest.approx(expected, rel=1e-5)


def test_state_carries_the_running_mean():
    method = Agm()
    for values in ([1.0, 2.0, 3.0], [2.0, 1.0, 1.0]):
        method._factors(torch.tensor(values, dtype=torch.float64))
    again = Agm()
    again.load_state_dict(method.state_dict())
    batch = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    assert torch.equal(again._factors(batch), method._factors(batch))
    assert torch.equal(again.surprise, method.surprise)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Agm(alpha=-1.0), "agm: alpha is -1.0, expected a number ≥ 0"),
        (lambda: Agm(clip=-1.0), "agm: clip is -1.0"),
        (lambda: Agm().modalities(["sight"]), "agm: the data have one modality, sight; expected at least two"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
