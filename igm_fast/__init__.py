"""Interactive multimodal learning via flat gradient modification (IGM), on fused C++/CUDA kernels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from igm_fast.batch_statistics import frozen_batch_statistics
    from igm_fast.covariance import ActivationCovariance
    from igm_fast.layers import LayerMatching, match_layers
    from igm_fast.ops.native import show_config
    from igm_fast.projector import (
        EnergyThreshold,
        FlatExponential,
        Projector,
        RidgeComplement,
        flat_projectors,
        spectral_projectors,
    )
    from igm_fast.sam import SAM

__all__ = [
    "SAM",
    "ActivationCovariance",
    "EnergyThreshold",
    "FlatExponential",
    "LayerMatching",
    "Projector",
    "RidgeComplement",
    "flat_projectors",
    "frozen_batch_statistics",
    "match_layers",
    "show_config",
    "spectral_projectors",
]

# Imported at first use: the version can be read, and a broken build explained, without the native module.
_HOMES = {
    "ActivationCovariance": "covariance",
    "EnergyThreshold": "projector",
    "FlatExponential": "projector",
    "LayerMatching": "layers",
    "Projector": "projector",
    "RidgeComplement": "projector",
    "SAM": "sam",
    "flat_projectors": "projector",
    "frozen_batch_statistics": "batch_statistics",
    "match_layers": "layers",
    "show_config": "ops.native",
    "spectral_projectors": "projector",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'igm_fast' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"igm_fast.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
