"""From activation statistics to projectors: checks, and the choice between the routes."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from igm_fast import ops  # noqa: F401 - registers torch.ops.igm_fast
from igm_fast.names import nearest
from igm_fast.ops.precision import full_float32
from igm_fast.projector.base import Projector, identity
from igm_fast.projector.certificate import Facts
from igm_fast.projector.eigh import eigh
from igm_fast.projector.functions import EnergyThreshold, FlatExponential, SpectralFunction
from igm_fast.projector.polynomial import polynomial
from igm_fast.projector.sketched import sketched
from igm_fast.projector.truncated import truncated
from igm_fast.sketch import SMALL as SMALL_FOR_A_SKETCH
from igm_fast.sketch import Sketch

Route = Literal["auto", "eigh", "polynomial", "truncated", "sketch"]
ROUTES: tuple[Route, ...] = get_args(Route)
# Up to here all eigenvectors take a few milliseconds, and a dense T is as cheap to apply as a low-rank one.
SMALL = 256
# Matrices up to here are copied side by side and searched together: a product with one of them is over before threads
# are awake. Larger ones gain nothing from company and would be copied.
TOGETHER = 640

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

    Source: IGM (IJCAI 2025); T's eigenvalues lie in [e^{−τ}, 1]. It is :func:`spectral_projectors` with
    ``FlatExponential(tau)``, whose arguments, routes and errors it has.

    Args:
        covariance: statistics of the layers.
        tau: τ > 0.
        method: the route.
        tol: largest bound on the operator norm of the error.
        start: earlier projectors of the same layers.
    """
    return spectral_projectors(covariance, FlatExponential(tau), method, tol, start=start)


def spectral_projectors(
    covariance: HasStatistics | Mapping[str, Tensor],
    function: SpectralFunction,
    method: Route = "auto",
    tol: float = 5e-3,
    *,
    start: Mapping[str, Projector] | None = None,
) -> dict[str, Projector]:
    """Return f(C) for each layer's C, by one of these routes.

    - ``"eigh"``: all eigenvectors, in float64 where float32 is too coarse for ``tol``; dense.
    - ``"truncated"``: low rank, grown until the certificate holds; beyond rank min(d/8, 128) the polynomial takes over.
    - ``"polynomial"``: dense, Chebyshev series, no eigenvectors; where f is too steep for a short one or ``tol`` is
      below what rounding allows, eigh. Not for a threshold.
    - ``"sketch"``: low rank, from a sketch, for which C was never formed. Its rank is that of the sketch: ``tol``
      cannot be asked of it, ``error_bound`` says what was reached. Layers of d ≤ 256 keep their matrix: see auto. Not
      for a threshold.
    - ``"auto"``: sketch for sketches; for matrices eigh up to d = 256, truncated above, unless its first directions
      say that no rank up to its limit will do.

    ``projector.route`` is the route that was taken, ``projector.error_bound`` holds whatever it was. A threshold whose
    place in the spectrum has no gap is made by eigh, with error_bound 1: rounding decides which directions it takes.

    Args:
        covariance: of :class:`igm_fast.ActivationCovariance`, or ``{name: C}`` with C ``[d, d]`` or ``[groups, d, d]``,
            a tensor or an array that speaks DLPack (NumPy, CuPy), float32 or float64, symmetric and positive
            semi-definite, on the CPU or a GPU, where their projectors will be. The host reads certificates between
            kernels, on a GPU too.
        function: f: ``FlatExponential(tau)``, ``RidgeComplement(alpha)`` or ``EnergyThreshold(share)``.
        method: the route.
        tol: largest bound on the operator norm of the error that routes may leave.
        start: earlier projectors of the same layers, from whose directions the truncated route starts.

    Raises:
        ValueError: an option out of range; a matrix that is not square, symmetric or finite, on another kind of device,
            or with entries that no second moment has (all with the layer's name); a route that needs a matrix
            where there is a sketch, or the other way round, or one that f has not.
    """
    _check_options(function, method, tol)
    with full_float32():
        return _spectral_projectors(covariance, function, method, tol, start or {})


