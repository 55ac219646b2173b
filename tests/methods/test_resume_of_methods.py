"""Every method, interrupted between two epochs and resumed with a new object, ends as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from training_cases import assert_same_run, waves

from igm_fast.methods import METHODS
from igm_fast.training import loop, run_folder
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import make_fabric
from igm_fast.training.progress import TrainingProgress


class Killed(BaseException):
    """Stands for the process ending here."""


def train(data, name, run, saved=None):
    config = TrainConfig(data="waves", method=name, epochs=3, stages=1, batch_size=20, threads=1, lr=0.05)
    method = METHODS[name](modality="left") if name == "unimodal" else METHODS[name]()
    progress = TrainingProgress(Console(quiet=True), quiet=True)
    loop.Trainer(config, method, data, make_fabric(config), run, progress, saved).train()


@pytest.mark.parametrize("name", METHODS)
def test_resumed_run_equals_a_whole_one(name, tmp_path, monkeypatch):
    data, folders = waves(), {}
    for kind in ("whole", "resumed"):
        folders[kind] = run_folder.RunFolder(tmp_path / kind)
        folders[kind].create({"method": name}, {"argv": []})
    train(data, name, folders["whole"])
    run, saves = folders["resumed"], []
    save = run.save_last

    def dying(state):
        save(state)
        saves.append(state["global_epoch"])
        if len(saves) == 2:
            raise Killed

    monkeypatch.setattr(run, "save_last", dying)
    with pytest.raises(Killed):
        train(data, name, run)
    run.close()
    torch.manual_seed(99)  # another process has other random numbers
    run = run_folder.RunFolder(tmp_path / "resumed")
    saved = run.load_last()
    position = saved["position"]
    run.reopen(position["rows"], position["stage"], position["epoch"], position["global_epoch"], {})
    train(data, name, run, saved)
    run.close()
    assert saves == [0, 1]
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
