"""How sharp the loss is at the weights of one or several runs, in numbers; and along which activations it is flat.

With L the mean −log p[y] of each modality and of the fused prediction, on fixed samples in evaluation mode, in float64:

- sam: L(ω + ρ g/‖g‖) − L(ω), g the gradient on all samples (Foret et al., ICLR 2021); m_sam: the mean over batches of
  128, each with its own g and loss.
- adaptive: L(ω + ρ ω²g/‖ωg‖) − L(ω), elementwise (Kwon et al., *ASAM*, ICML 2021): the same for weights that are
  rescaled from layer to layer, hence the fair one between methods.
- average: mean of L(ω + σ|ω|z) − L(ω) over Gaussian z.
- lambda_max, trace: of the Hessian, by Lanczos (ARPACK) and by Hutchinson's estimator, from Hessian products.
- spearman: rank correlation, over eigenvectors u_i of a layer's C, between λ_i and the rise of the loss for a weight
  change a u_iᵀ of fixed length, a random (mean over several a and both signs). Near 1: directions that activations use
  little are flat, which is what IGM builds on.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from igm_fast.analyses import drawing
from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.layer_directions import Rise, draw_rises, layer_rises
from igm_fast.analyses.loaded_run import (
    add_sample_arguments,
    fixed_samples,
    load_runs,
    positive,
    positive_numbers,
)
from igm_fast.analyses.objective import Objective
from igm_fast.data.seeds import derived_seed
from igm_fast.reports import figures
from igm_fast.reports.statistics import summarize

KIND = "runs"
M_SAM_BATCH = 128
RADII = (0.01, 0.05, 0.1)
ADAPTIVE_RADIUS = 0.5  # what Kwon et al. train CIFAR-10 with
SIGMA = 0.1
DRAWS = 20
PROBES = 30
QUICK_PROBES, QUICK_SAMPLES = 8, 256
LANCZOS_VECTORS = 20
LANCZOS_TOLERANCE = 1e-4
LANCZOS_RESTARTS = 60


@dataclass(frozen=True)
class Measurement:
    """One number of one run; ``error`` is its standard error where it is a mean over random draws."""

    run: str
    method: str
    branch: str
    measure: str
    setting: str
    value: float
    error: float | None = None
    layer: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this analysis' own options."""
    add_sample_arguments(parser, "train", 1024)
    radii = ",".join(f"{radius:g}" for radius in RADII)
    parser.add_argument("--rho", type=positive_numbers, default=list(RADII), help=f"radii of sam (default: {radii})")
    parser.add_argument(
        "--adaptive_rho",
        type=positive_numbers,
        default=[ADAPTIVE_RADIUS],
        help=f"radii of adaptive (default: {ADAPTIVE_RADIUS:g})",
    )
    parser.add_argument(
        "--sigma",
        type=positive_numbers,
        default=[SIGMA],
        help=f"of average (default: {SIGMA:g}: a tenth of each weight)",
    )
    parser.add_argument(
        "--probes",
        type=positive,
        help=f"random vectors of the trace (default: {PROBES}, or {QUICK_PROBES} with --quick)",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SAMPLES} samples, {QUICK_PROBES} vectors: coarse numbers"
    )


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Measure, draw, and say what is to be seen."""
    runs = load_runs(arguments.runs, arguments.checkpoint)
    samples = min(arguments.samples, QUICK_SAMPLES) if arguments.quick else arguments.samples
    probes = arguments.probes or (QUICK_PROBES if arguments.quick else PROBES)
    labels = drawing.run_labels(runs)
    found: list[Measurement] = []
    rises: list[Rise] = []
    for one in runs:
        console.print(f"sharpness: {one.label}, {samples} {arguments.split} samples")
        double, label = one.double(), labels[str(one.folder)]
        batches = fixed_samples(double, arguments.split, samples, batch_size=M_SAM_BATCH)
        for branch in double.branches:
            objective = Objective(double, branch, batches)
            numbers = [
                *sam_sharpness(objective, arguments.rho, arguments.adaptive_rho),
                *[("m_sam", f"{rho:g}", m_sharpness(objective, rho), None) for rho in arguments.rho],
                *[("average", f"{sigma:g}", *average_sharpness(objective, sigma)) for sigma in arguments.sigma],
                ("lambda_max", "", largest_eigenvalue(objective), None),
                ("trace", f"{probes}", *hessian_trace(objective, probes)),
            ]
            found += [Measurement(label, one.method.name, branch, *number) for number in numbers]
        own = layer_rises(double, batches, label)
        rises += own
        found += [
            Measurement(label, one.method.name, modality, "spearman", "", value, None, layer)
            for (modality, layer), value in rank_correlations(own).items()
        ]
    out: Path = arguments.out
    how = f"{samples} {arguments.split} samples, {arguments.checkpoint} weights"
    colours = drawing.method_colours(runs)
    pictures = [drawing.save(draw(found, colours, how), out / "sharpness.png")]
    if rises:
        pictures.append(drawing.save(draw_rises(rises, colours), out / "sharpness-directions.png"))
    tables = [
        write_csv(out / "sharpness.csv", ("data", *COLUMNS), ((runs[0].data.name, *_row(m)) for m in found)),
        write_csv(out / "sharpness-methods.csv", METHOD_COLUMNS, method_rows(found)),
        write_csv(
            out / "sharpness-directions.csv",
            ("run", "modality", "layer", "number", "eigenvalue", "rise"),
            ((r.run, r.modality, r.layer, r.number, f"{r.eigenvalue:.9g}", f"{r.rise:.9g}") for r in rises),
        ),
    ]
    return Finding("sharpness", "Sharpness", _sentence(found), pictures, tables)


Number = tuple[str, str, float, float | None]  # measure, setting, value, standard error


def sam_sharpness(objective: Objective, radii: Sequence[float], adaptive_radii: Sequence[float]) -> list[Number]:
    """Return L(ω + ε) − L(ω) for SAM's ε = ρ g/‖g‖ and ASAM's ε = ρ ω²g/‖ωg‖, 0 where the gradient is."""
    value, gradient, origin = objective.value(), objective.gradient(), objective.origin

    def rise(direction: Tensor, length: Tensor, radius: float) -> float:
        return objective.value(radius * direction / length) - value if length > 0 else 0.0

    scaled = origin * gradient
    plain: list[Number] = [("sam", f"{rho:g}", rise(gradient, gradient.norm(), rho), None) for rho in radii]
    adaptive: list[Number] = [
        ("adaptive", f"{rho:g}", rise(origin * scaled, scaled.norm(), rho), None) for rho in adaptive_radii
    ]
    return plain + adaptive


def m_sharpness(objective: Objective, rho: float) -> float:
    """Return the mean, over the samples, of SAM's sharpness on the batch that a sample is in."""
    total = 0.0
    for share, alone in objective.parts():
        ((_, _, rise, _),) = sam_sharpness(alone, [rho], [])
        total += share * rise
    return total


