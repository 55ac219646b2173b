"""OGR-GB: weights by the published ratio, trials that leave the run alone, samples that are never trained on."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_cases import PLAIN, assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from torch.nn import functional
from training_cases import digits, waves

from igm_fast.methods.base import Selection, Stage
from igm_fast.methods.ogr_gb import OgrGb, blending_weights
from igm_fast.training.config import TrainConfig

NAMES = ("fourier", "zernike", "morphological")
STAGE = Stage(0, 0, NAMES, 6)


def test_weights_are_the_papers_ratio():
    rng = np.random.default_rng(0)
    held = np.arange(400) % 10 == 0
    before = rng.gamma(2.0, size=(400, 4))
    after = before - [1.0, 0.6, 0.2, -0.3]
    after[held] += [0.5, 0.1, 0.15, 0.1]
    g = before[held].mean(axis=0) - after[held].mean(axis=0)
    o = (after[held].mean(axis=0) - after[~held].mean(axis=0)) - (
        before[held].mean(axis=0) - before[~held].mean(axis=0)
    )
    expected = np.maximum(g, 0) / o**2  # the changes do not vary: O is known exactly
    expected /= expected.sum()
    assert expected[3] == 0  # it got worse on what it had not seen
    found = blending_weights(torch.from_numpy(after - before), torch.from_numpy(held))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_overfitting_below_its_standard_error_counts_as_that():
    """Two heads that learn the same from the same: the one whose O happens to be 0 must not take all the weight."""
    held = torch.arange(100) < 20
    changes = -torch.ones(100, 2).double()
    changes[:, 0] += 0.5 * (-1.0) ** torch.arange(100)  # O = 0 exactly, but spread 0.5
    changes[:, 1] += 0.5 * (-1.0) ** torch.arange(100)
    changes[held, 1] += 0.01
    variance = 0.25 / 20 + 0.25 / 80
    ratios = np.array([1.0 / variance, 0.99 / variance])
    np.testing.assert_allclose(blending_weights(changes, held).numpy(), ratios / ratios.sum(), rtol=1e-12)


def test_equal_weights_where_nothing_generalises():
    held = torch.arange(10) < 3
    assert blending_weights(torch.ones(10, 4), held).tolist() == [0.25] * 4
    assert blending_weights(torch.zeros(10, 2), held).tolist() == [0.5] * 2
    assert blending_weights(-torch.ones(10, 2).double(), held).tolist() == [0.5] * 2  # no overfitting, no spread


def test_trials_are_the_training_of_each_head_alone():
    """Weights of a super-epoch, from plain gradient descent on copies in float64."""
    data, method = digits(), OgrGb(super_epoch=2, held_out=0.2)
    model, context = workshop(method, data, STAGE)
    context.optimizer.param_groups[0]["lr"] = 0.05
    kept, orders = snapshot(model), []

    def watched_twin(model):
        twin = context.twin(model)
        return replace(twin, batches=lambda selection: orders.append(selection.rows) or twin.batches(selection))

    selection = method.order(STAGE, 2, torch.randperm(100), replace(context, twin=watched_twin))
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert model.training
    assert len(orders) == 4
    assert torch.equal(torch.stack(orders[:2]), torch.stack(orders[2:]))  # both copies see the same batches
    assert not torch.equal(orders[0], orders[1])

    held = torch.ones(100, dtype=torch.bool)
    held[selection.rows] = False
    changes = []
    for branch in ("joint", *NAMES):
        network = copy.deepcopy(model).double()
        inputs = {name: x.double() for name, x in data.train.inputs.items()}
        before = functional.cross_entropy(network(inputs)[branch], data.train.labels, reduction="none")
        for rows in orders[:2]:
            for batch in context.batches(Selection(rows)):
                network.zero_grad()
                functional.cross_entropy(network(double_inputs(batch))[branch], batch.labels).backward()
                with torch.no_grad():
                    for parameter in network.parameters():
                        if parameter.grad is not None:
                            parameter -= 0.05 * parameter.grad
        after = functional.cross_entropy(network(inputs)[branch], data.train.labels, reduction="none")
        changes.append((after - before).detach())
    expected = blending_weights(torch.stack(changes, dim=1), held)
    assert list(method.weights) == ["joint", *NAMES]
    np.testing.assert_allclose(list(method.weights.values()), expected.numpy(), rtol=1e-3)
    assert sum(method.weights.values()) == pytest.approx(1.0)


def test_held_out_samples_are_never_trained_on():
    data, method = waves(), OgrGb(super_epoch=2, held_out=0.2)
    stage = Stage(0, 0, ("left", "right"), 4)
    _, context = workshop(method, data, stage)
    used, weights = [], []

    def watched_twin(model):
        twin = context.twin(model)
        return replace(twin, batches=lambda selection: used.append(selection.rows) or twin.batches(selection))

    for epoch in range(4):
        used.append(method.order(stage, epoch, torch.randperm(40), replace(context, twin=watched_twin)).rows)
        weights.append(method.weights)
    assert all(len(rows) == 32 for rows in used)
    assert len(torch.unique(torch.cat(used))) == 32
    assert len(used) == 4 + 2 * 2 * 2  # two trials of two epochs for each of two copies
    assert weights[0] == weights[1] != weights[2] == weights[3]


def test_last_trial_is_as_long_as_what_is_left():
    data, method = waves(), OgrGb(super_epoch=4)
    stage = Stage(0, 0, ("left", "right"), 6)
    _, context = workshop(method, data, stage, TrainConfig(lr=0.1))
    lengths = []
    method._trial = lambda names, orders, _context: lengths.append(len(orders)) or torch.zeros(40, len(names))
    for epoch in range(6):
        method.order(stage, epoch, torch.randperm(40), context)
    assert lengths == [4, 4, 2, 2]


def test_step_against_autograd():
    data, method = digits(), OgrGb()
    method.weights = {"joint": 0.5, "fourier": 0.2, "zernike": 0.3, "morphological": 0.0}
    model, context = workshop(method, data, STAGE, PLAIN)
    batch, before = batch_of(data), snapshot(model)

    def loss(network):
        z = network(double_inputs(batch))
        return sum(weight * functional.cross_entropy(z[name], batch.labels) for name, weight in method.weights.items())

    gradients = autograd_gradients(model, loss)
    expected = {name: 0.1 * g for name, g in gradients.items() if g.any()}
    assert set(gradients) - set(expected) == {"branches.morphological.head.weight", "branches.morphological.head.bias"}
    method.step(STAGE, batch, 0.0, context)
    assert_moved(model, before, expected)


def test_prediction():
    logits = {name: torch.randn(5, 4).double() for name in (*NAMES, "joint")}
    assert torch.equal(OgrGb().fuse(logits), logits["joint"].softmax(dim=1))
    mean = sum(logits.values()) / 4
    torch.testing.assert_close(OgrGb(predict="average").fuse(logits), mean.softmax(dim=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"super_epoch": 0}, "ogr-gb: super_epoch is 0, expected a number ≥ 1"),
        ({"held_out": 0.0}, "ogr-gb: held_out is 0.0, expected a number > 0"),
        ({"held_out": 1.0}, "ogr-gb: held_out is 1.0, expected a share"),
        ({"predict": "mean"}, "unknown predict 'mean'"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        OgrGb(**options)
