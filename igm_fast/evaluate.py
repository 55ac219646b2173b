"""Command line: evaluate the weights of a finished or stopped run. ``python -m igm_fast.evaluate --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from igm_fast.data import MultimodalData, load_dataset
from igm_fast.methods.base import Method
from igm_fast.models import MultimodalModel
from igm_fast.training import evaluation
from igm_fast.training.building import build_model
from igm_fast.training.checkpoint import CheckpointError
from igm_fast.training.config import TrainConfig, from_flat, read_yaml
from igm_fast.training.devices import make_fabric
from igm_fast.training.run_folder import RunFolder

DESCRIPTION = """\
Evaluate a run's weights and write RUN/evaluation.json.

  python -m igm_fast.evaluate runs/igm-watch-0                       the numbers of result.json again
  python -m igm_fast.evaluate runs/igm-watch-0 --split validation --checkpoint last
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; return the exit code: 0 done, 1 the run cannot be evaluated, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m igm_fast.evaluate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, made by python -m igm_fast.train")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="part of the data (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="best: weights that validation selected; last: where training stands (default: %(default)s)",
    )
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        record = evaluate(arguments.run, arguments.split, arguments.checkpoint)
    except (ValueError, CheckpointError, FileNotFoundError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    console = Console(highlight=False)
    console.print(_table(record), soft_wrap=True)
    console.print(f"written: {arguments.run / 'evaluation.json'}", markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class Rebuilt:
    """A run as it was when a checkpoint was written; ``state`` is the checkpoint."""

    config: TrainConfig
    method: Method
    data: MultimodalData
    model: MultimodalModel  # on the device
    state: dict[str, Any]
    device: torch.device


def rebuild(folder: Path, which: str = "best") -> Rebuilt:
    """Return configuration, method, data and model of a run, from its ``config.yaml`` and a checkpoint.

    Args:
        folder: of the run.
        which: ``"best"`` or ``"last"`` checkpoint; the last one has the method's own state too.

    Raises:
        FileNotFoundError: no run there.
        CheckpointError: the checkpoint is missing or damaged.
        ValueError: the data are not those the run was trained on.
    """
    if not (folder / "config.yaml").exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.yaml. Give the --out of a training run")
    config, method = from_flat(read_yaml(folder / "config.yaml"))
    run = RunFolder(folder)
    state = run.load_best() if which == "best" else run.load_last()
    data = load_dataset(config.data, config.seed, config.data_options())
    if state["fingerprint"] != data.fingerprint:
        raise ValueError(f"{folder} was trained on other data than {data.name} holds now (fingerprints differ)")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = make_fabric(config, devices=1).device
    model = build_model(method, data, config).to(device)
    model.load_state_dict(state["model"])
    if "method" in state:
        method.load_state_dict(state["method"])
    return Rebuilt(config, method, data, model, state, device)


def evaluate(folder: Path, split: str = "test", which: str = "best") -> dict[str, Any]:
    """Return scores by branch of a run's weights on ``"test"`` or ``"validation"``, and write ``evaluation.json``.

    Model, method and data are rebuilt from the run's ``config.yaml``; on the machine that trained, the scores are those
    of ``result.json`` exactly.

    Args:
        folder: of the run.
        split: ``"test"`` or ``"validation"``.
        which: ``"best"`` or ``"last"`` checkpoint.

    Raises:
        FileNotFoundError: no run there.
        CheckpointError: the checkpoint is missing or damaged.
        ValueError: the data are not those the run was trained on.
    """
    rebuilt = rebuild(folder, which)
    model, method, state, data = rebuilt.model, rebuilt.method, rebuilt.state, rebuilt.data
    dataset = data.parts[split]
    outputs = evaluation.predict(model, method, dataset, rebuilt.device, rebuilt.config.workers)
    record = {
        "split": split,
        "checkpoint": which,
        "epochs": state["global_epoch"] + 1,
        "samples": len(dataset),
        "scores": evaluation.all_scores(outputs, dataset.labels),
        "data_fingerprint": data.fingerprint,
    }
    RunFolder(folder).write_json("evaluation.json", record)
    return record


def _table(record: dict[str, Any]) -> Table:
    weights = f"{record['checkpoint']} weights (after {record['epochs']} epochs)"
    title = f"{record['split']}, {weights}, {record['samples']} samples"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("branch")
    for metric in evaluation.METRICS:
        table.add_column(metric.replace("_", "-"), justify="right")
    for branch, scores in record["scores"].items():
        table.add_row(branch, *(f"{scores[metric]:.4f}" for metric in evaluation.METRICS))
    return table


if __name__ == "__main__":
    sys.exit(main())
