"""Where gradients of modalities meet: their angles on shared weights, and what the projector takes out of a gradient.

On training batches, at a run's weights, with batch norm as in training (its statistics stay as they are):

- projection: the gradient G of modality a for each layer with a partner in the modality v before it (the last one for
  the first), T made of v's exact C at these weights: cos(G, GT), ‖GT‖/‖G‖, and the share of G's energy along the k
  leading eigenvectors of C, ‖G U_k‖²/‖G‖², before and after; k is the effective rank of C, rounded. For an isotropic G
  the norm ratio would be √(tr T²/d) and the share k/d: both are given. Methods that never project are measured too.
- shared: the cosine between the gradients of each two modalities' losses for a shared head; with MLA's P also between
  G and GP (P), and between each two GP (shared after P).
- joint: for each encoder, the cosine between the gradients of the joint loss and of the modality's own.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.analyses import drawing
from igm_fast.analyses.finding import Finding, NotApplicable, write_csv
from igm_fast.analyses.loaded_run import (
    LoadedRun,
    add_checkpoint_argument,
    branch_logits,
    fixed_samples,
    layer_weight,
    load_run,
    mla_projector,
    positive,
    stream_samples,
)
from igm_fast.analyses.spectra import effective_rank, tau_of
from igm_fast.batch_statistics import frozen_batch_statistics
from igm_fast.covariance import ActivationCovariance
from igm_fast.layers import in_dimension, match_layers, observable_layers
from igm_fast.methods.base import Batch
from igm_fast.projector import Projector, flat_projectors
from igm_fast.reports import figures

KIND = "run"
BATCHES = 16


@dataclass(frozen=True)
class Angle:
    """A cosine between two gradients on one batch, and the ratio of their norms, second by first."""

    kind: str  # projection, shared, P, shared after P, joint
    place: str
    batch: int
    cosine: float
    norm_ratio: float
    energy_before: float | None = None
    energy_after: float | None = None


@dataclass(frozen=True)
class Layer:
    """What projects one layer: T, and the leading eigenvectors ``[groups, d, k]`` of the C that it is made of."""

    target: str
    name: str
    weight: nn.Parameter
    projector: Projector
    leading: Tensor

    @property
    def place(self) -> str:
        """Modality and layer."""
        return f"{self.target}/{self.name}"

    @property
    def isotropic_norm_ratio(self) -> float:
        """√(tr T²/d), what ‖GT‖/‖G‖ would be on average for a G without a preferred direction."""
        T = _grouped(self.projector.dense()).double()
        return float(torch.sqrt(T.square().sum() / (T.shape[0] * T.shape[1])))

    @property
    def isotropic_energy(self) -> float:
        """k/d."""
        return self.leading.shape[2] / self.leading.shape[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this analysis' own options."""
    add_checkpoint_argument(parser)
    parser.add_argument("--batches", type=positive, default=BATCHES, help="training batches (default: %(default)s)")
    parser.add_argument("--tau", type=float, help="τ of T (default: the run's, or the paper's 0.4)")


def run(arguments: argparse.Namespace, console: Console) -> Finding:  # noqa: ARG001 - quick enough to say nothing
    """Measure, draw, and say what is to be seen."""
    (folder,) = arguments.runs
    loaded = load_run(folder, arguments.checkpoint)
    if len(loaded.model.modalities) < 2:
        raise NotApplicable(
            f"the run trained one modality, {loaded.model.modalities[0]}: gradients have nothing to meet"
        )
    tau = tau_of(loaded, arguments.tau)
    layers = projected_layers(loaded, tau)
    batches = training_batches_of(loaded, arguments.batches)
    found = [
        *projection_angles(loaded, layers, batches),
        *shared_angles(loaded, batches, mla_projector(folder)),
        *joint_angles(loaded, batches),
    ]
    if not found:
        raise NotApplicable("no layer of a modality has a partner in another one, and no weights are shared")
    out: Path = arguments.out
    how = f"{loaded.label}, {arguments.checkpoint} weights, {len(batches)} batches of {loaded.config.batch_size}"
    picture = drawing.save(draw(found, layers, f"{how}; T with τ = {tau:g}"), out / "conflict.png")
    tables = [
        write_csv(out / "conflict.csv", SUMMARY_COLUMNS, summary_rows(found, layers)),
        write_csv(out / "conflict-batches.csv", COLUMNS, map(_row, found)),
    ]
    return Finding("conflict", "Gradient conflict", _sentence(found, layers, tau), [picture], tables)


