"""Run folders as grids read them, and the tables that analyses write."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from igm_fast.reports.comparison import Cell
from igm_fast.reports.record import COLUMNS

MODALITIES = ("fourier", "zernike", "morphological")  # of digits3
EPOCHS = 2  # of each modality's one stage


def write_cell(out: Path, cell: Cell, accuracy: float) -> None:
    """Write what training leaves in a run folder, as far as grids read it."""
    folder = out / cell.folder
    folder.mkdir(parents=True)
    modalities = [cell.modality] if cell.modality else list(MODALITIES)
    branches = modalities if cell.modality else [*modalities, "fused"]
    stages = ["+".join(modalities)] if cell.method == "joint" else modalities
    settings = {"method": cell.method, "data": cell.data, "seed": cell.seed, "batch_size": 64}
    settings |= {"modality": cell.modality} if cell.modality else {}
    (folder / "config.yaml").write_text("\n".join(f"{key}: {value}" for key, value in settings.items()))
    rows = [
        (stage * EPOCHS + epoch, stage, epoch, trained, "train", trained, "loss", 1.0)
        for stage, trained in enumerate(stages)
        for epoch in range(EPOCHS)
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    per_stage = [{"stage": i, "trained": trained, "train": 2.0} for i, trained in enumerate(stages)]
    timing = {"train": 6.0, "statistics": 1.0, "decomposition": 1.0, "evaluation": 1.0, "total": 10.0}
    timing |= {"processor": 5.0 + cell.seed, "peak_memory": 300_000_000, "per_stage": per_stage}
    (folder / "timing.json").write_text(json.dumps(timing))
    scores = {branch: {"accuracy": accuracy, "map": accuracy, "macro_f1": accuracy} for branch in branches}
    result = {"method": cell.method, "data": cell.data, "seed": cell.seed, "modalities": modalities, "test": scores}
    result |= {"data_fingerprint": f"{cell.data}{cell.seed}", "classes": list("abcd"), "seconds": 10.0}
    (folder / "result.json").write_text(json.dumps(result))


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    return list(csv.DictReader(path.read_text().splitlines()))


def sentence(path: Path) -> str:
    """What a finding says."""
    return json.loads(path.read_text())["sentence"]


def constant(cell: Cell) -> float:  # noqa: ARG001 - every run is as good as the other
    """An accuracy for runs whose scores do not matter."""
    return 0.5
