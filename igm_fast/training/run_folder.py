"""The files of a run: what may be in the folder, how it is entered, how rows are written and taken back on resume."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from igm_fast import __version__
from igm_fast.training import checkpoint
from igm_fast.training.config import MAY_DIFFER_ON_RESUME, dump_yaml, read_yaml

COLUMNS = ("global_epoch", "stage", "epoch", "trained", "split", "branch", "metric", "value")
FILES = (
    *("config.yaml", "environment.json", "metrics.csv", "spectra.json", "timing.json"),
    *("pretrained.json", "result.json", "predictions.npz", "evaluation.json", "report.html"),
)
FOLDERS = ("checkpoints", "tensorboard", "figures")


class RunFolder:
    """One run's folder; :meth:`create` or :meth:`reopen` it after asking :func:`check` whether that is allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.safetensors"
        self.previous = path / "checkpoints" / "previous.safetensors"
        self.best = path / "checkpoints" / "best.safetensors"
        self.best_before = path / "checkpoints" / "best-before.safetensors"
        self._tensorboard: SummaryWriter | None = None

    @property
    def finished(self) -> bool:
        """Whether the run reached its test result."""
        return (self.path / "result.json").exists()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.last.exists() or self.previous.exists()

    def create(self, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Start a new run here; what an earlier run left is removed, other files stay."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.last.parent.mkdir(parents=True)
        write_text(self.path / "config.yaml", dump_yaml(settings))
        self.write_json("environment.json", facts)
        write_text(self.path / "metrics.csv", ",".join(COLUMNS) + "\n")
        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))

    def reopen(self, rows: int, stage: int, epoch: int, global_epoch: int, facts: Mapping[str, Any]) -> None:
        """Go on with a run: what was written after its last checkpoint is taken back.

        Args:
            rows: lines of metrics.csv that count.
            stage: the next to train; its spectra, and those of later ones, are kept only if it has begun:
            epoch: the next of this stage.
            global_epoch: TensorBoard drops points from here on.
            facts: of this process, added to environment.json.

        Raises:
            ValueError: metrics.csv has fewer lines than the checkpoint says.
        """
        path = self.path / "metrics.csv"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if len(lines) < rows + 1:
            raise ValueError(
                f"{path} has {len(lines)} lines, expected at least {rows + 1} by the checkpoint: it was changed since. "
                "Restore it, or start anew with --overwrite"
            )
        write_text(path, "".join(lines[: rows + 1]))
        spectra = [row for row in self.read_json("spectra.json", []) if (row["stage"], 0) < (stage, epoch)]
        self.write_json("spectra.json", spectra)
        before = self.read_json("environment.json", {})
        self.write_json("environment.json", {**before, "resumed": [*before.get("resumed", []), dict(facts)]})
        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=global_epoch)

    def log(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows (in the order of ``COLUMNS``) to metrics.csv, on disk when this returns, and to TensorBoard."""
        with (self.path / "metrics.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        if self._tensorboard is not None:
            for global_epoch, _, _, _, split, branch, metric, value in rows:
                self._tensorboard.add_scalar(f"{split}/{branch}/{metric}", value, global_epoch)
            self._tensorboard.flush()

    def add_spectra(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append to spectra.json."""
        self.write_json("spectra.json", [*self.read_json("spectra.json", []), *rows])

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file in one piece."""
        write_text(self.path / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str, missing: Any) -> Any:
        """Return the content of a JSON file, or ``missing``."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else missing

    def write_predictions(self, labels: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Write predictions.npz: labels and probabilities of every branch on test."""
        arrays: dict[str, Any] = {name: values.numpy() for name, values in outputs.items()}
        np.savez(self.path / "predictions.npz", labels=labels.numpy(), **arrays)

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint to resume from; the one before it is kept as ``previous.safetensors``."""
        checkpoint.keep_previous(self.last, self.previous)
        checkpoint.save(self.last, dict(state))

    def load_last(self) -> dict[str, Any]:
        """Return the checkpoint to resume from.

        Raises:
            CheckpointError: missing or damaged.
        """
        way_out = "Start the run anew with --overwrite."
        if self.previous.exists():
            way_out = f"One epoch earlier is kept: mv {self.previous} {self.last} and resume again, or use --overwrite."
        state: dict[str, Any] = checkpoint.load(self.last, way_out)
        return state

    def load_best(self, epoch: int | None = None) -> dict[str, Any]:
        """Return the selected weights and where they are from.

        Args:
            epoch: global epoch that they must be from; None: whichever was selected last.

        Raises:
            CheckpointError: missing, damaged, or from another epoch.
        """
        way_out = "Train the run again with --overwrite."
        state: dict[str, Any] = checkpoint.load(self.best, way_out)
        if epoch is None or state["global_epoch"] == epoch:
            return state
        if self.best_before.exists():
            before: dict[str, Any] = checkpoint.load(self.best_before, way_out)
            if before["global_epoch"] == epoch:
                return before
        raise checkpoint.CheckpointError(
            f"{self.best} holds epoch {state['global_epoch']}, expected the selected epoch {epoch}. The folder was "
            f"changed, or resumed where sums round differently. {way_out}"
        )

    def stage(self, index: int) -> Path:
        """Return where the weights at the end of a stage are kept."""
        return self.path / "checkpoints" / f"stage-{index}.safetensors"

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def check(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise unless a run may start (or go on) in a folder. Looks only.

    Raises:
        ValueError: something is in the way; the message says what and the way out.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path} is a file, expected a folder or nothing; choose another")
    if not path.exists() or not any(path.iterdir()):
        return
    if not any((path / name).exists() for name in (*FILES, "checkpoints")):
        raise ValueError(f"--out {path} has files but no run of this package; choose another folder")
    if resume or overwrite:
        return
    if (path / "result.json").exists():
        raise ValueError(
            f"--out {path} holds a finished run. Choose another folder, look at it with `python -m igm_fast.evaluate "
            f"{path}`, or replace it with --overwrite"
        )
    raise ValueError(f"--out {path} holds an unfinished run. Go on with --resume, or replace it with --overwrite")


def check_same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise unless settings are those that the run in a folder was begun with.

    Raises:
        ValueError: they differ; the message lists where.
    """
    begun = read_yaml(path / "config.yaml")
    keys = [key for key in {**begun, **settings} if key not in MAY_DIFFER_ON_RESUME]
    differing = [f"{k} was {begun.get(k)}, now {settings.get(k)}" for k in keys if begun.get(k) != settings.get(k)]
    if differing:
        raise ValueError(
            f"--resume {path}: {'; '.join(differing)}. A run goes on with its own settings: leave these out, or start "
            "another with a different --out"
        )


def environment() -> dict[str, Any]:
    """Return versions, machine, commit and command of this process, for environment.json."""
    packages = ("torch", "lightning-fabric", "torchmetrics", "numpy", "scipy", "safetensors", "jsonargparse")
    return {
        "igm_fast": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
        "argv": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece: readers see the old content or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str | None:
    """Commit of the checkout that this package lies in; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
