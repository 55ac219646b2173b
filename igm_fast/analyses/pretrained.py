"""Pretrained encoders against encoders from scratch: unimodal, joint, MLA and IGM.

--pretrained names weights from elsewhere for the encoders. Without it they come from the unimodal runs of this very
grid, each row of a seed from those of the same seed: trained on the same training part, so that no test sample of a run
was seen before. Such encoders have had the epochs of the unimodal run already; that extra training is part of what
is shown. Weights of another seed's run would have been trained on samples that are test samples here.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass

from matplotlib.figure import Figure
from rich.console import Console

from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.grid import (
    TIDY_COLUMNS,
    Row,
    Runs,
    difference_words,
    draw_spread,
    modality_names,
    scores,
    set_title,
    setting_words,
    spread,
    tidy_rows,
    train_grid,
    with_quick_note,
)
from igm_fast.reports import figures, statistics
from igm_fast.reports.comparison import Cell

KIND = "grid"
NAME = "pretrained"
METHODS = ("joint", "mla", "igm")


@dataclass(frozen=True)
class Pair:
    """One method with encoders from scratch and with pretrained ones."""

    name: str
    scratch: Row
    pretrained: Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where weights come from and how they are trained on."""
    parser.add_argument(
        "--pretrained",
        metavar="NAME=PATH,…",
        help="weights by modality, as train has them (default: the unimodal runs of the same seed)",
    )
    parser.add_argument(
        "--pretrained_flags",
        default="",
        metavar="FLAGS",
        help='flags for the pretrained rows alone, such as "--lr 1e-5 --optimizer adamw"',
    )


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Train every row from scratch, then from pretrained encoders, and say what that changes."""
    pairs = plan(arguments, modality_names(arguments))
    scratch = [pair.scratch for pair in pairs]
    train_grid(NAME, scratch, arguments, console)  # first: their weights are what the others start from
    runs = train_grid(NAME, [*scratch, *(pair.pretrained for pair in pairs)], arguments, console)
    picture = arguments.out / f"{NAME}.png"
    figures.save(draw(pairs, runs, setting_words(arguments, runs)), picture)
    words: dict[str, list[object]] = {}
    for pair in pairs:
        words |= {pair.scratch.label: [pair.name, "scratch"], pair.pretrained.label: [pair.name, "pretrained"]}
    table = write_csv(arguments.out / f"{NAME}.csv", ("method", "encoders", *TIDY_COLUMNS), tidy_rows(runs, words))
    sentence = with_quick_note(say(pairs, runs, own=arguments.pretrained is None), arguments)
    return Finding(NAME, "Pretrained encoders", sentence, [picture], [table, arguments.out / f"{NAME}-runs.csv"])


def plan(arguments: argparse.Namespace, modalities: list[str]) -> list[Pair]:
    """Return the pairs of rows; ``{seed}`` in the source of weights stands for the run's own seed."""
    scratch = [Row(f"unimodal-{name}", "unimodal", modality=name) for name in modalities]
    source = arguments.pretrained or ",".join(
        f"{row.modality}={(arguments.out / Cell(arguments.data, row.method, row.modality, 0, row.label).folder).parent}"
        "/seed{seed}"
        for row in scratch
    )
    scratch += [Row(name, name) for name in METHODS]
    flags = ("--pretrained", source, *shlex.split(arguments.pretrained_flags))
    return [Pair(row.label, row, Row(f"{row.label}-pretrained", row.method, flags, row.modality)) for row in scratch]


def say(pairs: list[Pair], runs: Runs, *, own: bool) -> str:
    """Return what is to be seen: the change of fused accuracy of each row, tested within the row."""
    tests = [
        statistics.paired_test(scores(runs[pair.pretrained.label], "fused"), scores(runs[pair.scratch.label], "fused"))
        for pair in pairs
    ]
    adjusted = statistics.holm([test.p for test in tests])
    words = []
    for pair, test, p in zip(pairs, tests, adjusted, strict=True):
        before, after = (spread(scores(runs[row.label], "fused")) for row in (pair.scratch, pair.pretrained))
        change = difference_words({"difference": test.mean_difference, "p_holm": p})
        words.append(f"{pair.name} from {before} to {after}, {change}")
    origin = (
        "Pretrained here means: encoders of the unimodal runs of the same seed and training part, whose epochs come on "
        "top of the row's own."
        if own
        else "Pretrained weights come from outside, as the command names them."
    )
    return (
        f"Pretrained encoders change the test accuracy of {'; '.join(words)} (paired t-test, Holm-adjusted). {origin}"
    )


@figures.styled
def draw(pairs: list[Pair], runs: Runs, setting: str) -> Figure:
    """Two lines per row, from scratch and pretrained: mean ± std and a small dot per seed."""
    figure = Figure(figsize=(figures.WIDTH, 1.6 + 0.42 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    sides = {
        "scratch": (-0.16, "o", figures.MODALITY_COLOURS[5]),
        "pretrained": (0.16, "D", figures.MODALITY_COLOURS[0]),
    }
    for place, pair in enumerate(pairs):
        for row, (name, (offset, marker, colour)) in zip((pair.scratch, pair.pretrained), sides.items(), strict=True):
            label = name if place == 0 else None
            draw_spread(axes, place + offset, scores(runs[row.label], "fused"), fmt=marker, color=colour, label=label)
    axes.set_yticks(range(len(pairs)), [pair.name for pair in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("test accuracy, fused where there are several modalities")
    set_title(figure, f"{setting}; mean ± std, a dot per seed")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
