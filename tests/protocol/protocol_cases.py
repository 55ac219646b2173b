"""A run of a few seconds in this process, for the tests of protocols and of what they set."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from igm_fast.training import loop
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import make_fabric
from igm_fast.training.progress import TrainingProgress
from igm_fast.training.run_folder import RunFolder

SMALL = {"data": "vectors", "epochs": 2, "stages": 2, "batch_size": 16, "lr": 0.05, "width": 8, "threads": 1}


def trainer(method, data, run, saved=None, **settings) -> loop.Trainer:
    config = TrainConfig(**{**SMALL, **settings})
    torch.set_num_threads(config.threads)
    progress = TrainingProgress(Console(quiet=True), quiet=True)
    return loop.Trainer(config, method, data, make_fabric(config), run, progress, saved)


def begun(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.create({}, {})
    return run


def trained(method, data, path: Path, **settings) -> RunFolder:
    run = begun(path)
    trainer(method, data, run, **settings).train()
    run.close()
    return run


def last_weights(run: RunFolder) -> dict:
    return run.load_last()["model"]