def _spectral_projectors(
    covariance: HasStatistics | Mapping[str, Tensor],
    function: SpectralFunction,
    method: Route,
    tol: float,
    start: Mapping[str, Projector],
) -> dict[str, Projector]:
    statistics = covariance.statistics() if isinstance(covariance, HasStatistics) else covariance
    shapes = covariance.weight_shapes if isinstance(covariance, HasStatistics) else {}
    projectors: dict[str, Projector] = {}
    matrices: dict[str, tuple[Tensor, Facts]] = {}
    for name, C in statistics.items():
        if isinstance(C, Sketch):
            projectors[name] = _from_sketch(name, C, function, method, tol)
        else:
            matrices[name] = _checked(name, _tensor(C), method)
    projectors |= _from_matrices(matrices, function, method, tol, start)
    return {name: replace(projectors[name], weight_shape=shapes.get(name)) for name in statistics}


def _tensor(C: object) -> Tensor:
    """A tensor on the memory of a NumPy or CuPy array, or of whatever else speaks DLPack; other things as they are."""
    if isinstance(C, Tensor) or not hasattr(C, "__dlpack__"):
        return C  # type: ignore[return-value]
    shared: Tensor = from_dlpack(C)
    return shared


def _check_options(function: SpectralFunction, method: str, tol: float) -> None:
    if not 0 < tol < math.inf:
        raise ValueError(f"projectors: tol={tol}, expected a number > 0. For an exact T use method='eigh'")
    if method not in ROUTES:
        raise ValueError(f"projectors: {nearest(method, ROUTES, 'method')}")
    if isinstance(function, EnergyThreshold) and method in ("polynomial", "sketch"):
        raise ValueError(
            f"projectors: method={method!r} for {function}, expected 'auto', 'truncated' or 'eigh': a threshold jumps, "
            "which no polynomial follows and no sketch can place"
        )


def _from_sketch(name: str, sketch: Sketch, function: SpectralFunction, method: Route, tol: float) -> Projector:
    if method not in ("auto", "sketch"):
        raise ValueError(
            f"projectors: method={method!r} for layer {name!r}, of which there is a sketch and no matrix, "
            "expected 'auto' or 'sketch'. Or measure with ActivationCovariance(…, estimator='full')"
        )
    if isinstance(function, EnergyThreshold):
        raise ValueError(
            f"projectors: {function} for layer {name!r}, of which there is a sketch, expected a matrix: a sketch "
            "cannot tell where the threshold falls. Measure with ActivationCovariance(…, estimator='full')"
        )
    projector = sketched(sketch, function)
    if projector.error_bound > tol:
        _logger.info("projector %s: the sketch gives bound %.1e, above tol %.1e", name, projector.error_bound, tol)
    return projector


def _from_matrices(
    matrices: Mapping[str, tuple[Tensor, Facts]],
    function: SpectralFunction,
    method: Route,
    tol: float,
    start: Mapping[str, Projector],
) -> dict[str, Projector]:
    """Each route takes what the one before it left; layers of one size and dtype go together."""
    made: dict[str, Projector] = {}
    small = [name for name, (C, _) in matrices.items() if C.shape[1] <= SMALL]
    by_rank = [] if method in ("eigh", "polynomial") else list(matrices)
    if method != "truncated":
        by_rank = [name for name in by_rank if name not in small]
    for names in _alike(by_rank, matrices, TOGETHER):
        layers, facts = zip(*(matrices[name] for name in names), strict=True)
        starts = [_directions(start.get(name), matrices[name][0]) for name in names]
        zero = [name for name, f in zip(names, facts, strict=True) if not f.norm.any()]
        made |= {name: identity("truncated", function, matrices[name][0]) for name in zero}
        found = truncated(layers, facts, function, tol, starts, doubt=method != "truncated")
        made |= {n: p for n, p in zip(names, found, strict=True) if p is not None and n not in zero}
    for name in matrices:
        by_series = method == "polynomial" or name in by_rank
        if name in made or isinstance(function, EnergyThreshold) or not by_series:
            continue
        if name in by_rank:
            _logger.info("projector %s: no rank up to min(d/8, 128) reaches tol %.1e; polynomial route", name, tol)
        C, facts_of_one = matrices[name]
        projector = polynomial(C, float(facts_of_one.asymmetry.max()) / 2, function, tol)
        if projector is None:
            _logger.info("projector %s: the polynomial does not reach tol %.1e; eigh route", name, tol)
        else:
            made[name] = projector
    left = [name for name in matrices if name not in made]
    for names in _alike(left, matrices, SMALL):
        layers, facts = zip(*(matrices[name] for name in names), strict=True)
        made |= dict(zip(names, eigh(layers, facts, function, tol), strict=True))
    return made


