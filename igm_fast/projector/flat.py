"""From activation statistics to projectors: checks, and the choice between the routes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from igm_fast import ops  # noqa: F401 - registers torch.ops.igm_fast
from igm_fast.names import nearest
from igm_fast.projector.base import Projector
from igm_fast.projector.eigh import eigh
from igm_fast.projector.polynomial import polynomial
from igm_fast.projector.sketched import sketched
from igm_fast.projector.truncated import truncated
from igm_fast.sketch import SMALL as SMALL_FOR_A_SKETCH
from igm_fast.sketch import Sketch

Route = Literal["auto", "eigh", "polynomial", "truncated", "sketch"]
ROUTES: tuple[Route, ...] = get_args(Route)
# Up to here all eigenvectors take a few milliseconds, and a dense T is as cheap to apply as a low-rank one.
SMALL = 128

_logger = logging.getLogger(__name__)


@runtime_checkable
class HasStatistics(Protocol):
    """An :class:`igm_fast.ActivationCovariance`, or whatever else has matrices and sketches by layer."""

    def statistics(self) -> Mapping[str, Tensor | Sketch]:
        """Return a matrix ``[d, d]``, ``[groups, d, d]`` or a sketch for each layer."""

    @property
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the layers' weights."""


def flat_projectors(
    covariance: HasStatistics | Mapping[str, Tensor],
    tau: float = 0.4,
    method: Route = "auto",
    tol: float = 5e-3,
    *,
    start: Mapping[str, Projector] | None = None,
) -> dict[str, Projector]:
    """Return T = exp(−τ(C − λmin I)/(λmax − λmin)) for each layer's C; T = I where λmax = λmin.

    Source: IGM (IJCAI 2025); T's eigenvalues lie in [e^{−τ}, 1]. The routes:

    - ``"eigh"``: exact, in float64; dense.
    - ``"truncated"``: low rank, grown until the certificate holds; beyond rank min(d/8, 128) the polynomial takes over.
    - ``"polynomial"``: dense, Chebyshev series, no eigenvectors; where ``tol`` is below what rounding allows, eigh.
    - ``"sketch"``: low rank, from a sketch, for which C was never formed. Its rank is that of the sketch: ``tol``
      cannot be asked of it, ``error_bound`` says what was reached. Layers of d ≤ 256 keep their matrix: see auto.
    - ``"auto"``: sketch for sketches; for matrices eigh up to d = 128, truncated above.

    ``projector.route`` is the route that was taken, ``projector.error_bound`` holds whatever it was.

    Args:
        covariance: of :class:`igm_fast.ActivationCovariance`, or ``{name: C}`` with C ``[d, d]`` or ``[groups, d, d]``,
            float32 or float64, symmetric and positive semi-definite.
        tau: τ > 0.
        method: the route.
        tol: largest bound on the operator norm of the error that truncated and polynomial routes may leave.
        start: earlier projectors of the same layers, from whose directions the truncated route starts.

    Raises:
        ValueError: an option out of range; a matrix that is not square, symmetric or finite (with the layer's name); a
            route that needs a matrix where there is a sketch, or the other way round.
    """
    _check_options(tau, method, tol)
    statistics = covariance.statistics() if isinstance(covariance, HasStatistics) else covariance
    shapes = covariance.weight_shapes if isinstance(covariance, HasStatistics) else {}
    projectors: dict[str, Projector] = {}
    for name, C in statistics.items():
        if isinstance(C, Sketch):
            projector = _from_sketch(name, C, tau, method, tol)
        else:
            projector = _from_matrix(name, C, tau, method, tol, (start or {}).get(name))
        projectors[name] = replace(projector, weight_shape=shapes.get(name))
    return projectors


