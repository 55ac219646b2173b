"""Command line: train one method on one data set. ``python -m igm_fast.train --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from rich.console import Console

from igm_fast.data import LazyDataset, MultimodalData, load_dataset
from igm_fast.reports.html import write_report
from igm_fast.reports.statistics import binomial_interval
from igm_fast.training.checkpoint import CheckpointError
from igm_fast.training.command import Command, HelpAsked, parse
from igm_fast.training.config import dump_yaml
from igm_fast.training.devices import is_first_process, make_fabric
from igm_fast.training.loop import Trainer, TrainingError
from igm_fast.training.progress import TrainingProgress
from igm_fast.training.run_folder import RunFolder, check, check_same_settings, environment

TRAINED, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit code."""
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        if command.print_config:
            print(dump_yaml(command.settings), end="")
            return TRAINED
        config, run = command.config, RunFolder(Path(command.settings["out"]))
        if is_first_process():
            check(run.path, resume=config.resume, overwrite=config.overwrite)
            if config.resume and run.begun:
                check_same_settings(run.path, command.settings)
        data = load_dataset(config.data, config.seed, config.data_options())
        names = [spec.name for spec in data.modalities]
        command.method.modalities(names)
        config.stage_shares(names)
        fabric = make_fabric(config)
    except HelpAsked as answer:
        print(answer.args[0], end="")
        return TRAINED
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        print(f"train: {error}", file=sys.stderr)
        return WRONG_USAGE
    return _train(command, data, fabric, run)


def _train(command: Command, data: MultimodalData, fabric: Fabric, run: RunFolder) -> int:
    """Train in a folder that is known to be free for it."""
    config, console = command.config, Console(soft_wrap=True, highlight=False, markup=False)
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed, verbose=False)
    first = is_first_process()
    try:
        if config.resume and run.finished:
            if first:
                console.print(f"{run.path} is finished already.")
                _show(run, console)
            return TRAINED
        fabric.launch()
        first = fabric.is_global_zero
        saved = run.load_last() if config.resume and run.begun else None
        if saved is not None and saved["fingerprint"] != data.fingerprint:
            raise ValueError(f"{run.path} was trained on other data than {data.name} holds now; train with --overwrite")
        if first:
            _enter(run, command, saved, console)
            if not config.quiet and isinstance(data.train, LazyDataset):
                console.print(data.description)
        with TrainingProgress(console, quiet=config.quiet or not first) as progress:
            Trainer(config, command.method, data, fabric, run if first else None, progress, saved).train()
        if first:
            _show(run, console)
    except KeyboardInterrupt:
        if first:
            print(f"\ntrain: stopped. Go on with: {_resume_command(run)}", file=sys.stderr)
        return STOPPED
    except (TrainingError, CheckpointError, ValueError, NotImplementedError, OSError) as error:
        print(
            f"train: {error}\ntrain: finished epochs are kept in {run.path}; go on with: {_resume_command(run)}",
            file=sys.stderr,
        )
        return FAILED
    finally:
        run.close()
    return TRAINED


def _enter(run: RunFolder, command: Command, saved: dict[str, Any] | None, console: Console) -> None:
    """Make the folder ready: anew, or as the checkpoint left it."""
    config, facts = command.config, environment()
    said = f"{config.method} on {config.data}, seed {config.seed}, into {run.path}"
    if saved is None:
        run.create(command.settings, facts)
    else:
        position = saved["position"]
        run.reopen(position["rows"], position["stage"], position["epoch"], position["global_epoch"], facts)
        said += f": resumed after {position['global_epoch']} epochs"
    if not config.quiet:
        console.print(said)


def _show(run: RunFolder, console: Console) -> None:
    """Write the report and print the result."""
    report = write_report(run.path)
    result = run.read_json("result.json", {})
    with_intervals = []
    for branch, scores in result["test"].items():
        low, high = binomial_interval(round(scores["accuracy"] * result["num_test"]), result["num_test"])
        with_intervals.append(f"{branch} {scores['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
    for warning in result["warnings"]:
        console.print(f"warning: {warning}")
    console.print(f"test accuracy: {', '.join(with_intervals)}  (95 % intervals, {result['num_test']} samples)")
    console.print(f"report: {report}  ({result['seconds']:.0f} s)")


def _resume_command(run: RunFolder) -> str:
    return f"python -m igm_fast.train --resume --out {run.path}"


if __name__ == "__main__":
    sys.exit(main())