def average_sharpness(objective: Objective, sigma: float, draws: int = DRAWS) -> tuple[float, float]:
    """Return mean and standard error of L(ω + σ|ω|z) − L(ω) over Gaussian z."""
    value, origin = objective.value(), objective.origin
    generator = torch.Generator().manual_seed(derived_seed("average sharpness"))
    rises = [
        objective.value(
            sigma * origin.abs() * torch.randn(len(origin), generator=generator, dtype=origin.dtype).to(origin)
        )
        - value
        for _ in range(draws)
    ]
    return float(np.mean(rises)), float(np.std(rises, ddof=1) / np.sqrt(draws))


def largest_eigenvalue(objective: Objective) -> float:
    """Return the algebraically largest eigenvalue of the Hessian, to a relative 1e-4.

    Implicitly restarted Lanczos: R. Lehoucq, D. Sorensen, C. Yang, *ARPACK Users' Guide*, 1998.

    Raises:
        ValueError: no convergence; the loss is flat to rounding, say.
    """
    size, like = objective.size, objective.origin

    def product(vector: Any) -> Any:
        return objective.hessian_product(torch.as_tensor(vector.ravel(), dtype=torch.float64).to(like)).cpu().numpy()

    start = np.random.default_rng(0).normal(size=size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    options: dict[str, Any] = {"ncv": min(LANCZOS_VECTORS, size), "maxiter": LANCZOS_RESTARTS, "tol": LANCZOS_TOLERANCE}
    try:
        (largest,) = eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False, **options)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"the largest eigenvalue of the Hessian did not converge in {LANCZOS_RESTARTS} restarts; expected it to. "
            "Give more --samples: on few, the loss may be flat to rounding"
        ) from error
    return float(largest)


def hessian_trace(objective: Objective, probes: int) -> tuple[float, float | None]:
    """Return Hutchinson's estimate of the trace, the mean of vᵀ∇²L v over vectors of random signs, and its error."""
    like = objective.origin
    generator = torch.Generator().manual_seed(derived_seed("hutchinson"))
    estimates = []
    for _ in range(probes):
        signs = (torch.randint(2, (len(like),), generator=generator) * 2 - 1).to(like)
        estimates.append(float(signs @ objective.hessian_product(signs)))
    error = float(np.std(estimates, ddof=1) / np.sqrt(probes)) if probes > 1 else None
    return float(np.mean(estimates)), error


def rank_correlations(rises: Sequence[Rise]) -> dict[tuple[str, str], float]:
    """Return Spearman's ρ between eigenvalue and rise, by modality and layer; layers of one direction have none."""
    groups: dict[tuple[str, str], list[Rise]] = defaultdict(list)
    for rise in rises:
        groups[rise.modality, rise.layer].append(rise)
    found = {}
    for place, group in groups.items():
        values, heights = ({getattr(r, name) for r in group} for name in ("eigenvalue", "rise"))
        if len(values) > 1 and len(heights) > 1:
            found[place] = float(stats.spearmanr([r.eigenvalue for r in group], [r.rise for r in group]).statistic)
    return found


