"""Grids of runs for analyses that train: rows × seeds, as cells of a comparison, resumable and with the same checks."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from igm_fast import compare
from igm_fast.comparing.cells import is_kept, run_cells
from igm_fast.names import nearest
from igm_fast.reports import comparison as tables
from igm_fast.reports import statistics
from igm_fast.reports.comparison import Cell
from igm_fast.reports.record import METRICS, Run, read_run

QUICK_SEEDS = 2
QUICK_FLAGS = ("--epochs", "4", "--stages", "2")
QUICK_NOTE = "A quick check that everything runs, with too few epochs and seeds to be a result."


class GridError(RuntimeError):
    """Some runs of a grid failed; the message names them and where their logs are."""


@dataclass(frozen=True)
class Row:
    """What one row of a grid trains, once per seed.

    ``label`` names the folder of its runs: rows of equal label and flags are trained once for all analyses that share
    an ``--out``. ``{seed}`` in a flag stands for the run's seed.
    """

    label: str
    method: str
    flags: tuple[str, ...] = ()
    modality: str | None = None

    def cell(self, data: str, seed: int) -> Cell:
        """Return the run of one seed."""
        flags = tuple(flag.replace("{seed}", str(seed)) for flag in self.flags)
        return Cell(data, self.method, self.modality, seed, self.label, flags)


Runs = dict[str, dict[int, Run]]  # label of the row → seed → finished run


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every grid has."""
    group = parser.add_argument_group("every grid")
    group.add_argument("--data", default="watch", metavar="NAME", help="data set (default: %(default)s)")
    group.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 … N−1 (default: %(default)s)")
    group.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at the same time, one thread each (default: the processors of this machine; for time 1)",
    )
    group.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_SEEDS} seeds and {QUICK_FLAGS[1]} epochs: to see that it runs, not for results",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where results and runs go (default: runs/analysis, with --quick runs/analysis-quick)",
    )


def check_grid_arguments(arguments: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Check and complete the options of a grid; ``error`` does not return."""
    if arguments.data not in compare.known_data():
        error(nearest(arguments.data, compare.known_data(), "data set"))
    arguments.jobs = compare.usable_processors() if arguments.jobs is None else arguments.jobs
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            error(f"--{name} must be at least 1; given {getattr(arguments, name)}")
    for flag in arguments.flags:
        if flag.split("=")[0].replace("_", "-") in compare.SET_HERE:
            error(f"{flag} after -- is set by the analysis itself for every run; use its own options before --")
    if arguments.quick:
        arguments.seeds = min(arguments.seeds, QUICK_SEEDS)
        arguments.flags = [*QUICK_FLAGS, *arguments.flags]
    if arguments.out is None:
        arguments.out = Path("runs/analysis-quick" if arguments.quick else "runs/analysis")


def modality_names(arguments: argparse.Namespace) -> list[str]:
    """Return the modalities of the data set, read with the flags that every run gets."""
    return compare.modality_names(arguments.data, arguments.flags)


def train_grid(name: str, rows: Sequence[Row], arguments: argparse.Namespace, console: Console) -> Runs:
    """Train what is missing of a grid, write the scores of all its runs to ``NAME-runs.csv`` and return the runs.

    Rows come in the order given. They are trained seed by seed, so that those which are compared run beside one another
    and an early stop leaves whole seeds.

    Raises:
        GridError: a run failed. Finished ones are kept.
        ValueError: finished runs were trained with other flags, or on other data.
    """
    out, flags = arguments.out, arguments.flags
    varied = {word for row in rows for word in row.flags if word.startswith("--")}
    for flag in flags:
        if flag.split("=")[0] in varied:
            raise ValueError(f"{flag} after -- is what {name} varies, expected other flags there; leave it out")
    cells = [row.cell(arguments.data, seed) for seed in range(arguments.seeds) for row in rows]
    waiting = [cell for cell in cells if not is_kept(out, cell, flags)]
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already and kept.")
    failed = run_cells(out, waiting, flags, arguments.jobs, console)
    if failed:
        names = "; ".join(f"{failure['name']} (log: {out / failure['log']})" for failure in failed)
        raise GridError(
            f"{len(failed)} of {len(cells)} runs failed, so there is no whole grid to look at: {names}. Finished runs "
            "are kept; give the same command again once the cause is gone"
        )
    found = {cell: read_run(out / cell.folder) for cell in cells}
    tables.check_same_data(found)
    (out / f"{name}-runs.csv").write_text(tables.tidy_csv(found), encoding="utf-8")
    return {row.label: {cell.seed: run for cell, run in found.items() if cell.row == row.label} for row in rows}


def scores(runs: Mapping[int, Run], branch: str, metric: str = "accuracy") -> dict[int, float]:
    """Return seed → test score of a branch; ``fused`` of a run with one modality is that modality."""
    return {
        seed: float(run.result["test"][run.headline if branch == "fused" else branch][metric])
        for seed, run in runs.items()
    }


def tidy_rows(runs: Runs, words: Mapping[str, Sequence[object]]) -> list[list[object]]:
    """Return one line per row and branch: the row's words, the branch, then mean, std and seeds of each metric.

    Args:
        runs: of the grid.
        words: what stands before the numbers of a row, by its label.
    """
    lines: list[list[object]] = []
    for label, by_seed in runs.items():
        for branch in branches({label: by_seed}):
            line: list[object] = [*words[label], branch, len(by_seed)]
            for metric in METRICS:
                summary = statistics.summarize(list(scores(by_seed, branch, metric).values()))
                line += [summary.mean, summary.std]
            lines.append(line)
    return lines


TIDY_COLUMNS = ("branch", "seeds", *(f"{metric}_{of}" for metric in METRICS for of in ("mean", "std")))


def branches(runs: Runs) -> list[str]:
    """Return the modalities that occur, in the data's order, and ``fused``."""
    everywhere = (name for by_seed in runs.values() for run in by_seed.values() for name in run.result["modalities"])
    return [*dict.fromkeys(everywhere), "fused"]


def tests_against(reference: str, by_row: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, Any]]:
    """Return, for every other row, the paired test of its difference to the reference; Holm's correction covers all.

    Keys of a test: ``difference``, ``low``, ``high`` (95 % interval), ``p``, ``p_holm``; None where the seeds do not
    allow it.
    """
    tests = {row: statistics.paired_test(by_row[row], by_row[reference]) for row in by_row if row != reference}
    adjusted = statistics.holm([test.p for test in tests.values()])
    return {
        row: {
            "difference": test.mean_difference,
            "low": test.interval[0] if test.interval else None,
            "high": test.interval[1] if test.interval else None,
            "p": test.p,
            "p_holm": p,
        }
        for (row, test), p in zip(tests.items(), adjusted, strict=True)
    }


