"""ReconBoost: its turns, the two losses in float64 numpy, and what each phase trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from training_cases import digits, waves

from igm_fast.methods.base import Stage, together
from igm_fast.methods.reconboost import ReconBoost
from igm_fast.training.config import TrainConfig

NAMES = ("fourier", "zernike", "morphological")


@given(modalities=st.integers(2, 4), rounds=st.integers(1, 6), more=st.integers(0, 40))
def test_turns_and_rectifications_make_up_the_budget(modalities, rounds, more):
    names, epochs = [f"m{i}" for i in range(modalities)], rounds + more
    stages = ReconBoost().schedule(names, epochs, rounds)
    assert [stage.index for stage in stages] == list(range(len(stages)))
    assert all(stage.epochs > 0 for stage in stages)
    turns = [stage for stage in stages if len(stage.modalities) == 1]
    assert [stage.trained for stage in turns] == names * (len(turns) // modalities)
    for name in names:
        assert sum(stage.epochs for stage in stages if name in stage.modalities) == epochs
        own = sum(stage.epochs for stage in turns if stage.modalities == (name,))
        assert own == max(1, round(epochs / (modalities + 1)))
    if epochs > own:  # never at a learner's own turn, when the ensemble is out of step
        assert stages[-1].modalities == tuple(names)
    rectifications = [stage.epochs for stage in stages if len(stage.modalities) > 1]
    assert len(rectifications) <= len(turns)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("index", "learner", "before"), [(2, 1, 0), (6, 0, 2), (0, 0, None)])
def test_a_turn_minimises_the_papers_loss(index, learner, before):
    """Also its gradient: with respect to this learner and the shared head, the others being constant."""
    data, method = digits(), ReconBoost(weight=3.0, damping=2.0, agreement=0.9)
    stage = Stage(index, 0, (NAMES[learner],), 1)
    model, context = workshop(method, data, stage)
    with torch.no_grad():
        model.boost_rate.fill_(0.7)
        model.shared_head.weight.mul_(8)  # else all are equally unsure
    batch, kept = batch_of(data), snapshot(model)
    inputs, labels = double_inputs(batch), batch.labels.numpy()

    with torch.no_grad():
        double = model.double()
        z = {name: value.numpy() for name, value in double(inputs, NAMES).items() if name != "joint"}
        model.float()
    rest = softmax(0.7 * sum(z[name] for name in NAMES if name != NAMES[learner]))
    p = softmax(z[NAMES[learner]])
    picked = np.arange(32), labels
    expected_loss = np.mean((3.0 - 2.0 * rest[picked]) * -np.log(p[picked])) / 10
    if before is not None:
        expected_loss += 0.9 * np.mean((p - softmax(z[NAMES[before]])) ** 2)

    def loss(network):
        mine = network(inputs, [NAMES[learner]])[NAMES[learner]].log_softmax(dim=1)
        total = (-(3.0 - 2.0 * torch.from_numpy(rest[picked])) * mine[picked]).mean() / 10
        if before is not None:
            total = total + 0.9 * (mine.exp() - torch.from_numpy(softmax(z[NAMES[before]]))).square().mean()
        return total

    gradients = autograd_gradients(model, loss)
    assert {name.split(".")[0] for name in gradients} == {"branches", "shared_head"}
    losses = method.step(stage, batch, 0.0, context)
    assert float(losses[NAMES[learner]]) == pytest.approx(expected_loss, rel=1e-5)
    assert_moved(model, kept, {name: 0.1 * g for name, g in gradients.items()})


def test_rectification_trains_everything_on_the_sum():
    data, method, stage = digits(), ReconBoost(), together(NAMES, 1)[0]
    model, context = workshop(method, data, stage)
    batch, kept = batch_of(data), snapshot(model)

    def loss(network):
        z = network(double_inputs(batch), NAMES)
        total = network.boost_rate * sum(z[name] for name in NAMES)
        return -total.log_softmax(dim=1)[torch.arange(32), batch.labels].mean()

    gradients = autograd_gradients(model, loss)
    assert "boost_rate" in gradients
    assert list(method.step(stage, batch, 0.0, context)) == ["fused"]
    assert_moved(model, kept, {name: 0.1 * g for name, g in gradients.items()})


def test_waiting_learners_keep_every_bit_in_a_turn():
    data, method, stage = waves(), ReconBoost(), Stage(2, 0, ("right",), 1)
    model, context = workshop(method, data, stage, TrainConfig(lr=0.1))
    kept = snapshot(model)
    method.step(stage, batch_of(data, 16), 0.0, context)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]) == name.startswith(("branches.left", "boost_rate")), name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ReconBoost(weight=0.0), "reconboost: weight is 0.0, expected a number > 0"),
        (lambda: ReconBoost(agreement=-0.5), "reconboost: agreement is -0.5, expected a number ≥ 0"),
        (lambda: ReconBoost(weight=1.0, damping=2.0), "reconboost: damping is 2.0, expected at most weight"),
        (lambda: ReconBoost().modalities(["sound"]), "one modality, sound; expected at least two to boost one another"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
