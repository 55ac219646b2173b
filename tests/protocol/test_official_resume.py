"""A run of the official protocol, killed between any two epochs or with its best weights ahead, goes on bit for bit."""

from __future__ import annotations

import pytest
import torch
from protocol_cases import begun, trainer
from training_cases import assert_same_run, vectors

from igm_fast.methods import METHODS
from igm_fast.training import checkpoint
from igm_fast.training.config import preset
from igm_fast.training.run_folder import RunFolder


class Killed(BaseException):
    """Stands for the process ending here."""


def official(name, data, run, saved=None):
    """A trainer with the settings of the protocol."""
    cls, known = METHODS[name], preset("vectors", "official")
    method = cls(**{key: value for key, value in known.items() if key in cls.__init__.__annotations__})
    own = {key: value for key, value in known.items() if key in ("selection", "select_by", "stage_start", "schedule")}
    return trainer(method, data, run, saved, head_widths="6,5", stages=2, epochs=4, **{**own, "lr": 0.2})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of each method that is never killed, and the epochs in which it found better weights."""
    folders = {}
    for name in ("igm", "igm-no-sam"):
        run = begun(tmp_path_factory.mktemp(name))
        selected, save = [], checkpoint.save

        def watched(path, state, run=run, selected=selected, save=save):
            save(path, state)
            if path == run.best:
                selected.append(state["global_epoch"])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "save", watched)
            official(name, vectors(apart=2.0, samples=320), run).train()
        run.close()
        folders[name] = run.path, selected
    return folders


def resume(name, path):
    run = RunFolder(path)
    saved = run.load_last()
    position = saved["position"]
    run.reopen(position["rows"], position["stage"], position["epoch"], position["global_epoch"], {})
    torch.manual_seed(99)  # another process has other random numbers
    official(name, vectors(apart=2.0, samples=320), run, saved).train()
    run.close()


@pytest.mark.parametrize(("name", "epochs"), [("igm", 1), ("igm", 2), ("igm", 3), ("igm-no-sam", 6)])
def test_killed_after_an_epoch(name, epochs, whole, tmp_path, monkeypatch):
    run, saves = begun(tmp_path), []
    save = run.save_last

    def dying(state):
        save(state)
        saves.append(state["global_epoch"])
        if len(saves) == epochs:
            raise Killed

    monkeypatch.setattr(run, "save_last", dying)
    with pytest.raises(Killed):
        official(name, vectors(apart=2.0, samples=320), run).train()
    run.close()
    resume(name, tmp_path)
    assert_same_run(tmp_path, whole[name][0])


def test_killed_after_better_weights_were_written_and_before_the_epoch_was(whole, tmp_path, monkeypatch):
    """The stage is begun again, from the weights that were the best before it."""
    path, selected = whole["igm"]
    ahead = [epoch for epoch in selected if epoch % 2 == 0 and epoch > 0]  # first epochs of stages
    assert ahead
    run, save = begun(tmp_path), checkpoint.save

    def dying(target, state):
        save(target, state)
        if target == run.best and state["global_epoch"] == ahead[0]:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(Killed):
        official("igm", vectors(apart=2.0, samples=320), run).train()
    run.close()
    monkeypatch.undo()
    assert run.load_last()["position"]["global_epoch"] == ahead[0]
    resume("igm", tmp_path)
    assert_same_run(tmp_path, path)


def test_best_weights_of_another_epoch_are_refused(whole):
    run = RunFolder(whole["igm"][0])
    with pytest.raises(checkpoint.CheckpointError, match=r"holds epoch \d+, expected the selected epoch 77"):
        run.load_best(77)