def difference_words(test: Mapping[str, Any]) -> str:
    """Return a test in words, such as ``+0.013 (p = 0.020)`` or ``+0.001 (p = 0.700, not significant)``."""
    if test["p_holm"] is None:
        return f"{test['difference']:+.3f} (one seed: not tested)"
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    significant = test["p_holm"] < statistics.SIGNIFICANCE
    return f"{test['difference']:+.3f} ({p}{'' if significant else ', not significant'})"


def spread(values: Mapping[int, float]) -> str:
    """Return ``mean ± std`` over seeds; the mean alone where there is one."""
    summary = statistics.summarize(list(values.values()))
    return tables.spread({"mean": summary.mean, "std": summary.std})


def setting_words(arguments: argparse.Namespace, runs: Runs) -> str:
    """Return what stands above every figure of a grid: data, seeds, protocol, selection."""
    run = next(iter(next(iter(runs.values())).values()))
    config = yaml.safe_load(run.config)
    protocol, selection = config.get("protocol", "paper"), config.get("selection", "validation")
    seeds = "one seed" if arguments.seeds == 1 else f"{arguments.seeds} seeds"
    quick = " (quick check, no result)" if arguments.quick else ""
    return f"{arguments.data}, {seeds}, {protocol} protocol, selected on {selection}{quick}"


def with_quick_note(sentence: str, arguments: argparse.Namespace) -> str:
    """Return the sentence, with a warning in front where ``--quick`` was given."""
    return f"{QUICK_NOTE} {sentence}" if arguments.quick else sentence


def set_title(figure: Figure, words: str) -> None:
    """Put the setting above a figure, in as many lines as it needs."""
    figure.suptitle(textwrap.fill(words, 88), fontsize=10, x=0.01, ha="left")


def draw_spread(axes: Axes, place: float, values: Mapping[int, float], **style: Any) -> None:
    """Draw a mean with its standard deviation as a horizontal bar, and a small dot per seed."""
    array = np.array(list(values.values()), dtype=np.float64)
    error = float(array.std(ddof=1)) if array.size > 1 else 0.0
    axes.scatter(array, np.full(array.size, place), s=9, color=style["color"], alpha=0.4, linewidths=0)
    axes.errorbar(float(array.mean()), place, xerr=error, markersize=4, capsize=2, linewidth=1.2, **style)
