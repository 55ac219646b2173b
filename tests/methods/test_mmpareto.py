"""MMPareto: the combined gradient against a search in float64, a step against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import PLAIN, assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from torch.nn import functional
from training_cases import digits

from igm_fast.methods.base import together
from igm_fast.methods.mmpareto import MmPareto, pareto_gradient


def combine(g, u, gamma):
    """The rule in float64, its shortest vector found by search."""
    alpha = 0.5
    if g @ u <= 0:
        low, high = 0.0, 1.0
        for _ in range(200):  # the length is convex in α
            a, b = low + (high - low) / 3, high - (high - low) / 3
            if np.linalg.norm(a * g + (1 - a) * u) < np.linalg.norm(b * g + (1 - b) * u):
                high = b
            else:
                low = a
        alpha = (low + high) / 2
    G = 2 * (alpha * g + (1 - alpha) * u)
    return gamma * G * max(1.0, np.linalg.norm(g + u) / np.linalg.norm(G))


@given(seed=st.integers(0, 10_000), size=st.integers(2, 9), scale=st.floats(0.01, 100), gamma=st.floats(0.5, 2))
def test_combined_gradient_is_the_papers_rule(seed, size, scale, gamma):
    rng = np.random.default_rng(seed)
    g, u = rng.normal(size=size), scale * rng.normal(size=size)
    found = pareto_gradient(torch.from_numpy(g), torch.from_numpy(u), gamma).numpy()
    # The search stops at the square root of the precision: its length is flat around the minimum.
    np.testing.assert_allclose(found, combine(g, u, gamma), rtol=1e-4, atol=1e-6 * np.linalg.norm(found))


def test_without_conflict_it_is_the_sum_times_gamma():
    g, u = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.25, 1.0, -1.0])
    assert torch.equal(pareto_gradient(g, u, 1.5), 1.5 * (g + u))


def test_step_in_a_conflict_descends_both_losses_and_is_as_long_as_the_sum():
    g, u = torch.tensor([1.0, 0.2]).double(), torch.tensor([-2.0, 1.0]).double()
    step = pareto_gradient(g, u, 1.0)
    assert step @ g > 0
    assert step @ u > 0
    assert step @ g == pytest.approx(float(step @ u))  # the shortest vector lies at right angles to g − u
    assert step.norm() == pytest.approx(float((g + u).norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_without_an_answer(dtype):
    g = torch.randn(500).to(dtype)
    for factor in (-1.0, -0.3, -7.0):  # nothing is left but rounding errors
        assert not pareto_gradient(g, factor * g, 1.5).any()
    zero = torch.zeros_like(g)
    assert torch.equal(pareto_gradient(g, zero, 1.5), 1.5 * g)
    assert torch.equal(pareto_gradient(zero, g, 1.5), 1.5 * g)
    assert not pareto_gradient(zero, zero, 1.5).any()


def test_step_against_autograd():
    data, method = digits(), MmPareto()
    stage = together(["fourier", "zernike", "morphological"], 1)[0]
    model, context = workshop(method, data, stage, PLAIN)
    batch = batch_of(data)
    # Labels that the joint head answers well and this head badly: one modality in conflict for certain.
    with torch.no_grad():
        model.branch("zernike").head.weight.copy_(-model.joint_head.weight[:, 64:128])
    before = snapshot(model)

    def loss_of(branch):
        return lambda network: functional.cross_entropy(network(double_inputs(batch))[branch], batch.labels)

    gradients = {branch: autograd_gradients(model, loss_of(branch)) for branch in ("joint", *stage.modalities)}
    expected, conflicts = {}, 0
    for name in before:
        if ".encoder." not in name:  # of a head
            expected[name] = 0.1 * sum(found[name] for found in gradients.values() if name in found)
    for modality in stage.modalities:
        names = [name for name in gradients[modality] if name.startswith(f"branches.{modality}.encoder.")]
        g, u = (torch.cat([gradients[k][name].flatten() for name in names]).numpy() for k in ("joint", modality))
        conflicts += g @ u <= 0
        parts = torch.from_numpy(combine(g, u, 1.5)).split([before[name].numel() for name in names])
        expected |= {name: 0.1 * part.view_as(before[name]) for name, part in zip(names, parts, strict=True)}
    assert 0 < conflicts < 3
    losses = method.step(stage, batch, 0.0, context)
    assert list(losses) == ["fused", *stage.modalities]
    assert_moved(model, before, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prediction_and_options():
    joint = torch.randn(5, 4)
    assert torch.equal(MmPareto().fuse({"a": torch.randn(5, 4), "joint": joint}), joint.softmax(dim=1))
    for gamma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mmpareto: gamma is"):
            MmPareto(gamma=gamma)
