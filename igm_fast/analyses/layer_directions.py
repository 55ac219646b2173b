"""How the loss rises when a layer's weight moves along one eigenvector of what enters the layer.

The step Δ_i = s a u_iᵀ has rank one: a is a random unit vector over the outputs, u_i an eigenvector of C = (1/n) Σ xxᵀ,
so that the mean of ‖Δ_i x‖² over inputs is s² λ_i. If the loss is flat along weak activations, its rise follows λ_i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from igm_fast.analyses.directions import weights_kept
from igm_fast.analyses.loaded_run import LoadedRun, layer_weight
from igm_fast.analyses.objective import Objective
from igm_fast.covariance import ActivationCovariance
from igm_fast.data.seeds import derived_seed
from igm_fast.layers import observable_layers
from igm_fast.methods.base import Batch
from igm_fast.reports import figures

STEP = 0.1  # ‖Δ‖ as a share of ‖W‖
DIRECTIONS = 24
DRAWS = 4


@dataclass(frozen=True)
class Rise:
    """Mean of L(ω ± Δ_i) − L(ω) over signs and outputs; ``number`` counts eigenvalues from the largest, from 1."""

    run: str
    modality: str
    layer: str
    number: int
    eigenvalue: float
    rise: float


def layer_rises(loaded: LoadedRun, batches: Sequence[Batch], label: str) -> list[Rise]:
    """Return the rises of every observable layer with one group, in the loss of its own modality.

    Args:
        loaded: the run, in float64.
        batches: samples of both C and the loss.
        label: name of the run.
    """
    found = []
    for modality in loaded.model.modalities:
        branch = loaded.model.branch(modality)
        layers = [name for name, layer in observable_layers(branch).items() if getattr(layer, "groups", 1) == 1]
        with torch.no_grad(), ActivationCovariance(branch, "full", layers=layers) as covariance:
            for batch in batches:
                branch(batch.inputs[modality])
        objective = Objective(loaded, modality, batches)
        for layer in layers:
            numbers, values, heights = rises_along(objective, layer_weight(branch, layer), covariance[layer])
            found += [
                Rise(label, modality, layer, number, value, height)
                for number, value, height in zip(numbers, values, heights, strict=True)
            ]
    return found


def rises_along(
    objective: Objective, weight: nn.Parameter, second_moment: Tensor
) -> tuple[list[int], list[float], list[float]]:
    """Return numbers, eigenvalues and rises for up to 24 eigenvectors, spread evenly from the largest to the smallest.

    The random outputs are the same for every eigenvector, and both signs are taken: what is linear in Δ cancels.
    """
    values, vectors = torch.linalg.eigh(second_moment)
    values, vectors = values.flip(0), vectors.flip(1)
    chosen = np.unique(np.linspace(0, len(values) - 1, min(DIRECTIONS, len(values))).round().astype(int)).tolist()
    generator = torch.Generator().manual_seed(derived_seed("outputs", *weight.shape))
    outputs = torch.randn(DRAWS, weight.shape[0], generator=generator, dtype=torch.float64).to(weight)
    outputs = STEP * weight.detach().norm() * outputs / outputs.norm(dim=1, keepdim=True)
    at_weights = objective.value()
    heights = []
    with weights_kept([weight]):
        origin = weight.detach().clone()
        for i in chosen:
            total = 0.0
            for output in outputs:
                for signed in (output, -output):
                    with torch.no_grad():
                        weight.copy_(origin + torch.outer(signed, vectors[:, i]).view_as(weight))
                    total += objective.value() - at_weights
            heights.append(total / (2 * DRAWS))
    return [i + 1 for i in chosen], values[chosen].clamp_min(0.0).tolist(), heights


@figures.styled
def draw_rises(rises: Sequence[Rise], colours: Mapping[str, tuple[str, Any]]) -> Figure:
    """Rise of the loss against the eigenvalue, a panel for each layer (the first and last four at most), log axes."""
    modalities = list(dict.fromkeys(r.modality for r in rises))
    names = list(dict.fromkeys(r.layer for r in rises))
    layers = names if len(names) <= 4 else [*names[:2], *names[-2:]]
    figure = Figure(figsize=(figures.WIDTH, 0.9 + 1.7 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(modalities), squeeze=False)
    dots: dict[str, Any] = {}
    for (row, column), axes in np.ndenumerate(grid):
        panel = [r for r in rises if (r.layer, r.modality) == (layers[row], modalities[column])]
        if not panel:
            axes.set_axis_off()
            continue
        least = 1e-9 * max(r.eigenvalue for r in panel)  # below it there is rounding only
        for run, (name, colour) in colours.items():
            shown = [r for r in panel if r.run == run and r.eigenvalue > least and r.rise > 0]
            dots[name] = axes.scatter([r.eigenvalue for r in shown], [r.rise for r in shown], s=9, color=colour)
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{modalities[column]}\n{layers[row]}", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        if column == 0:
            axes.set_ylabel("rise of the loss", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("eigenvalue of C", fontsize=8)
    figure.legend(dots.values(), dots, loc="outside lower center", ncols=2, fontsize=8)
    return figure
