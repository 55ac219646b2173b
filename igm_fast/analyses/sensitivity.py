"""Sensitivity of IGM to one of its parameters: tau, rho, flat_ratio or noise.

One parameter at a time, the others at their defaults. The lower panel is what T leaves, as a mean over projected
layers: tr(T)/d, for a gradient without preferred direction, and ‖GT‖/‖G‖ of real gradients at the last weights. Both
are 1 where nothing is projected. flat_ratio and noise belong to the authors' form of the step, so these two grids train
with official mixup, and noise with the official perturbation as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from igm_fast.analyses.conflict import removed_by_projection
from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.grid import (
    TIDY_COLUMNS,
    Row,
    branches,
    difference_words,
    scores,
    set_title,
    setting_words,
    spread,
    tests_against,
    tidy_rows,
    train_grid,
    with_quick_note,
)
from igm_fast.analyses.loaded_run import load_run
from igm_fast.methods import METHODS
from igm_fast.reports import figures
from igm_fast.reports.record import METRICS, Run, Spectrum

KIND = "grid"
BATCHES = 8  # for ‖GT‖/‖G‖


@dataclass(frozen=True)
class Parameter:
    """What is varied: an option of igm, its values, and the flags without which it would do nothing."""

    option: str
    values: tuple[float, ...]
    flags: tuple[str, ...] = ()

    @property
    def default(self) -> float:
        """The value that igm has without being told."""
        return float(getattr(METHODS["igm"], self.option))

    def row(self, value: float) -> Row:
        """Return the row that trains with a value."""
        return Row(f"igm-{self.option}-{value:g}", "igm", (f"--{self.option}", f"{value:g}", *self.flags))


@dataclass(frozen=True)
class Kept:
    """What T leaves, mean over layers, stages and seeds: tr(T)/d, and ‖GT‖/‖G‖."""

    trace: float
    gradient: float


OFFICIAL_MIXUP = ("--mixup", "official")
PARAMETERS = {
    "tau": Parameter("tau", (0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)),
    "rho": Parameter("rho", (0, 0.01, 0.02, 0.05, 0.1, 0.2)),
    "flat_ratio": Parameter("flat_ratio", tuple(round(0.1 * i, 1) for i in range(10)), OFFICIAL_MIXUP),
    "noise": Parameter(
        "noise_ratio", (0, 1e-15, 1e-10, 1e-7, 1e-5, 1e-3), (*OFFICIAL_MIXUP, "--perturbation", "official")
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the parameter."""
    parser.add_argument(
        "--parameter", choices=tuple(PARAMETERS), default="tau", help="what is varied (default: %(default)s)"
    )


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Train with every value and say between which ones the accuracy changes."""
    parameter = PARAMETERS[arguments.parameter]
    name = f"sensitivity-{arguments.parameter.replace('_', '-')}"
    rows = {value: parameter.row(value) for value in parameter.values}
    runs = train_grid(name, list(rows.values()), arguments, console)
    by_value = {value: runs[row.label] for value, row in rows.items()}
    picture = arguments.out / f"{name}.png"
    console.print("measuring what T leaves of gradients at the last weights")
    kept = {value: Kept(kept_trace(by_seed), kept_gradient(by_seed)) for value, by_seed in by_value.items()}
    figures.save(draw(parameter, by_value, kept, setting_words(arguments, runs)), picture)
    words = {row.label: [parameter.option, value, *astuple(kept[value])] for value, row in rows.items()}
    columns = ("parameter", "value", "mean_trace_of_T", "norm_kept", *TIDY_COLUMNS)
    table = write_csv(arguments.out / f"{name}.csv", columns, tidy_rows(runs, words))
    sentence = with_quick_note(say(parameter, by_value, kept), arguments)
    title = f"Sensitivity to {parameter.option}"
    return Finding(name, title, sentence, [picture], [table, arguments.out / f"{name}-runs.csv"])


def kept_trace(by_seed: Mapping[int, Run]) -> float:
    """Return the mean of tr(T)/d over the projected layers of all stages and seeds; 1 where nothing was projected."""
    shares = [mean_eigenvalue(spectrum) for one in by_seed.values() for spectrum in one.spectra]
    return float(np.mean(shares)) if shares else 1.0


def kept_gradient(by_seed: Mapping[int, Run]) -> float:
    """Return the mean of ‖GT‖/‖G‖ over the projected layers, some training batches and seeds, at the last weights."""
    ratios = []
    for one in by_seed.values():
        projected = {spectrum.layer for spectrum in one.spectra}
        measured = removed_by_projection(load_run(one.folder, "last"), BATCHES) if projected else {}
        ratios += [ratio for place, ratio in measured.items() if place.partition("/")[2] in projected]
    return float(np.mean(ratios)) if ratios else 1.0


def mean_eigenvalue(spectrum: Spectrum) -> float:
    """Return tr(T)/d of one layer: the known eigenvalues, and ``complement`` for all other directions."""
    known = spectrum.projector_eigenvalues
    directions = max(spectrum.dim, known.size)
    return float(known.sum() + (directions - known.size) * spectrum.complement) / directions


def say(parameter: Parameter, by_value: Mapping[float, Mapping[int, Run]], kept: Mapping[float, Kept]) -> str:
    """Return what is to be seen: best and worst value, what differs from the default, what T keeps."""
    fused = {f"{value:g}": scores(by_seed, "fused") for value, by_seed in by_value.items()}
    default = f"{parameter.default:g}"
    tests = tests_against(default, fused)
    means = {value: float(np.mean(list(by_seed.values()))) for value, by_seed in fused.items()}
    best, worst = max(means, key=lambda value: means[value]), min(means, key=lambda value: means[value])
    different = [value for value, test in tests.items() if test["p_holm"] is not None and test["p_holm"] < 0.05]
    against = (
        f"differs significantly from the default {default} at "
        + ", ".join(f"{value} by {difference_words(tests[value])}" for value in different)
        if different
        else f"differs nowhere significantly from that at the default {default}"
    )
    first, last = parameter.values[0], parameter.values[-1]
    return (
        f"Fused test accuracy is highest at {parameter.option} = {best} ({spread(fused[best])}) and lowest at {worst} "
        f"({spread(fused[worst])}); over seeds it {against} (paired t-test, Holm-adjusted for {len(tests)} "
        f"comparisons). ‖GT‖/‖G‖ goes from {kept[first].gradient:.3f} at {first:g} to {kept[last].gradient:.3f} at "
        f"{last:g}, tr(T)/d from {kept[first].trace:.3f} to {kept[last].trace:.3f}."
    )


@figures.styled
def draw(
    parameter: Parameter, by_value: Mapping[float, Mapping[int, Run]], kept: Mapping[float, Kept], setting: str
) -> Figure:
    """Fused scores, accuracy of each modality, and what T leaves, for each value; mean ± std."""
    figure = Figure(figsize=(figures.WIDTH, 7.6), layout="constrained")
    top, middle, bottom = panels = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 2))
    colours = figures.branch_colours(branches({f"{value:g}": dict(by_seed) for value, by_seed in by_value.items()}))
    for (metric, words), style in zip(METRICS.items(), ("-", "--", ":"), strict=True):
        _band(top, by_value, "fused", metric, color=colours["fused"], linestyle=style, label=words)
    for branch, colour in colours.items():
        if branch != "fused":
            _band(middle, by_value, branch, "accuracy", color=colour, linestyle="-", label=branch)
    bottom.plot([one.gradient for one in kept.values()], color="#444444", marker=".", label="‖GT‖/‖G‖")
    bottom.plot([one.trace for one in kept.values()], color="#444444", marker=".", linestyle="--", label="tr(T)/d")
    values = list(by_value)
    for axes in panels:
        axes.axvline(values.index(parameter.default), color="#666666", linestyle=":", linewidth=1.2)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(colours), borderaxespad=0.1)
    top.set(ylabel="fused, test")
    middle.set(ylabel="accuracy, test")
    bottom.set(ylabel="left by T", xlabel=f"{parameter.option}, not to scale (dotted: default {parameter.default:g})")
    bottom.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    set_title(figure, f"{setting}; mean ± std")
    return figure


def _band(
    axes: Axes, by_value: Mapping[float, Mapping[int, Run]], branch: str, metric: str, *, label: str, **style: Any
) -> None:
    table = [list(scores(by_seed, branch, metric).values()) for by_seed in by_value.values()]
    mean = np.array([np.mean(row) for row in table])
    std = np.array([np.std(row, ddof=1) if len(row) > 1 else 0.0 for row in table])
    places = np.arange(len(table))  # values are evenly spaced: 0 has no place on a log axis
    axes.plot(places, mean, marker=".", label=label, **style)
    axes.fill_between(places, mean - std, mean + std, color=style["color"], alpha=0.12, linewidth=0)
