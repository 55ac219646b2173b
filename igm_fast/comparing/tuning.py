"""Equal tuning: the same number of settings for every row, drawn from a small grid and chosen on validation alone.

A trial is a setting, trained with seeds that no reported run has. Its score is the mean validation accuracy of the
selected epochs. Which trial wins is a function of the finished runs, so that every process of a scheduler's array
comes to the same answer by itself.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from igm_fast.comparing.cells import has_failed, has_result
from igm_fast.reports.comparison import Cell
from igm_fast.reports.record import read_json
from igm_fast.training.batches import shuffled
from igm_fast.training.command import parse, scan
from igm_fast.training.run_folder import write_text

GRIDS = Path(__file__).with_name("grids.yaml")
FIRST_SEED = 1000  # of the trials; reported runs have smaller ones


@dataclass(frozen=True)
class Trial:
    """One setting of one row; ``settings`` holds every tuned key, ``cells`` its runs."""

    number: int
    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """What the row's runs are trained with if this trial is chosen."""
        return self.cells[0].flags


def plan_trials(row: Cell, count: int, seeds: int, flags: Sequence[str]) -> list[Trial]:
    """Return the trials of a row: the setting it has anyway, then points of its grid in an order drawn once for all.

    More trials later are added to these. A key that the row's own flags or ``flags`` give is fixed and leaves the grid.

    Args:
        row: any cell of the row.
        count: trials, the default among them.
        seeds: runs per trial.
        flags: of every run of the comparison.

    Raises:
        ValueError: the grid has fewer points, the flags do not fit the method, or the runs are selected on test.
    """
    modality = ["--modality", row.modality] if row.modality else []
    fixed = [*row.flags, *flags]
    present = parse(["--method", row.method, "--data", row.data, *modality, *fixed]).settings
    if present.get("selection") == "test":
        raise ValueError(
            "--tune with runs that are selected on the test set: their validation accuracy would be test accuracy, and "
            "so would the choice. Add --selection validation after --, or leave --tune out"
        )
    axes = {key: values for key, values in grid(row.method, float(present["lr"])).items() if key not in scan(fixed)}
    default = {key: present[key] for key in axes}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    points = [point for point in points if point != default]
    if count > len(points) + 1:
        raise ValueError(
            f"--tune {count}: {row.row} has {len(points) + 1} settings to try (of {', '.join(axes) or 'no free key'}), "
            "and every row gets the same number. Ask for fewer, give fewer keys after --, or leave that row out"
        )
    order = shuffled(len(points), "tuning", row.method).tolist()
    trials = [_trial(row, 0, default, row.flags, seeds)]
    for number, place in enumerate(order[: count - 1], start=1):
        drawn = tuple(word for key, value in points[place].items() for word in (f"--{key}", str(value)))
        trials.append(_trial(row, number, points[place], (*row.flags, *drawn), seeds))
    return trials


def grid(method: str, lr: float) -> dict[str, list[Any]]:
    """Return the values of each key that is tuned for a method whose runs have learning rate ``lr``."""
    grids = yaml.safe_load(GRIDS.read_text(encoding="utf-8"))
    axes: dict[str, list[Any]] = {**grids["every method"], **grids.get(method, {})}
    return axes | {"lr": [float(f"{factor * lr:.6g}") for factor in axes["lr"]]}


def _trial(row: Cell, number: int, settings: Mapping[str, Any], flags: tuple[str, ...], seeds: int) -> Trial:
    template = replace(row, label=f"{row.row}-trial{number}", flags=flags)
    return Trial(number, settings, tuple(replace(template, seed=FIRST_SEED + seed) for seed in range(seeds)))


def is_decided(out: Path, trials: Sequence[Trial]) -> bool:
    """Whether every run of the trials has finished or failed."""
    return all(has_result(out, cell) or has_failed(out, cell) for trial in trials for cell in trial.cells)


def choose(out: Path, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest score, the earliest of equal ones; None if none has a score."""
    scored = [(score, -trial.number, trial) for trial in trials if (score := mean_score(out, trial)) is not None]
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def mean_score(out: Path, trial: Trial) -> float | None:
    """Return a trial's mean validation accuracy; None where a run of it has no result.

    Six decimals, as many as float32 scores have: equal trials must not differ by rounding.
    """
    scores = [_score(out, cell) for cell in trial.cells]
    known = [score for score in scores if score is not None]
    return round(sum(known) / len(known), 6) if len(known) == len(scores) else None


def _score(out: Path, cell: Cell) -> float | None:
    result = read_json(out / cell.folder / "result.json", None)
    if result is None:
        return None
    validation = result["validation"]
    branch = "fused" if "fused" in validation else next(iter(validation))
    return float(validation[branch]["accuracy"])


def summary(out: Path, trials: Mapping[Cell, Sequence[Trial]]) -> dict[str, Any]:
    """Return what tables say of the tuning: its size and, by data set and row, what was chosen."""
    rows: dict[str, dict[str, Any]] = {}
    for row, tried in trials.items():
        chosen = choose(out, tried) if is_decided(out, tried) else None
        if chosen is None:
            continue
        default = tried[0].settings
        rows.setdefault(row.data, {})[row.row] = {
            "trial": chosen.number,
            "settings": dict(chosen.settings),
            "changed": {key: value for key, value in chosen.settings.items() if value != default[key]},
            "validation_accuracy": mean_score(out, chosen),
            "validation_accuracy_of_default": mean_score(out, tried[0]),
        }
    first = next(iter(trials.values()))
    return {"trials": len(first), "seeds": [cell.seed for cell in first[0].cells], "data": rows}


def write_records(out: Path, trials: Mapping[Cell, Sequence[Trial]]) -> None:
    """Write tuned.yaml, what was chosen, and tuning.csv, every run of every trial."""
    head = (
        "# Chosen by mean validation accuracy; the test set had no part in it. Every run of every trial: tuning.csv\n"
    )
    write_text(out / "tuned.yaml", head + yaml.safe_dump(summary(out, trials), sort_keys=False, allow_unicode=True))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["data", "method", "trial", "seed", "validation_accuracy", "settings"])
    for row, tried in trials.items():
        for trial in tried:
            said = " ".join(f"{key}={value}" for key, value in trial.settings.items())
            for cell in trial.cells:
                writer.writerow([row.data, row.row, trial.number, cell.seed, _score(out, cell), said])
    write_text(out / "tuning.csv", buffer.getvalue())
