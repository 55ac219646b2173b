"""Figures of one run and of a comparison; each function returns a matplotlib ``Figure`` that no global state knows.

Colours are those of Okabe and Ito (2008), distinguishable with any colour vision; a modality keeps its colour in every
figure. Figures are narrow and high rather than wide, so that their text stays readable on a phone.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from igm_fast.reports import statistics
from igm_fast.reports.record import PHASES, Run

MODALITY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PHASE_COLOURS = dict(
    zip((*PHASES, "other"), ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#999999"), strict=True)
)
FUSED_COLOUR = "#111111"
WIDTH = 6.6  # inches

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "igm_fast",  # the same figure gives the same file
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Return a drawing function that draws in the style of all figures."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def save(figure: Figure, path: Path) -> str:
    """Write the figure as PNG and return it as the ``data:`` address of an SVG, for a self-contained page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=160)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def branch_colours(branches: Sequence[str]) -> dict[str, str]:
    """Return the colour of each modality, by its place, and of the fused prediction."""
    modalities = [name for name in branches if name != "fused"]
    colours = {name: MODALITY_COLOURS[i % len(MODALITY_COLOURS)] for i, name in enumerate(modalities)}
    return colours | {"fused": FUSED_COLOUR}


@styled
def curves(run: Run) -> Figure:
    """Validation accuracy and training loss per global epoch; bands show which modality each stage trained."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    accuracy, loss = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    colours = branch_colours(run.branches)
    stages = run.stages()
    bands: dict[str, str] = {}
    for stage, trained, first, last in stages:
        colour = bands.setdefault(trained, colours.get(trained, "#999999"))
        for axes in (accuracy, loss):
            axes.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.12, linewidth=0)
        if len(stages) <= 24:
            accuracy.text((first + last) / 2, 1.005, str(stage), transform=accuracy.get_xaxis_transform(), ha="center")
    for branch in run.branches:
        style = {"color": colours[branch], "linewidth": 2.2 if branch == "fused" else 1.4}
        _line(accuracy, run, "validation", branch, "accuracy", label=branch, **style)
        _line(loss, run, "train", branch, "loss", marker=".", markersize=3, **style)
    selected = run.result.get("selected_epoch")
    if selected is not None:
        accuracy.axvline(selected, color=FUSED_COLOUR, linestyle=":", linewidth=1.2, label="selected epoch")
        loss.axvline(selected, color=FUSED_COLOUR, linestyle=":", linewidth=1.2)
    if stages:
        accuracy.set_xlim(stages[0][2] - 0.5, stages[-1][3] + 0.5)
    accuracy.set(ylabel="validation accuracy")
    loss.set(ylabel="training loss", xlabel="epoch (stage number above)")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [*accuracy.get_legend_handles_labels()[0]]
    handles += [Patch(facecolor=colour, alpha=0.25, label=f"{name} is trained") for name, colour in bands.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _line(axes: Axes, run: Run, split: str, branch: str, metric: str, **style: Any) -> None:
    """Draw one curve; it is interrupted where epochs are missing (another modality was trained there)."""
    points = run.series(split, branch, metric)
    if not points:
        return
    epochs, values = np.array([p.global_epoch for p in points]), np.array([p.value for p in points])
    gaps = np.flatnonzero(np.diff(epochs) > 1) + 1
    axes.plot(np.insert(epochs.astype(float), gaps, np.nan), np.insert(values, gaps, np.nan), **style)


@styled
def spectra(run: Run) -> Figure:
    """Eigenvalues of the activations' second moment C (normalised, log) and of the projector T, last stage.

    Layers of which only the extreme eigenvalues are known are left out.
    """
    rows = [s for s in run.last_spectra() if s.ranked]
    sources = list(dict.fromkeys(s.source for s in rows))
    layers = list(dict.fromkeys(s.layer for s in rows))
    if len(layers) <= len(MODALITY_COLOURS):
        colours: dict[str, Any] = dict(zip(layers, MODALITY_COLOURS, strict=False))
    else:
        colours = {layer: colormaps["viridis"](0.9 * i / (len(layers) - 1)) for i, layer in enumerate(layers)}
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    grid = figure.subplots(2, len(sources), sharex="col", sharey="row", squeeze=False)
    for column, source in enumerate(sources):
        activations, projector = grid[0][column], grid[1][column]
        for s in (s for s in rows if s.source == source):
            index = np.arange(1, s.eigenvalues.size + 1)
            largest = s.eigenvalues[0] if s.eigenvalues[0] > 0 else 1.0
            shown = np.where(s.eigenvalues > 1e-8 * largest, s.eigenvalues / largest, np.nan)
            style = {"color": colours[s.layer], "marker": ".", "markersize": 3, "linewidth": 1.2}
            activations.plot(index, shown, label=s.layer, **style)
            projector.plot(index, s.projector_eigenvalues, **style)
        activations.set(title=f"from {source}", xscale="log", yscale="log")
        projector.set(xlabel="eigenvalue number")
        projector.axhline(1.0, color="#666666", linewidth=0.8, linestyle=":")
    grid[0][0].set(ylabel="λ / largest λ of C")
    grid[1][0].set(ylabel="eigenvalue of T")
    handles: dict[str, Any] = {}
    for axes in grid[0]:
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    shown_layers = layers if len(layers) <= 12 else [layers[0], layers[len(layers) // 2], layers[-1]]
    entries = [handles[name] for name in shown_layers if name in handles]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, title="layer")
    return figure


@styled
def time_per_phase(run: Run) -> Figure:
    """Seconds by phase, as stacked bars: the whole run and, where recorded, each stage."""
    bars = {"whole run": phase_seconds(run.timing)}
    for number, stage in enumerate(run.timing.get("per_stage") or (), start=1):
        if isinstance(stage, Mapping):
            name = f"stage {stage.get('stage', number)} {stage.get('trained', '')}".strip()
            bars[name] = phase_seconds(stage)
    bars = {name: seconds for name, seconds in bars.items() if sum(seconds.values()) > 0}
    figure = Figure(figsize=(WIDTH, 1.6 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    used = [phase for phase in PHASE_COLOURS if any(seconds.get(phase) for seconds in bars.values())]
    left = np.zeros(len(bars))
    for phase in used:
        width = np.array([seconds.get(phase, 0.0) for seconds in bars.values()])
        axes.barh(list(bars), width, left=left, color=PHASE_COLOURS[phase], label=phase, height=0.7)
        left += width
    for place, total in enumerate(left):
        axes.annotate(f"{total:.1f} s", (total, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="seconds")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def phase_seconds(timing: Mapping[str, Any]) -> dict[str, float]:
    """Return seconds by phase; what the total holds beyond the named phases is called ``other``."""
    seconds = {phase: float(timing[phase]) for phase in PHASES if timing.get(phase)}
    rest = float(timing.get("total") or 0.0) - sum(seconds.values())
    return seconds | ({"other": rest} if rest > 0.005 * sum(seconds.values()) else {})


@styled
def confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Confusion matrix [true, predicted] of the test set; colour is the share of the true class, figures are counts."""
    count = len(classes)
    side = min(WIDTH, max(4.2, 1.8 + 0.42 * count))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if count <= 16:
        for (true, predicted), cell in np.ndenumerate(matrix):
            colour = "white" if share[true, predicted] > 0.55 else "#222222"
            axes.text(predicted, true, str(cell), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), classes)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