def _check_options(tau: float, method: str, tol: float) -> None:
    if not 0 < tau < math.inf:
        raise ValueError(f"flat_projectors: tau={tau}, expected a number > 0. The paper's is 0.4; for T = I use none")
    if not 0 < tol < math.inf:
        raise ValueError(f"flat_projectors: tol={tol}, expected a number > 0. For an exact T use method='eigh'")
    if method not in ROUTES:
        raise ValueError(f"flat_projectors: {nearest(method, ROUTES, 'method')}")


def _from_sketch(name: str, sketch: Sketch, tau: float, method: Route, tol: float) -> Projector:
    if method not in ("auto", "sketch"):
        raise ValueError(
            f"flat_projectors: method={method!r} for layer {name!r}, of which there is a sketch and no matrix, "
            "expected 'auto' or 'sketch'. Or measure with ActivationCovariance(…, estimator='full')"
        )
    projector = sketched(sketch, tau)
    if projector.error_bound > tol:
        _logger.info("projector %s: the sketch gives bound %.1e, above tol %.1e", name, projector.error_bound, tol)
    return projector


def _from_matrix(name: str, C: Tensor, tau: float, method: Route, tol: float, start: Projector | None) -> Projector:
    C = _checked(name, C)
    dim = C.shape[1]
    if method == "sketch" and dim > SMALL_FOR_A_SKETCH:
        raise ValueError(
            f"flat_projectors: method='sketch' for layer {name!r}, of which there is a matrix with d={dim}; expected a "
            "sketch. Use 'auto', or measure with ActivationCovariance(…, estimator='sketch')"
        )
    if method == "sketch":
        method = "auto"
    if method == "truncated" or (method == "auto" and dim > SMALL):
        projector = truncated(C, tau, tol, _directions(start, C))
        if projector is not None:
            return projector
        _logger.info("projector %s: no rank up to min(d/8, 128) reaches tol %.1e; polynomial route", name, tol)
        method = "polynomial"
    if method == "polynomial":
        projector = polynomial(C, tau, tol)
        if projector is not None:
            return projector
        _logger.info("projector %s: the polynomial does not reach tol %.1e; eigh route", name, tol)
    return eigh(C, tau)


def _directions(start: Projector | None, C: Tensor) -> Tensor | None:
    """The basis of an earlier projector, where it fits."""
    if start is None or start.basis is None or (start.groups, start.dim) != C.shape[:2]:
        return None
    return start.basis.reshape(start.groups, start.dim, -1)


def _checked(name: str, C: Tensor) -> Tensor:
    """C as ``[groups, d, d]``, contiguous, or a ValueError that names the layer."""
    where = f"flat_projectors: layer {name!r}"
    if C.dim() not in (2, 3) or C.shape[-1] != C.shape[-2] or C.numel() == 0:
        raise ValueError(
            f"{where}: matrix of shape {tuple(C.shape)}, expected [d, d] or [groups, d, d]. Give the d×d second moment"
        )
    if C.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{where}: matrix is {C.dtype}, expected float32 or float64. Convert it with .float()")
    C = C.detach().reshape(-1, *C.shape[-2:]).contiguous()
    facts = torch.ops.igm_fast.inspect_symmetric(C)
    non_finite, largest, asymmetry = int(facts[:, 0].sum()), float(facts[:, 1].max()), float(facts[:, 2].max())
    if non_finite:
        place = (~torch.isfinite(C)).nonzero()[0].tolist()
        raise ValueError(
            f"{where} has {non_finite} non-finite covariance entries (first at {place[1:]}), expected none. A batch "
            "held NaN or inf, or the sums overflowed; look at the inputs of this layer"
        )
    # What summing the two triangles in different orders may make of them.
    if asymmetry > 100 * C.shape[1] * torch.finfo(C.dtype).eps * largest:
        raise ValueError(
            f"{where}: ‖C − Cᵀ‖ is {asymmetry:.2e} at entries up to {largest:.2e}, expected a symmetric matrix. "
            "Use (C + C.T) / 2 if that is what you mean"
        )
    return C
