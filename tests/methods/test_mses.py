"""MSES: when a modality stops, what it goes back to, and that rest means every bit."""

from __future__ import annotations

import pytest
import torch
from method_cases import batch_of, snapshot, workshop
from rich.console import Console
from training_cases import rows, waves

from igm_fast.methods import together
from igm_fast.methods.mses import Mses
from igm_fast.training import loop, run_folder
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import make_fabric
from igm_fast.training.progress import TrainingProgress

TWO = together(["left", "right"], 20)[0]
RESTLESS = TrainConfig(lr=0.1, momentum=0.9, weight_decay=0.1)  # what must not move a modality at rest


def measured(left, right):
    return {"left": {"loss": left}, "right": {"loss": right}}


def rests_after(losses, patience, smoothing):
    """The epoch in which a modality stops and its best one, straight from the rule."""
    best = best_epoch = None
    for epoch, loss in enumerate(losses):
        smooth = loss if epoch == 0 else smoothing * losses[epoch - 1] + (1 - smoothing) * loss
        if best is None or smooth < best:
            best, best_epoch = smooth, epoch
        elif epoch - best_epoch > patience:
            return epoch, best_epoch
    return None


@pytest.mark.parametrize("smoothing", [0.0, 0.6])
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_a_modality_goes_back_to_its_best_epoch_and_rests(patience, smoothing):
    left = [1.0, 0.5, 0.45, 0.6, 0.44, 0.7, 0.8, 0.9, 0.95, 0.2]
    right = [1.0 / (1 + epoch) for epoch in range(len(left))]  # never stops
    expected, best_epoch = rests_after(left, patience, smoothing)
    assert rests_after(right, patience, smoothing) is None
    data, method = waves(), Mses(patience=patience, smoothing=smoothing)
    model, context = workshop(method, data, TWO, RESTLESS)
    method.attach(TWO, context)
    kept = []
    for epoch, losses in enumerate(zip(left, right, strict=True)):
        before = snapshot(model)
        method.step(TWO, batch_of(data, 16), 0.0, context)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert any(".right." in name for name in moved)
        assert any(".left." in name for name in moved) == (epoch <= expected)
        kept.append(snapshot(model.branch("left")))
        method.end_epoch(TWO, epoch, measured(*losses), context)
        goal = kept[best_epoch] if epoch >= expected else kept[epoch]
        for name, value in model.branch("left").state_dict().items():
            assert torch.equal(value, goal[name]), (epoch, name)


def test_all_at_rest_only_measures():
    data, method = waves(), Mses(patience=0)
    model, context = workshop(method, data, TWO, RESTLESS)
    for epoch in range(2):
        method.step(TWO, batch_of(data, 16), 0.0, context)
        method.end_epoch(TWO, epoch, measured(1.0 + epoch, 1.0 + epoch), context)
    before = snapshot(model)
    loss = method.step(TWO, batch_of(data, 16), 0.0, context)["fused"]
    assert torch.isfinite(loss)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rest_outlives_a_resume():
    data, method = waves(), Mses(patience=0)
    model, context = workshop(method, data, TWO, RESTLESS)
    for epoch, left in enumerate((1.0, 2.0)):
        method.step(TWO, batch_of(data, 16), 0.0, context)
        method.end_epoch(TWO, epoch, measured(left, 1.0 / (1 + epoch)), context)
    again = Mses(patience=0)
    again.load_state_dict(method.state_dict())
    _, context = workshop(again, data, TWO, RESTLESS, model)  # which lets every branch train
    again.attach(TWO, context)
    before = snapshot(model)
    again.step(TWO, batch_of(data, 16), 0.0, context)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (".left." in name), name
    again.end_epoch(TWO, 2, measured(0.0, 9.0), context)  # worse than the epoch before the resume
    assert again.state_dict()["resting"] == ["left", "right"]
    assert again.state_dict()["weights"] == {}


def test_the_run_selects_what_was_measured(tmp_path):
    """Weights that go back after an epoch are not what that epoch's scores were of."""
    config = TrainConfig(data="waves", epochs=4, stages=1, batch_size=20, threads=1, lr=0.05)
    run = run_folder.RunFolder(tmp_path)
    run.create({}, {})
    method, progress = Mses(patience=0), TrainingProgress(Console(quiet=True), quiet=True)
    ending = method.end_epoch
    worse = iter((1.0, 2.0, 3.0, 4.0))

    def fails(stage, epoch, _scores, context):
        ending(stage, epoch, measured(*2 * [next(worse)]), context)

    method.end_epoch = fails
    result = loop.Trainer(config, method, waves(), make_fabric(config), run, progress).train()
    run.close()
    selected = str(result["selected_epoch"])
    accuracy = [
        float(row["value"])
        for row in rows(tmp_path)
        if (row["global_epoch"], row["split"], row["branch"], row["metric"])
        == (selected, "validation", "fused", "accuracy")
    ]
    assert accuracy == [result["validation"]["fused"]["accuracy"]]
    assert method._resting == ["left", "right"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mses(patience=-1), "mses: patience is -1, expected a number ≥ 0"),
        (lambda: Mses(smoothing=1.0), "mses: smoothing is 1.0, expected a share"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
