"""Flat projectors T = exp(−τ(C − λmin I)/(λmax − λmin)): one class, one route to it per file, each with its bound."""

from __future__ import annotations

from igm_fast.projector.base import Projector
from igm_fast.projector.flat import ROUTES, Route, flat_projectors

__all__ = ["ROUTES", "Projector", "Route", "flat_projectors"]