def _alike(names: list[str], matrices: Mapping[str, tuple[Tensor, Facts]], largest: int) -> list[list[str]]:
    """Names of layers of one size, dtype and device; alone where d > ``largest``."""
    alike: dict[object, list[str]] = defaultdict(list)
    for name in names:
        C = matrices[name][0]
        alike[(C.shape[1], C.dtype, C.device) if C.shape[1] <= largest else name].append(name)
    return list(alike.values())


def _directions(start: Projector | None, C: Tensor) -> Tensor | None:
    """The basis of an earlier projector, where it fits."""
    if start is None or start.basis is None or (start.groups, start.dim) != C.shape[:2]:
        return None
    return start.basis.reshape(start.groups, start.dim, -1)


def _checked(name: str, C: Tensor, method: Route) -> tuple[Tensor, Facts]:
    """C as ``[groups, d, d]``, contiguous, and what one pass over it says, or a ValueError that names the layer."""
    where = f"projectors: layer {name!r}"
    if C.dim() not in (2, 3) or C.shape[-1] != C.shape[-2] or C.numel() == 0:
        raise ValueError(
            f"{where}: matrix of shape {tuple(C.shape)}, expected [d, d] or [groups, d, d]. Give the d×d second moment"
        )
    if C.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{where}: matrix is {C.dtype}, expected float32 or float64. Convert it with .float()")
    if C.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{where}: matrix is on {C.device}, expected cpu or cuda, where the kernels are. Move it with .cpu()"
        )
    if method == "sketch" and C.shape[-1] > SMALL_FOR_A_SKETCH:
        raise ValueError(
            f"projectors: method='sketch' for layer {name!r}, of which there is a matrix with d={C.shape[-1]}; "
            "expected a sketch. Use 'auto', or measure with ActivationCovariance(…, estimator='sketch')"
        )
    C = C.detach().reshape(-1, *C.shape[-2:]).contiguous()
    seen = torch.ops.igm_fast.inspect_symmetric(C).cpu()
    non_finite = int(seen[:, 0].sum())
    if non_finite:
        place = (~torch.isfinite(C)).nonzero()[0].tolist()
        raise ValueError(
            f"{where} has {non_finite} non-finite covariance entries (first at {place[1:]}), expected none. A batch "
            "held NaN or inf, or the sums overflowed; look at the inputs of this layer"
        )
    facts = Facts(*(column[:, None] for column in seen.unbind(dim=1)[1:]))
    eps = torch.finfo(C.dtype).eps
    # What summing the two triangles in different orders may make of them.
    if (facts.asymmetry > 100 * math.sqrt(C.shape[1]) * eps * facts.norm).any():
        raise ValueError(
            f"{where}: ‖C − Cᵀ‖ is {float(facts.asymmetry.max()):.2e} at ‖C‖ = {float(facts.norm.max()):.2e}, expected "
            "a symmetric matrix. Use (C + C.T) / 2 if that is what you mean"
        )
    noise = 100 * C.shape[1] * eps * facts.norm
    if ((facts.least_diagonal < -noise) | (facts.trace < facts.norm - noise)).any():
        raise ValueError(
            f"{where}: least diagonal entry {float(facts.least_diagonal.min()):.2e} and trace "
            f"{float(facts.trace.min()):.2e} at ‖C‖ = {float(facts.norm.max()):.2e}, expected those of a second moment "
            "(diagonal ≥ 0, trace ≥ ‖C‖): it has negative eigenvalues. Give Σ u uᵀ of activations"
        )
    return C, facts
