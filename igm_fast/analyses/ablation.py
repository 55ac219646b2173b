"""SAM × gradient modification: what each of IGM's two parts adds, per modality and fused.

The paper's 2×2 is read in two ways, since its row without either part has the accuracy of joint training while the
other rows take turns: "neither" is shown trained jointly and trained by turns. --full trains the whole grid of schedule
× SAM × gradient modification × mixup. All rows are tested against the row with both parts.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.grid import (
    TIDY_COLUMNS,
    Row,
    Runs,
    branches,
    difference_words,
    draw_spread,
    scores,
    set_title,
    setting_words,
    spread,
    tests_against,
    tidy_rows,
    train_grid,
    with_quick_note,
)
from igm_fast.reports import figures

KIND = "grid"
REFERENCE = "igm"
COLUMNS = ("row", "schedule", "sam", "gm", "mixup", *TIDY_COLUMNS)
TEST_COLUMNS = ("difference", "low", "high", "p", "p_holm")


@dataclass(frozen=True)
class Factors:
    """One row of the grid: what is switched on."""

    schedule: str  # joint, alternating
    sam: str  # none, official, true
    gm: str  # none, mla, heads, all
    mixup: str  # none, plain, official
    row: Row

    @property
    def words(self) -> str:
        """The row in words, for figures."""
        parts = [self.schedule]
        parts += [] if self.sam == "none" else ["SAM" if self.sam == "true" else "official noise"]
        parts += [] if self.gm == "none" else [{"all": "T", "heads": "T of heads", "mla": "MLA's P"}[self.gm]]
        parts += [] if self.mixup == "none" else [f"{self.mixup} mixup"]
        return " + ".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the grid."""
    parser.add_argument(
        "--full",
        action="store_true",
        help="every combination of schedule, SAM, gradient modification and mixup, not only the paper's rows",
    )


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Train the grid and say what SAM and the projector add."""
    rows = full_grid() if arguments.full else paper_grid()
    name = "ablation-full" if arguments.full else "ablation"
    runs = train_grid(name, [factors.row for factors in rows], arguments, console)
    fused = {label: scores(by_seed, "fused") for label, by_seed in runs.items()}
    tests = tests_against(REFERENCE, fused)
    picture = arguments.out / f"{name}.png"
    words = {factors.row.label: factors.words for factors in rows}
    figures.save(draw(runs, words, setting_words(arguments, runs)), picture)
    table = write_csv(arguments.out / f"{name}.csv", (*COLUMNS, *TEST_COLUMNS), table_rows(rows, runs))
    sentence = with_quick_note(say(fused, tests), arguments)
    return Finding(
        name, "Ablation: SAM × gradient modification", sentence, [picture], [table, arguments.out / f"{name}-runs.csv"]
    )


def paper_grid() -> list[Factors]:
    """Return the rows of the paper's table; "neither" both jointly trained and trained by turns."""
    return [
        Factors("joint", "none", "none", "none", Row("joint", "joint")),
        Factors("alternating", "none", "none", "none", Row("late", "late")),
        Factors("alternating", "true", "none", "none", Row("late-sam", "late", ("--rho", "0.05"))),
        Factors("alternating", "none", "all", "none", Row("igm-no-sam", "igm-no-sam")),
        Factors("alternating", "true", "all", "none", Row(REFERENCE, "igm")),
    ]


def full_grid() -> list[Factors]:
    """Return every combination; the paper's rows keep their labels, so that their runs are shared.

    Joint training has no turns, hence nothing to project, and neither the authors' noise nor their mixup is defined
    for it.
    """
    known = {(f.schedule, f.sam, f.gm, f.mixup): f for f in paper_grid()}
    rows = [
        known["joint", "none", "none", "none"],
        Factors("joint", "true", "none", "none", Row("sam", "sam")),
    ]
    for mixup, gm, sam in itertools.product(
        ("none", "plain", "official"), ("none", "mla", "heads", "all"), ("none", "official", "true")
    ):
        factors = ("alternating", sam, gm, mixup)
        flags = {"none": ("--rho", "0"), "official": ("--perturbation", "official"), "true": ()}[sam]
        flags += {
            "none": ("--layers", "none"),
            "heads": ("--layers", "heads"),
            "all": (),
            "mla": ("--projector", "mla", "--estimator", "batch_mean"),
        }[gm]
        flags += () if mixup == "none" else ("--mixup", mixup)
        rows.append(known.get(factors) or Factors(*factors, Row(f"igm-sam-{sam}-gm-{gm}-mixup-{mixup}", "igm", flags)))
    return rows


def table_rows(rows: Sequence[Factors], runs: Runs) -> list[list[object]]:
    """Return one line per row of the grid and branch: the scores, and the test against the row with both parts."""
    words = {f.row.label: [f.row.label, f.schedule, f.sam, f.gm, f.mixup] for f in rows}
    tests = {
        branch: tests_against(REFERENCE, {label: scores(by_seed, branch) for label, by_seed in runs.items()})
        for branch in branches(runs)
    }
    none: dict[str, Any] = dict.fromkeys(TEST_COLUMNS)
    lines = tidy_rows(runs, words)
    return [
        [*line, *(tests[str(line[5])].get(str(line[0]), none)[column] for column in TEST_COLUMNS)] for line in lines
    ]


def say(fused: Mapping[str, Mapping[int, float]], tests: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return what is to be seen: the four cells of the table, and their distance to the full method."""
    paper = [label for label in ("joint", "late", "late-sam", "igm-no-sam") if label in fused]
    names = {
        "joint": "joint training",
        "late": "taking turns without either part",
        "late-sam": "with SAM alone",
        "igm-no-sam": "with the projector alone",
    }
    against = "; ".join(f"{names[row]} {spread(fused[row])}, {difference_words(tests[row])}" for row in paper)
    best = max(fused, key=lambda row: float(np.mean(list(fused[row].values()))))
    highest = "" if best == REFERENCE else f" The highest mean of all {len(fused)} rows is that of {best}."
    return (
        f"Fused test accuracy with both parts is {spread(fused[REFERENCE])}; against it: {against} "
        f"(paired t-test over seeds, Holm-adjusted for {len(tests)} comparisons).{highest}"
    )


@figures.styled
def draw(runs: Runs, words: Mapping[str, str], setting: str) -> Figure:
    """One line per row of the grid: mean ± std and a small dot per seed, modalities left, fused right."""
    shown = branches(runs)
    colours = figures.branch_colours(shown)
    figure = Figure(
        figsize=(figures.WIDTH, 1.4 + (0.45 if len(runs) <= 12 else 0.25) * len(runs)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    modalities = [branch for branch in shown if branch != "fused"]
    offsets = np.linspace(-0.25, 0.25, len(modalities)) if len(modalities) > 1 else np.zeros(1)
    for place, by_seed in enumerate(runs.values()):
        for branch, offset in zip(modalities, offsets, strict=True):
            name = branch if place == 0 else None
            draw_spread(left, place + offset, scores(by_seed, branch), fmt="o", color=colours[branch], label=name)
        draw_spread(right, place, scores(by_seed, "fused"), fmt="D", color=colours["fused"])
    for axes, title in ((left, "each modality"), (right, "fused")):
        axes.hlines(np.arange(1, len(runs)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color="#e4e4e4", lw=0.8)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel="test accuracy")
    left.set_yticks(range(len(runs)), [words[label] for label in runs])
    left.set_ylim(len(runs) - 0.5, -0.5)
    set_title(figure, f"{setting}; mean ± std, a dot per seed")
    figure.legend(loc="outside lower center", ncols=len(modalities))
    return figure