def removed_by_projection(loaded: LoadedRun, batches: int = BATCHES, tau: float | None = None) -> dict[str, float]:
    """Return the mean of ‖GT‖/‖G‖ over training batches for each projected layer, by ``"modality/layer"``.

    Args:
        loaded: a run with two modalities at least.
        batches: number of training batches.
        tau: of T; None: the run's own.
    """
    layers = projected_layers(loaded, tau_of(loaded, tau))
    ratios: dict[str, list[float]] = defaultdict(list)
    for angle in projection_angles(loaded, layers, training_batches_of(loaded, batches)):
        ratios[angle.place].append(angle.norm_ratio)
    return {place: float(np.mean(values)) for place, values in ratios.items()}


def training_batches_of(loaded: LoadedRun, count: int) -> list[Batch]:
    """Return the first batches of a fixed permutation of the training set, of the size that the run trained with."""
    size = loaded.config.batch_size
    batches = fixed_samples(loaded, "train", count * size, batch_size=size)
    return [batch for batch in batches if len(batch.labels) > 1]  # batch norm needs two


def projected_layers(loaded: LoadedRun, tau: float) -> list[Layer]:
    """Return T for each layer of a modality with a partner of its name in the modality before it; exact, float64."""
    names = loaded.model.modalities
    found = []
    for source, target in zip([names[-1], *names[:-1]], names, strict=True):
        branch = loaded.model.branch(target)
        inside = {name: in_dimension(layer) for name, layer in observable_layers(branch).items()}
        of_source = observable_layers(loaded.model.branch(source))
        layers = [name for name, layer in of_source.items() if inside.get(name) == in_dimension(layer)]
        if not layers:
            continue
        double = loaded.double()
        watched = double.model.branch(source)
        covariance = ActivationCovariance(
            watched, "full", centered=getattr(loaded.method, "centered", False), layers=layers
        )
        with torch.no_grad(), covariance:
            for batch in stream_samples(double, "train", len(loaded.data.train)):
                watched(batch.inputs[source])
        projectors = flat_projectors(covariance, tau, "eigh")
        for name in match_layers(branch, projectors).matched:
            leading = _leading(_grouped(covariance[name]))
            found.append(Layer(target, name, layer_weight(branch, name), projectors[name], leading))
    return found


def _leading(matrix: Tensor) -> Tensor:
    """The k leading eigenvectors of ``[groups, d, d]``; k is the largest effective rank of a group, rounded."""
    values, vectors = torch.linalg.eigh(matrix)
    count = max(1, *(round(effective_rank(group.clamp_min(0.0).cpu().numpy())) for group in values))
    leading: Tensor = vectors.flip(2)[:, :, :count]
    return leading


