"""The loss around the weights of one or several runs: a plane of two random directions, and slices along single ones.

f(α, β) = L(ω + αδ + βη) with filter-normalised random directions δ, η (Li et al., *Visualizing the Loss Landscape of
Neural Nets*, NeurIPS 2018; biases and batch norm stay), on fixed samples in evaluation mode, for the fused −log p[y]
and each modality's cross-entropy. All runs have the same samples, the same Gaussians, levels and range. Slices: mean
and min–max over several directions. A picture in a plane is qualitative: see `sharpness` for numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from igm_fast.analyses import drawing
from igm_fast.analyses.directions import filter_normalised, place, weights_kept
from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.loaded_run import LoadedRun, add_sample_arguments, fixed_samples, load_runs, positive
from igm_fast.methods.base import Batch
from igm_fast.names import nearest
from igm_fast.reports import figures
from igm_fast.training import evaluation

KIND = "runs"
QUICK, POINTS = 25, 51
SLICES = 5
LEVELS = 14
BATCH_NORM = ("kept", "reestimate")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Landscape:
    """Losses around one run: ``plane`` branch → ``[β, α]``, ``slices`` branch → ``[direction, α]``, float64."""

    folder: str
    at: NDArray[np.float64]  # [points] of α, and of β
    plane: dict[str, NDArray[np.float64]]
    slices: dict[str, NDArray[np.float64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this analysis' own options."""
    add_sample_arguments(parser, "train", 1024)
    parser.add_argument("--points", type=positive, help=f"points along each axis (default: {POINTS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} points along each axis")
    parser.add_argument(
        "--move", default="all", metavar="MODALITY", help="weights that move: one modality's encoder and head, or all"
    )
    parser.add_argument(
        "--batch_norm",
        choices=BATCH_NORM,
        default="kept",
        help="kept: the run's own statistics at every point; reestimate: measured anew at each, on training samples",
    )
    parser.add_argument(
        "--directions_seed", type=int, default=0, help="of the random directions (default: %(default)s)"
    )


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Measure, draw, and say what is to be seen."""
    runs = load_runs(arguments.runs, arguments.checkpoint)
    points = arguments.points or (QUICK if arguments.quick else POINTS)
    at = np.linspace(-1.0, 1.0, points)
    found = []
    for one in runs:
        console.print(f"landscape: {one.label}, {points}×{points} points and {SLICES} slices")
        found.append(
            measure(
                one,
                at,
                fixed_samples(one, arguments.split, arguments.samples),
                moves=arguments.move,
                reestimate=arguments.batch_norm == "reestimate",
                seed=arguments.directions_seed,
            )
        )
    labels = drawing.run_labels(runs)
    out: Path = arguments.out
    how = f"{arguments.split}, {arguments.samples} samples; {arguments.checkpoint} weights"
    how += f"; batch norm {arguments.batch_norm}"
    pictures = [
        drawing.save(draw(found, labels, drawing.run_colours(runs), how), out / "landscape.png"),
        drawing.save(draw_surfaces(found, labels), out / "landscape-surface.png"),
    ]
    tables = [
        write_csv(out / "landscape.csv", ("run", "branch", "alpha", "beta", "loss"), _plane_rows(found, labels)),
        write_csv(
            out / "landscape-slices.csv", ("run", "branch", "direction", "alpha", "loss"), _slice_rows(found, labels)
        ),
    ]
    return Finding("landscape", "Loss landscape", _sentence(found, labels), pictures, tables)


def measure(
    loaded: LoadedRun,
    at: NDArray[np.float64],
    samples: Sequence[Batch],
    *,
    moves: str = "all",
    reestimate: bool = False,
    seed: int = 0,
    slices: int = SLICES,
) -> Landscape:
    """Return the losses of a run around its weights, which are the same bits afterwards.

    Args:
        loaded: the run.
        at: ``[points]`` values of α and of β; 1 moves each filter by its own length.
        samples: on which the losses are taken.
        moves: a modality, whose encoder and head move, or ``"all"``.
        reestimate: measure the statistics of batch norm anew at each point, on training samples.
        seed: of the directions.
        slices: number of directions of the slices; the first is that of α.

    Raises:
        ValueError: an unknown modality.
    """
    model = loaded.model
    if moves not in ("all", *model.modalities):
        raise ValueError(f"--move: {nearest(moves, ['all', *model.modalities], 'modality')}")
    moving: nn.Module = model if moves == "all" else model.branch(moves)
    training = fixed_samples(loaded, "train", sum(len(batch.labels) for batch in samples)) if reestimate else []
    parameters = dict(moving.named_parameters())
    origin = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    directions = [filter_normalised(moving, seed, number) for number in range(max(slices, 2))]

    def losses(*steps: tuple[float, Mapping[str, Tensor]]) -> list[float]:
        place(parameters, origin, *steps)
        if training:
            _measure_statistics(loaded, training)
        return branch_losses(loaded, samples)

    with weights_kept([*model.parameters(), *model.buffers()]):
        along, across = directions[:2]
        plane = [[losses((alpha, along), (beta, across)) for alpha in at] for beta in at]
        lines = [[losses((alpha, direction)) for alpha in at] for direction in directions[:slices]]
    of_plane, of_lines = np.array(plane), np.array(lines)
    return Landscape(
        str(loaded.folder),
        at,
        {branch: of_plane[:, :, i] for i, branch in enumerate(loaded.branches)},
        {branch: of_lines[:, :, i] for i, branch in enumerate(loaded.branches)},
    )


def branch_losses(loaded: LoadedRun, samples: Sequence[Batch]) -> list[float]:
    """Return the mean −log p[y] of each branch over the samples."""
    outputs: dict[str, list[Tensor]] = {branch: [] for branch in loaded.branches}
    with torch.no_grad():
        for batch in samples:
            logits = loaded.model(batch.inputs)
            for branch, parts in outputs.items():
                parts.append(loaded.method.fuse(logits) if branch == "fused" else logits[branch].softmax(dim=1))
    labels = torch.cat([batch.labels for batch in samples])
    return [evaluation.loss(torch.cat(parts).double(), labels) for parts in outputs.values()]


def _measure_statistics(loaded: LoadedRun, samples: Sequence[Batch]) -> None:
    """Replace the running statistics of batch norm by the mean over batches of theirs at the present weights."""
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, _BATCH_NORMS)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    with torch.no_grad():
        for batch in samples:
            loaded.model(batch.inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _plane_rows(found: Sequence[Landscape], labels: Mapping[str, str]) -> list[tuple[Any, ...]]:
    return [
        (labels[one.folder], branch, f"{one.at[i]:.4g}", f"{one.at[j]:.4g}", f"{loss:.7g}")
        for one in found
        for branch, plane in one.plane.items()
        for (j, i), loss in np.ndenumerate(plane)
    ]


def _slice_rows(found: Sequence[Landscape], labels: Mapping[str, str]) -> list[tuple[Any, ...]]:
    return [
        (labels[one.folder], branch, direction, f"{one.at[i]:.4g}", f"{loss:.7g}")
        for one in found
        for branch, lines in one.slices.items()
        for (direction, i), loss in np.ndenumerate(lines)
    ]


def _headline(one: Landscape) -> str:
    return list(one.plane)[-1]  # fused, or the only modality


def _centre(one: Landscape) -> float:
    """The loss nearest to the run's own weights."""
    return float(one.slices[_headline(one)][0][np.abs(one.at).argmin()])


