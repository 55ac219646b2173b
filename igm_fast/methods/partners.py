"""Which layers of one modality IGM looks at to project another one's, and what it writes down of the projectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from igm_fast.layers import MatchRule, in_dimension, observable_layers
from igm_fast.methods.base import Stage
from igm_fast.projector import Projector

Layers = Literal["all", "heads", "none"]


def layers_with_partner(source: nn.Module, target: nn.Module, match: MatchRule, layers: Layers) -> list[str]:
    """Return the layers of the source whose projector can fit a layer of the target: others are not measured."""
    own, wanted = _projectable(source, layers), _projectable(target, layers)
    if match == "name":
        dimensions = {(name, in_dimension(layer)) for name, layer in wanted.items()}
        return [name for name, layer in own.items() if (name, in_dimension(layer)) in dimensions]
    anywhere = {in_dimension(layer) for layer in wanted.values()}
    return [name for name, layer in own.items() if in_dimension(layer) in anywhere]


def _projectable(branch: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    found = observable_layers(branch)
    return {name: layer for name, layer in found.items() if layers == "all" or name.split(".")[0] == "head"}


def spectrum_row(
    stage: Stage, source: str, target: str, layer: str, projector: Projector, facts: Mapping[str, float]
) -> dict[str, Any]:
    """Return what ``spectra.json`` keeps of one layer's projector.

    Args:
        stage: in which it acts.
        source: modality that was looked at (several are joined by ``+``).
        target: modality that trains.
        layer: of the source.
        projector: made of it.
        facts: count and trace of the statistics.
    """
    return {
        "stage": stage.index,
        "source": source,
        "target": target,
        "layer": layer,
        "dim": projector.dim,
        "groups": projector.groups,
        "rank": projector.rank,
        "route": projector.route,
        "error_bound": float(projector.error_bound),
        **facts,
        "eigenvalues": projector.eigenvalues.tolist(),
        "projector_eigenvalues": projector.sigma.tolist(),
        "complement": float(projector.complement),
    }