COLUMNS = ("run", "method", "branch", "layer", "measure", "setting", "value", "standard_error")
METHOD_COLUMNS = ("method", "runs", "branch", "layer", "measure", "setting", "mean", "std")


def _row(m: Measurement) -> tuple[Any, ...]:
    error = None if m.error is None else f"{m.error:.3g}"
    return m.run, m.method, m.branch, m.layer, m.measure, m.setting, f"{m.value:.6g}", error


def method_rows(found: Sequence[Measurement]) -> list[tuple[Any, ...]]:
    """Return mean and standard deviation over the runs of each method."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for m in found:
        groups[m.method, m.branch, m.layer, m.measure, m.setting].append(m.value)
    rows = []
    for (method, *place), values in groups.items():
        spread = summarize(values)
        std = None if spread.std is None else f"{spread.std:.3g}"
        rows.append((method, spread.count, *place, f"{spread.mean:.6g}", std))
    return rows


def _mean_by_method(found: Sequence[Measurement], keep: Callable[[Measurement], bool]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for m in found:
        if keep(m):
            values[m.method].append(m.value)
    return {method: float(np.mean(numbers)) for method, numbers in values.items()}


def _sentence(found: Sequence[Measurement]) -> str:
    headline = found[0].branch if not any(m.branch == "fused" for m in found) else "fused"
    parts = []
    for measure, words in (("sam", "SAM sharpness"), ("adaptive", "adaptive"), ("lambda_max", "λmax of the Hessian")):
        settings = list(dict.fromkeys(m.setting for m in found if m.measure == measure))
        setting = settings[len(settings) // 2]
        means = _mean_by_method(
            found,
            lambda m, at=(measure, setting): (m.measure, m.setting) == at and m.branch == headline,  # type: ignore[misc]
        )
        at = f" at ρ = {setting}" if setting else ""
        parts.append(f"{words}{at}: " + ", ".join(f"{method} {value:.4g}" for method, value in means.items()))
    ranks = _mean_by_method(found, lambda m: m.measure == "spearman")
    correlated = ", ".join(f"{method} {value:.2f}" for method, value in ranks.items())
    return (
        f"Loss of {headline}, mean over the runs of a method. {'; '.join(parts)}. Spearman's ρ between eigenvalues "
        f"of C and the rise of the loss along their eigenvectors, mean over layers: {correlated or 'no layer'}."
    )


@figures.styled
def draw(found: Sequence[Measurement], colours: Mapping[str, tuple[str, Any]], how: str) -> Figure:
    """One panel for each measure: a row of dots for each branch, a colour for each run."""
    scalar = [m for m in found if m.measure != "spearman"]
    kinds = list(dict.fromkeys((m.measure, m.setting) for m in scalar if m.measure not in ("sam", "m_sam")))
    radii = [kind for kind in dict.fromkeys((m.measure, m.setting) for m in scalar) if kind not in kinds]
    panels = sorted(radii, key=lambda panel: panel[0], reverse=True) + kinds
    branches = list(dict.fromkeys(m.branch for m in scalar))
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(figures.WIDTH, 0.9 + rows * (0.75 + 0.24 * len(branches))), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    dots: dict[str, Any] = {}
    for axes, (measure, setting) in zip(grid, panels, strict=False):
        for m in (m for m in scalar if (m.measure, m.setting) == (measure, setting)):
            name, colour = colours[m.run]
            height = branches.index(m.branch) + 0.6 * ((list(colours).index(m.run) + 0.5) / len(colours) - 0.5)
            dots[name] = axes.errorbar(m.value, height, xerr=m.error, fmt="o", color=colour, markersize=4)
        axes.set_yticks(range(len(branches)), branches, fontsize=8)
        axes.set_ylim(len(branches) - 0.5, -0.5)
        axes.set_title(TITLES[measure].format(setting), fontsize=8.5, loc="left")
        axes.tick_params(labelsize=7.5)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4))
        axes.xaxis.get_offset_text().set_fontsize(7.5)
        axes.axvline(0, color="#666666", linewidth=0.8)
    figure.suptitle(how, fontsize=9)
    figure.legend(dots.values(), dots, loc="outside lower center", ncols=2, fontsize=8)
    return figure


TITLES = {
    "sam": "sam, ρ = {}",
    "m_sam": f"m_sam, batches of {M_SAM_BATCH}, ρ = {{}}",
    "adaptive": "adaptive, ρ = {}",
    "average": "average, σ = {}",
    "lambda_max": "λmax of the Hessian",
    "trace": "trace of the Hessian, {} vectors",
}