def _sentence(found: Sequence[Landscape], labels: Mapping[str, str]) -> str:
    half = np.abs(np.abs(found[0].at) - 0.5).argmin()
    parts = []
    for one in found:
        lines = one.slices[_headline(one)]
        near = lines[:, [half, -1 - half]] - _centre(one)
        parts.append(
            f"{labels[one.folder]}: {_centre(one):.3f} at the weights, "
            f"+{near.mean():.3f} ({near.min():.3f} to {near.max():.3f}) at distance {abs(found[0].at[half]):.2f}"
        )
    return (
        f"Loss of {_headline(found[0])} along {SLICES} filter-normalised directions, mean rise (least to largest): "
        f"{'; '.join(parts)}. Random directions are qualitative: no evidence by themselves."
    )


def _levels(found: Sequence[Landscape]) -> NDArray[np.float64]:
    planes = np.concatenate([one.plane[_headline(one)].ravel() for one in found])
    planes = planes[np.isfinite(planes)]
    low, high = max(float(planes.min()), 1e-4), float(planes.max())
    return np.geomspace(low * 0.999, max(high, low * 1.01) * 1.001, LEVELS)


@figures.styled
def draw(found: Sequence[Landscape], labels: Mapping[str, str], colours: Mapping[str, Any], how: str) -> Figure:
    """The plane of each run above; below, one panel for each branch with the slices of all runs."""
    branches = list(found[0].plane)
    columns = min(len(found), 2)
    rows, panels = -(-len(found) // columns), -(-len(branches) // 2)
    figure = Figure(figsize=(figures.WIDTH, 0.8 + 2.9 * rows + 2.1 * panels), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.9 * rows, 2.1 * panels))
    above, below = parts
    levels = _levels(found)
    filled: Any = None
    axes_above = above.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in axes_above[len(found) :]:
        axes.set_axis_off()
    for axes, one in zip(axes_above, found, strict=False):
        plane = np.clip(one.plane[_headline(one)], levels[0], levels[-1])
        filled = axes.contourf(
            one.at, one.at, plane, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="viridis"
        )
        axes.plot(0, 0, "+", color="white", markersize=8)
        axes.set_title(labels[one.folder], fontsize=9, loc="left")
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.tick_params(labelsize=8)
        axes.set(xlabel="α", ylabel="β")
        axes.label_outer()
    bar = above.colorbar(filled, ax=axes_above.tolist(), shrink=0.8, format="%.2g", ticks=levels[::3])
    bar.set_label(f"loss of {_headline(found[0])}")
    above.suptitle(how, fontsize=9)
    axes_below = below.subplots(panels, min(len(branches), 2), squeeze=False, sharex=True).ravel()
    for axes in axes_below[len(branches) :]:
        axes.set_axis_off()
    lines: dict[str, Any] = {}
    for axes, branch in zip(axes_below, branches, strict=False):
        for one in found:
            values = one.slices[branch]
            (lines[labels[one.folder]],) = axes.plot(
                one.at, values.mean(axis=0), color=colours[labels[one.folder]], linewidth=1.4
            )
            axes.fill_between(
                one.at,
                values.min(axis=0),
                values.max(axis=0),
                color=colours[labels[one.folder]],
                alpha=0.18,
                linewidth=0,
            )
        axes.set_title(branch, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.set(ylabel="loss")
    for axes in axes_below[len(branches) - min(len(branches), 2) : len(branches)]:
        axes.set_xlabel("α")
    title = "slices: mean and min–max over directions"
    below.legend(lines.values(), lines, loc="outside lower center", ncols=2, fontsize=8, title=title, title_fontsize=8)
    return figure


@figures.styled
def draw_surfaces(found: Sequence[Landscape], labels: Mapping[str, str]) -> Figure:
    """The same planes as surfaces over (α, β), with one range of losses."""
    columns = min(len(found), 2)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(figures.WIDTH, 2.7 * rows + 0.2))
    levels = _levels(found)
    low, high = np.log10(levels[0]), np.log10(levels[-1])
    for number, one in enumerate(found, start=1):
        axes: Any = figure.add_subplot(rows, columns, number, projection="3d")
        alpha, beta = np.meshgrid(one.at, one.at)
        height = np.log10(np.clip(one.plane[_headline(one)], levels[0], levels[-1]))
        axes.plot_surface(alpha, beta, height, cmap="viridis", vmin=low, vmax=high, rcount=QUICK - 4, ccount=QUICK - 4)
        axes.set(zlim=(low, high), xlabel="α", ylabel="β", zlabel="log₁₀ loss")
        axes.set_title(labels[one.folder], fontsize=9)
        axes.tick_params(labelsize=7)
    figure.subplots_adjust(left=0.02, right=0.93, bottom=0.05, top=0.95, wspace=0.12)
    return figure
