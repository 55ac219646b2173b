"""Projectors T = f(C), f a spectral function: one class, one route to it per file, each with its bound."""

from __future__ import annotations

from igm_fast.projector.base import Projector
from igm_fast.projector.flat import ROUTES, Route, flat_projectors, spectral_projectors
from igm_fast.projector.functions import EnergyThreshold, Exponential, FlatExponential, RidgeComplement
from igm_fast.projector.mean import mean_flat_projectors

__all__ = [
    "ROUTES",
    "EnergyThreshold",
    "Exponential",
    "FlatExponential",
    "Projector",
    "RidgeComplement",
    "Route",
    "flat_projectors",
    "mean_flat_projectors",
    "spectral_projectors",
]
