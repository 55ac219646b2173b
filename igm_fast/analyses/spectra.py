"""Eigenvalues of what enters each layer, and of the projector T that is made of them.

Of the chosen layers, from one pass in evaluation mode over training samples without augmentation, in float64: the
eigenvalues λ of the second moment C (raw), of the covariance (centered), and of the second moment of batch means
(batch_mean, as the authors' code has it), largest first, as shares of the largest; below them those of
T = exp(−τ(C − λmin I)/(λmax − λmin)). λ are squares of the singular values of the activations divided by √n.

A second figure shows C of each stage of training, for layers of which the run has kept all eigenvalues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from igm_fast.analyses import drawing
from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.loaded_run import LoadedRun, add_checkpoint_argument, load_run, positive, stream_samples
from igm_fast.covariance import ActivationCovariance
from igm_fast.layers import observable_layers
from igm_fast.names import nearest
from igm_fast.projector import FlatExponential
from igm_fast.reports import figures
from igm_fast.reports.record import Spectrum, read_run

KIND = "run"
ESTIMATORS = ("raw", "centered", "batch_mean")
COLOURS = dict(zip(ESTIMATORS, figures.MODALITY_COLOURS, strict=False))
PAPER_TAU = 0.4
LAYERS_SHOWN = 4
DAMPED = 0.99  # a direction counts as damped where T is below this


@dataclass(frozen=True)
class Eigenvalues:
    """λ of one layer's C ``[d]`` float64, descending (all groups of a convolution together), and σ of T beside them."""

    modality: str
    layer: str
    estimator: str
    values: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @property
    def effective_rank(self) -> float:
        """exp(H(λ/Σλ)), Roy and Vetterli, *The effective rank*, EUSIPCO 2007."""
        return effective_rank(self.values)

    @property
    def numerical_rank(self) -> int:
        """Eigenvalues above d·eps·λmax, as ``numpy.linalg.matrix_rank`` counts."""
        least = len(self.values) * np.finfo(np.float64).eps * self.values[0]
        return int((self.values > least).sum())

    @property
    def second(self) -> float | None:
        """λ₂/λ₁; None without a second one."""
        return float(self.values[1] / self.values[0]) if len(self.values) > 1 and self.values[0] > 0 else None

    @property
    def damped(self) -> float:
        """Share of directions on which T is below 0.99."""
        return float((self.sigma < DAMPED).mean())


def effective_rank(values: NDArray[np.float64]) -> float:
    """Return exp(H(p)) for p = values/Σ values: k for k equal ones, 0 where all are zero.

    >>> effective_rank(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    positive_values = values[values > 0]
    if not positive_values.size:
        return 0.0
    shares = positive_values / positive_values.sum()
    return float(np.round(np.exp(-(shares * np.log(shares)).sum()), 12))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this analysis' own options."""
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--layers", metavar="NAME,…", help="layers inside of a branch, as head,encoder.conv2 (default: all)"
    )
    parser.add_argument("--samples", type=positive, help="training samples to look at (default: all)")
    parser.add_argument("--tau", type=float, help=f"τ of T (default: the run's, or {PAPER_TAU})")


def run(arguments: argparse.Namespace, console: Console) -> Finding:  # noqa: ARG001 - quick enough to say nothing
    """Measure, draw, and say what is to be seen."""
    (folder,) = arguments.runs
    loaded = load_run(folder, arguments.checkpoint)
    tau = tau_of(loaded, arguments.tau)
    chosen = arguments.layers.split(",") if arguments.layers else None
    samples = arguments.samples or len(loaded.data.train)
    found = [
        spectrum
        for modality in loaded.model.modalities
        for spectrum in layer_spectra(loaded, modality, tau, layers=chosen, samples=samples)
    ]
    out: Path = arguments.out
    pictures = [out / "spectra.png"]
    drawing.save(draw(found, f"{loaded.label}, {arguments.checkpoint} weights, τ = {tau:g}"), pictures[0])
    stages = [s for s in read_run(folder).spectra if s.ranked and s.rank == s.dim]
    if stages:
        pictures.append(out / "spectra-stages.png")
        drawing.save(draw_stages(stages), pictures[1])
    summary = write_csv(out / "spectra.csv", SUMMARY_COLUMNS, [_summary(spectrum) for spectrum in found])
    numbers = write_csv(
        out / "spectra-eigenvalues.csv",
        ("modality", "layer", "estimator", "number", "eigenvalue", "sigma"),
        (
            (s.modality, s.layer, s.estimator, i, f"{value:.9g}", f"{sigma:.9g}")
            for s in found
            for i, (value, sigma) in enumerate(zip(s.values, s.sigma, strict=True), start=1)
        ),
    )
    return Finding(
        "spectra", "Spectra of activations and projectors", _sentence(found, tau), pictures, [summary, numbers]
    )