@styled
def comparison(scores: Mapping[str, Mapping[str, Mapping[int, float]]], reference: str) -> Figure:
    """Test accuracy per method: one small dot per seed, mean ± sample standard deviation beside it.

    Args:
        scores: data set → method → seed → fused test accuracy.
        reference: method drawn in the accent colour, with a dotted line at its mean.
    """
    rows = [max(len(methods), 1) for methods in scores.values()]
    figure = Figure(figsize=(WIDTH, 0.7 + sum(0.42 * count + 0.45 for count in rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (data, methods) in zip(panels, scores.items(), strict=True):
        for place, (method, by_seed) in enumerate(methods.items()):
            values = np.array(list(by_seed.values()), dtype=np.float64)
            if values.size == 0:
                continue
            colour = MODALITY_COLOURS[1] if method == reference else MODALITY_COLOURS[0]
            spread = statistics.summarize(values.tolist())
            axes.scatter(values, np.full(values.size, place + 0.16), s=14, color=colour, alpha=0.5, linewidths=0)
            axes.errorbar(
                [spread.mean], [place - 0.1], xerr=[spread.std or 0.0], fmt="o", color=colour, capsize=3, markersize=5
            )
            if method == reference:
                axes.axvline(float(values.mean()), color=colour, linestyle=":", linewidth=1)
        axes.set_yticks(range(len(methods)), list(methods))
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_title(data, loc="left")
    panels[-1].set_xlabel("test accuracy: mean ± standard deviation; one small dot per seed")
    return figure
