"""Read the files of a run folder into one object; what an unfinished run has not written yet stays empty."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = {"accuracy": "accuracy", "map": "MAP", "macro_f1": "macro-F1"}  # key in files → words
PHASES = ("train", "statistics", "decomposition", "evaluation", "checkpoint")
COLUMNS = ("global_epoch", "stage", "epoch", "trained", "split", "branch", "metric", "value")


@dataclass(frozen=True)
class Measurement:
    """One line of metrics.csv."""

    global_epoch: int
    stage: int
    epoch: int
    trained: str
    split: str
    branch: str
    metric: str
    value: float


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of one layer's activation statistics and of the projector made from them."""

    stage: int
    source: str
    layer: str
    dim: int
    rank: int
    route: str
    error_bound: float
    eigenvalues: NDArray[np.float64]  # [k] descending, known eigenvalues of C
    projector_eigenvalues: NDArray[np.float64]  # [k] of T on the same eigenvectors
    complement: float  # eigenvalue of T on the other dim − k directions

    @property
    def ranked(self) -> bool:
        """Whether the known eigenvalues are the largest ones in a row: the polynomial route has λmax and λmin only."""
        return self.route != "polynomial" and self.eigenvalues.size > 0

    @property
    def damped_random(self) -> float:
        """Share of a random (isotropic) gradient's energy that T takes away: 1 − tr(T²)/d."""
        kept = float(np.square(self.projector_eigenvalues).sum())
        known = self.projector_eigenvalues.size
        directions = max(self.dim, known)
        return 1.0 - (kept + (directions - known) * self.complement**2) / directions

    @property
    def damped_along_activations(self) -> float:
        """The same share for a gradient distributed like the source's activations: Σ λ(1 − σ²) / Σ λ."""
        total = float(self.eigenvalues.sum())
        if total <= 0:
            return 0.0
        return float((self.eigenvalues * (1.0 - np.square(self.projector_eigenvalues))).sum()) / total


@dataclass(frozen=True)
class Run:
    """Everything a report needs of one run folder."""

    folder: Path
    metrics: tuple[Measurement, ...] = ()
    spectra: tuple[Spectrum, ...] = ()
    timing: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    labels: NDArray[np.int64] | None = None  # [N] of the test set
    probabilities: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)  # branch → [N, classes]

    @property
    def finished(self) -> bool:
        """Whether the run reached its final test evaluation."""
        return bool(self.result)

    @property
    def branches(self) -> list[str]:
        """Modalities in the order of the run, then ``fused`` where there is one."""
        seen = dict.fromkeys([*self.result.get("modalities", ()), *(m.branch for m in self.metrics)])
        measured = {m.branch for m in self.metrics} | set(self.result.get("test", ()))
        modalities = [name for name in seen if name != "fused" and (name in measured or not measured)]
        return [*modalities, "fused"] if "fused" in measured else modalities

    @property
    def headline(self) -> str:
        """The branch whose test result stands for a finished run: fused, or the only modality of a unimodal run."""
        test = self.result["test"]
        return "fused" if "fused" in test else str(next(iter(test)))

    def series(self, split: str, branch: str, metric: str) -> list[Measurement]:
        """Return one curve in the order of epochs; an epoch that was repeated after a resume counts once."""
        rows = {m.global_epoch: m for m in self.metrics if (m.split, m.branch, m.metric) == (split, branch, metric)}
        return [rows[epoch] for epoch in sorted(rows) if math.isfinite(rows[epoch].value)]

    def stages(self) -> list[tuple[int, str, int, int]]:
        """Return (stage, trained modality, first global epoch, last global epoch) in order."""
        spans: dict[tuple[int, str], list[int]] = {}
        for m in self.metrics:
            if m.split != "test":
                span = spans.setdefault((m.stage, m.trained), [m.global_epoch, m.global_epoch])
                span[:] = [min(span[0], m.global_epoch), max(span[1], m.global_epoch)]
        rows = [(stage, trained, first, last) for (stage, trained), (first, last) in spans.items()]
        return sorted(rows, key=lambda row: row[2])

    def last_spectra(self) -> list[Spectrum]:
        """Return, for each source and layer, the spectrum of the last stage that computed it."""
        return list({(s.source, s.layer): s for s in sorted(self.spectra, key=lambda s: s.stage)}.values())


def read_run(folder: Path) -> Run:
    """Read a run folder; any of its files may be missing, a half-written last line of metrics.csv is left out.

    Raises:
        FileNotFoundError: the folder does not exist or holds none of a run's files.
        ValueError: a file is there but not readable as what it should be.
    """
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.csv", "result.json")):
        raise FileNotFoundError(
            f"{folder} is no run folder: expected config.yaml, metrics.csv or result.json there. "
            "Make one with `python -m igm_fast.train --out FOLDER`."
        )
    config = folder / "config.yaml"
    labels, probabilities = _predictions(folder / "predictions.npz")
    return Run(
        folder=folder,
        metrics=tuple(_measurements(folder / "metrics.csv")),
        spectra=tuple(_spectrum(row) for row in read_json(folder / "spectra.json", [])),
        timing=read_json(folder / "timing.json", {}),
        result=read_json(folder / "result.json", {}),
        environment=read_json(folder / "environment.json", {}),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        labels=labels,
        probabilities=probabilities,
    )


def read_json(path: Path, missing: Any) -> Any:
    """Return the content of a JSON file, or ``missing`` where there is no such file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    if not path.exists():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable JSON ({error}). Remove it, or train that run again.") from error


def _measurements(path: Path) -> list[Measurement]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.reader(line for line in lines if line.endswith("\n"))  # a run stopped while writing leaves half a line
    header = tuple(next(reader, COLUMNS))
    if header != COLUMNS:
        raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}; given {','.join(header)}.")
    measurements = []
    try:
        for global_epoch, stage, epoch, trained, split, branch, metric, value in reader:
            place = (int(global_epoch), int(stage), int(epoch))
            measurements.append(Measurement(*place, trained, split, branch, metric, float(value)))
    except ValueError as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a measurement ({error}).") from error
    return measurements


def _spectrum(row: Mapping[str, Any]) -> Spectrum:
    known = np.ravel(np.asarray(row["eigenvalues"], dtype=np.float64))  # groups side by side
    damping = np.ravel(np.asarray(row["projector_eigenvalues"], dtype=np.float64))
    count = min(known.size, damping.size)
    order = np.argsort(-known[:count], kind="stable")
    return Spectrum(
        stage=int(row["stage"]),
        source=str(row["source"]),
        layer=str(row["layer"]),
        dim=int(row["dim"]) * int(row.get("groups", 1)),
        rank=int(row["rank"]),
        route=str(row["route"]),
        error_bound=float(row["error_bound"]),
        eigenvalues=known[:count][order],
        projector_eigenvalues=damping[:count][order],
        complement=float(row.get("complement", 1.0)),
    )


def _predictions(path: Path) -> tuple[NDArray[np.int64] | None, dict[str, NDArray[np.floating[Any]]]]:
    if not path.exists():
        return None, {}
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["labels"].astype(np.int64), {name: arrays[name] for name in arrays.files if name != "labels"}