def tau_of(loaded: LoadedRun, asked: float | None) -> float:
    """Return τ as asked for, else the run's, else the paper's.

    Raises:
        ValueError: not a number > 0.
    """
    own = getattr(loaded.method, "tau", 0.0) or PAPER_TAU  # a run with τ = 0 made no projector
    return FlatExponential(own if asked is None else asked).tau


def layer_spectra(
    loaded: LoadedRun, modality: str, tau: float, *, layers: Sequence[str] | None = None, samples: int
) -> list[Eigenvalues]:
    """Return the eigenvalues of one modality's layers by each of the estimators.

    Args:
        loaded: the run.
        modality: whose branch.
        tau: of T.
        layers: names inside of the branch; None: all that can be observed. Those that this branch lacks are left out.
        samples: training samples; batches are those of a permutation, of the size that the run trained with.

    Raises:
        ValueError: no branch has a layer of this name.
    """
    double = loaded.double()
    branch = double.model.branch(modality)
    names = _chosen(double, modality, layers)
    if not names:
        return []
    full = ActivationCovariance(branch, "full", layers=names)
    means = ActivationCovariance(branch, "batch_mean", layers=names)
    with torch.no_grad(), full, means:
        for batch in stream_samples(double, "train", samples, batch_size=loaded.config.batch_size):
            branch(batch.inputs[modality])
    found = []
    for name in names:
        raw, mean, of_means = (_grouped(tensor) for tensor in (full[name], full.mean(name)[..., None], means[name]))
        matrices = {"raw": raw, "centered": raw - mean @ mean.mT, "batch_mean": of_means}
        for estimator, matrix in matrices.items():
            found.append(Eigenvalues(modality, name, estimator, *_eigenvalues(matrix, tau)))
    return found


def _chosen(loaded: LoadedRun, modality: str, layers: Sequence[str] | None) -> list[str]:
    own = list(observable_layers(loaded.model.branch(modality)))
    if layers is None:
        return own
    anywhere = {n for other in loaded.model.modalities for n in observable_layers(loaded.model.branch(other))}
    for name in layers:
        if name not in anywhere:
            raise ValueError(f"--layers: {nearest(name, anywhere, 'layer')}")
    return [name for name in own if name in layers]