def _grouped(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 3 else tensor[None]


def projection_angles(loaded: LoadedRun, layers: Sequence[Layer], batches: Sequence[Batch]) -> list[Angle]:
    """Return the angle between G and GT for each layer and batch."""
    found = []
    for target in dict.fromkeys(layer.target for layer in layers):
        own = [layer for layer in layers if layer.target == target]
        for number, batch in enumerate(batches):
            gradients = _gradients(loaded, batch, target, [layer.weight for layer in own])
            found += [projection_angle(layer, G, number) for layer, G in zip(own, gradients, strict=True)]
    return found


def projection_angle(layer: Layer, gradient: Tensor, batch: int) -> Angle:
    """Return cos(G, GT), ‖GT‖/‖G‖ and the energy of both along the leading eigenvectors."""
    G = gradient.double()
    GT = layer.projector.apply(G)

    def energy(matrix: Tensor) -> float:
        rows = matrix.reshape(layer.leading.shape[0], -1, layer.leading.shape[1])
        return _ratio(float((rows @ layer.leading).square().sum()), float(rows.square().sum()))

    return Angle("projection", layer.place, batch, *_angle(G, GT), energy(G), energy(GT))


def shared_angles(loaded: LoadedRun, batches: Sequence[Batch], P: Tensor | None = None) -> list[Angle]:
    """Return the angles between modalities' gradients for a shared head, and between G and GP where there is a P."""
    head = getattr(loaded.model, "shared_head", None)
    if head is None:
        return []
    found = []
    for number, batch in enumerate(batches):
        gradients = {name: _gradients(loaded, batch, name, [head.weight])[0] for name in loaded.model.modalities}
        found += _pairs("shared", gradients, number)
        if P is not None:
            after = {name: G.double() @ P.to(G.device) for name, G in gradients.items()}
            found += [Angle("P", name, number, *_angle(G, after[name])) for name, G in gradients.items()]
            found += _pairs("shared after P", after, number)
    return found


def _pairs(kind: str, gradients: Mapping[str, Tensor], batch: int) -> list[Angle]:
    return [
        Angle(kind, f"{one} – {other}", batch, *_angle(gradients[one], gradients[other]))
        for one, other in itertools.combinations(gradients, 2)
    ]


def joint_angles(loaded: LoadedRun, batches: Sequence[Batch]) -> list[Angle]:
    """Return, by encoder, the angles between the gradients of the joint loss and of the modality's own."""
    if loaded.model.head in ("separate", "shared"):
        return []
    found = []
    for name in loaded.model.modalities:
        parameters = list(loaded.model.branch(name).encoder.parameters())
        for number, batch in enumerate(batches):
            joint, own = (
                torch.cat([part.flatten() for part in _gradients(loaded, batch, branch, parameters)])
                for branch in ("joint", name)
            )
            found.append(Angle("joint", f"{name}/encoder", number, *_angle(joint, own)))
    return found


def _gradients(loaded: LoadedRun, batch: Batch, branch: str, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a batch's cross-entropy as training takes them; the model is in evaluation mode afterwards."""
    model = loaded.model.train()
    try:
        with frozen_batch_statistics(model):
            logits = model(batch.inputs)["joint"] if branch == "joint" else branch_logits(model, batch.inputs, branch)
            return torch.autograd.grad(functional.cross_entropy(logits, batch.labels), list(parameters))
    finally:
        model.eval()


def _angle(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Cosine and norm ratio of two tensors; 0 where one of them is zero."""
    a, b = first.double().flatten(), second.double().flatten()
    return _ratio(float(a @ b), float(a.norm() * b.norm())), _ratio(float(b.norm()), float(a.norm()))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


COLUMNS = ("kind", "place", "batch", "cosine", "norm_ratio", "energy_before", "energy_after")
SUMMARY_COLUMNS = (
    *("kind", "place", "batches", "cosine_mean", "cosine_std", "norm_ratio_mean", "norm_ratio_std"),
    *("norm_ratio_isotropic", "directions", "energy_isotropic", "energy_before", "energy_after"),
)


def _row(angle: Angle) -> tuple[Any, ...]:
    numbers = (angle.cosine, angle.norm_ratio, angle.energy_before, angle.energy_after)
    return angle.kind, angle.place, angle.batch, *(None if x is None else f"{x:.6g}" for x in numbers)


def summary_rows(found: Sequence[Angle], layers: Sequence[Layer]) -> list[tuple[Any, ...]]:
    """Return means and standard deviations over batches, one row for each place."""
    by_place = {layer.place: layer for layer in layers}
    rows = []
    for (kind, place), angles in _grouped_angles(found).items():
        cosines, ratios = [angle.cosine for angle in angles], [angle.norm_ratio for angle in angles]
        numbers: list[Any] = [np.mean(cosines), np.std(cosines), np.mean(ratios), np.std(ratios)]
        if kind == "projection":
            layer = by_place[place]
            numbers += [layer.isotropic_norm_ratio, layer.leading.shape[2], layer.isotropic_energy]
            numbers += [_mean(a.energy_before for a in angles), _mean(a.energy_after for a in angles)]
        rows.append((kind, place, len(angles), *(f"{number:.5g}" for number in numbers)))
    return [(*row, *[None] * (len(SUMMARY_COLUMNS) - len(row))) for row in rows]


def _grouped_angles(found: Iterable[Angle]) -> dict[tuple[str, str], list[Angle]]:
    groups: dict[tuple[str, str], list[Angle]] = defaultdict(list)
    for angle in found:
        groups[angle.kind, angle.place].append(angle)
    return groups


def _mean(values: Iterable[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _sentence(found: Sequence[Angle], layers: Sequence[Layer], tau: float) -> str:
    parts = []
    projected = [angle for angle in found if angle.kind == "projection"]
    if projected:
        parts.append(
            f"T (τ = {tau:g}) leaves {_mean(a.norm_ratio for a in projected):.3f} of the gradient's length, mean over "
            f"{len(layers)} layers ({_mean(layer.isotropic_norm_ratio for layer in layers):.3f} for a gradient without "
            f"preferred direction), at cos(G, GT) = {_mean(a.cosine for a in projected):.3f}; the other modality's "
            f"leading directions hold {_mean(a.energy_before for a in projected):.1%} of its energy before and "
            f"{_mean(a.energy_after for a in projected):.1%} after "
            f"({_mean(layer.isotropic_energy for layer in layers):.1%} without preferred direction)."
        )
    words = {
        "shared": "modalities' gradients on the shared head",
        "P": "G and GP",
        "shared after P": "modalities' GP",
        "joint": "joint and own loss on the encoder",
    }
    for kind, text in words.items():
        groups = {place: angles for (k, place), angles in _grouped_angles(found).items() if k == kind}
        if groups:
            cosines = ", ".join(f"{place} {_mean(a.cosine for a in angles):.2f}" for place, angles in groups.items())
            negative = np.mean([a.cosine < 0 for angles in groups.values() for a in angles])
            parts.append(f"Mean cosine between {text}: {cosines} (negative on {negative:.0%} of batches).")
    return " ".join(parts)


LABELS = {"P": "{}: G, GP", "shared after P": "{}, after P", "joint": "{}: joint, own"}


@figures.styled
def draw(found: Sequence[Angle], layers: Sequence[Layer], title: str) -> Figure:
    """Cosine, norm ratio and energy for each place: a pale dot for each batch, the mean in front."""
    groups = _grouped_angles(found)
    places = list(groups)
    by_place: Mapping[str, Layer] = {layer.place: layer for layer in layers}
    figure = Figure(figsize=(figures.WIDTH, 1.5 + 0.3 * len(places)), layout="constrained")
    cosine, ratio, energy = figure.subplots(1, 3, sharey=True)
    before, after, isotropic = figures.MODALITY_COLOURS[0], figures.MODALITY_COLOURS[1], "#666666"
    handles: dict[str, Any] = {}
    for height, (kind, place) in enumerate(places):
        angles = groups[kind, place]
        _dots(cosine, [a.cosine for a in angles], height, before)
        _dots(ratio, [a.norm_ratio for a in angles], height, before)
        if kind != "projection":
            continue
        layer = by_place[place]
        handles["G"] = _dots(energy, [a.energy_before or 0.0 for a in angles], height - 0.15, before)
        handles["GT"] = _dots(energy, [a.energy_after or 0.0 for a in angles], height + 0.15, after)
        for axes, value in ((ratio, layer.isotropic_norm_ratio), (energy, layer.isotropic_energy)):
            (handles["without preferred direction"],) = axes.plot(value, height, "|", color=isotropic, markersize=11)
    cosine.set_yticks(
        range(len(places)), [LABELS.get(kind, "{}").format(place) for kind, place in places], fontsize=7.5
    )
    cosine.set_ylim(len(places) - 0.5, -0.5)
    cosine.set_title("cosine", fontsize=9)
    ratio.set_title("ratio of norms", fontsize=9)
    energy.set_title("energy along C's leaders", fontsize=9)
    if any(a.cosine < 0 for a in found):
        cosine.axvline(0, color="#666666", linewidth=0.8)
    for axes in (cosine, ratio, energy):
        axes.tick_params(axis="x", labelsize=7.5)
    figure.suptitle(title, fontsize=9)
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _dots(axes: Any, values: Sequence[float], height: float, colour: str) -> Any:
    axes.scatter(values, np.full(len(values), height), s=8, color=colour, alpha=0.25, linewidths=0)
    return axes.scatter([np.mean(values)], [height], s=22, color=colour)