def _grouped(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 3 else tensor[None]


def _eigenvalues(matrix: Tensor, tau: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """λ and σ of ``[groups, d, d]``, those of all groups together, by λ."""
    values = torch.linalg.eigvalsh(matrix).clamp_min(0.0)
    sigma = FlatExponential(tau).values(values, values[:, :1], values[:, -1:])
    order = values.flatten().argsort(descending=True)
    return values.flatten()[order].cpu().numpy(), sigma.flatten()[order].cpu().numpy()


SUMMARY_COLUMNS = (
    *("modality", "layer", "estimator", "d", "largest", "effective_rank", "numerical_rank"),
    *("second_by_first", "share_of_sigma_below_0.99", "mean_sigma"),
)


def _summary(s: Eigenvalues) -> list[Any]:
    numbers = (s.values[0], s.effective_rank, s.numerical_rank, s.second, s.damped, s.sigma.mean())
    rounded = [f"{number:.6g}" if isinstance(number, float) else number for number in numbers]
    return [s.modality, s.layer, s.estimator, len(s.values), *rounded]


def _sentence(found: Sequence[Eigenvalues], tau: float) -> str:
    parts = []
    for estimator in ESTIMATORS:
        of_it = [s for s in found if s.estimator == estimator]
        seconds = [s.second for s in of_it if s.second is not None]
        ranks = [s.effective_rank / len(s.values) for s in of_it]
        parts.append(
            f"{estimator} {np.median(ranks):.0%} of d (λ₂/λ₁ {np.median(seconds):.2g}, "
            f"{np.median([s.damped for s in of_it]):.0%} of directions with σ < {DAMPED})"
        )
    layers = len({(s.modality, s.layer) for s in found})
    return (
        f"Median over {layers} layers of the effective rank of C: {'; '.join(parts)}. "
        f"At τ = {tau:g} the mean eigenvalue of T is {np.mean([s.sigma.mean() for s in found]):.3f} "
        f"(all estimators), its least possible eigenvalue {np.exp(-tau):.3f}."
    )


@figures.styled
def draw(found: Sequence[Eigenvalues], title: str) -> Figure:
    """Eigenvalues of C over those of T, a column for each modality, a row for each layer (four at most)."""
    modalities = list(dict.fromkeys(s.modality for s in found))
    layers = _spread(list(dict.fromkeys(s.layer for s in found)))
    figure = Figure(figsize=(figures.WIDTH, 0.9 + 2.1 * len(layers)), layout="constrained")
    rows = [part for _ in layers for part in (3, 2)]
    grid = figure.subplots(len(rows), len(modalities), squeeze=False, sharex=True, height_ratios=rows)
    lines: dict[str, Any] = {}
    for column, modality in enumerate(modalities):
        for row, layer in enumerate(layers):
            upper, lower = grid[2 * row][column], grid[2 * row + 1][column]
            panel = [s for s in found if (s.modality, s.layer) == (modality, layer)]
            if not panel:
                upper.set_axis_off()
                lower.set_axis_off()
                continue
            for place, s in enumerate(panel):
                x = np.arange(1, len(s.values) + 1) / len(s.values)
                style: Any = {"color": COLOURS[s.estimator], "linewidth": 1.3}
                (lines[s.estimator],) = upper.plot(x, _share(s.values), **style)
                lower.plot(x, s.sigma, **style)
                _annotate(upper, s, place)
            upper.set(xscale="log", yscale="log", ylim=(1e-9, 3), yticks=[1e-8, 1e-4, 1])
            upper.set_title(f"{modality}\n{layer}, d = {len(panel[0].values)}", fontsize=8, loc="left")
            lower.axhline(DAMPED, color="#666666", linewidth=0.7, linestyle=":")
            lower.set_ylim(min(float(s.sigma.min()) for s in found) - 0.03, 1.03)
            for axes in (upper, lower):
                axes.tick_params(labelsize=7.5)
            if column == 0:
                upper.set_ylabel("λ / λmax", fontsize=8.5)
                lower.set_ylabel("σ of T", fontsize=8.5)
        grid[-1][column].set_xlabel("number / d")
    figure.suptitle(title, fontsize=10)
    note = "numbers: effective rank / numerical rank of C, λ₂/λ₁, share of σ below 0.99"
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, title=note, title_fontsize=8)
    return figure


def _spread(layers: Sequence[str]) -> list[str]:
    """The first and the last layer and some between; a figure of all would be too high to be read."""
    places = np.unique(np.linspace(0, len(layers) - 1, min(LAYERS_SHOWN, len(layers))).round().astype(int))
    return [layers[place] for place in places]


def _share(values: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = values[0] if values[0] > 0 else 1.0
    shares: NDArray[np.float64] = np.where(values > 1e-9 * largest, values / largest, np.nan)
    return shares


def _annotate(axes: Axes, s: Eigenvalues, place: int) -> None:
    second = "–" if s.second is None else f"{s.second:.2g}"
    axes.text(
        0.03,
        0.32 - 0.13 * place,
        f"{s.effective_rank:.1f} / {s.numerical_rank}   {second}   {s.damped:.0%}",
        transform=axes.transAxes,
        va="center",
        fontsize=7,
        color=COLOURS[s.estimator],
    )


@figures.styled
def draw_stages(stages: Sequence[Spectrum]) -> Figure:
    """Eigenvalues of C as training measured them, one line for each stage, early ones pale."""
    sources = list(dict.fromkeys(s.source for s in stages))
    layers = _spread(list(dict.fromkeys(s.layer for s in stages)))
    numbers = sorted({s.stage for s in stages})
    colours: Mapping[int, Any] = {
        number: colormaps["viridis_r"](0.1 + 0.9 * i / max(len(numbers) - 1, 1)) for i, number in enumerate(numbers)
    }
    figure = Figure(figsize=(figures.WIDTH, 0.9 + 1.6 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(sources), squeeze=False, sharex=True, sharey=True)
    lines: dict[int, Any] = {}
    for row, layer in enumerate(layers):
        for column, source in enumerate(sources):
            axes = grid[row][column]
            for s in (s for s in stages if (s.layer, s.source) == (layer, source)):
                x = np.arange(1, len(s.eigenvalues) + 1) / len(s.eigenvalues)
                (lines[s.stage],) = axes.plot(x, _share(s.eigenvalues), color=colours[s.stage], linewidth=1.3)
            axes.set(xscale="log", yscale="log", ylim=(1e-9, 3))
            axes.set_title(f"{source}  {layer}", fontsize=8.5, loc="left")
            axes.tick_params(labelsize=7.5)
            if column == 0:
                axes.set_ylabel("λ / λmax", fontsize=8.5)
    for axes in grid[-1]:
        axes.set_xlabel("number / d")
    entries = {f"for stage {number}": lines[number] for number in sorted(lines)}
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=4, fontsize=8)
    return figure
