"""The dense route without eigenvectors: a short Chebyshev series, where f is smooth enough for one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from igm_fast import ops  # noqa: F401 - registers torch.ops.igm_fast
from igm_fast.projector.base import Projector, dense, rounding
from igm_fast.projector.functions import SmoothFunction

# Each degree is a product of 2 d³ flops; beyond this, all eigenvectors are had for less. τ = 0.4 needs 2, τ = 4 five.
MAX_DEGREE = 8
# Samples of f for the coefficients: those beyond half of them are rounding noise unless f is too steep for the route.
SAMPLES = 256


def polynomial(C: Tensor, skew: float, function: SmoothFunction, tol: float) -> Projector | None:
    """Return f(C) of C ``[groups, d, d]``, dense, or None where rounding or a steep f keeps it above ``tol``.

    λmax and λmin are enclosed by Cholesky factorisations: hI − C and C − lI have one iff h > λmax, l < λmin. f is
    expanded on [l, h] in Chebyshev polynomials of t = (2C − (h + l)I)/(h − l); what is cut off is at most the sum of
    the remaining coefficients. Clenshaw's recurrence makes degree − 1 products, 2 d³ flops each.

    Args:
        C: float32 or float64, contiguous, symmetric, positive semi-definite.
        skew: largest ‖C − Cᵀ‖_F / 2 of the groups.
        function: f.
        tol: the bound to reach.
    """
    made = [_one(matrix, skew, function, tol) for matrix in C]
    if any(one is None for one in made):
        return None
    groups, dim, _ = C.shape
    matrices, bounds, ends = zip(*(one for one in made if one is not None), strict=True)
    T = torch.stack(matrices)
    eigenvalues = torch.stack(ends)  # λmax, λmin, on the CPU
    sigma = function.values(eigenvalues, eigenvalues[:, 1:], eigenvalues[:, :1])
    known = float(sigma.sum())
    others = groups * (dim - 2)
    trace = float(T.diagonal(dim1=-2, dim2=-1).double().sum())
    complement = (trace - known) / others if others else 1.0
    return dense("polynomial", function, eigenvalues, sigma, complement, max(bounds), T)


def _one(C: Tensor, skew: float, function: SmoothFunction, tol: float) -> tuple[Tensor, float, Tensor] | None:
    """T ``[d, d]``, its bound, and estimates of λmax and λmin."""
    dim = C.shape[0]
    if dim < 2:
        return None
    one = torch.ones(1, dtype=torch.float64)
    felt = float(function.shift(0 * one, one, 1e-3 * one)) / 1e-3  # by f, of an error in λmin or λmax
    ends = _enclose(C, tol / (8 * max(felt, 1.0)))
    if ends is None:
        return None
    (low_min, high_min), (low_max, high_max) = ends
    estimates = torch.tensor([low_max + high_max, low_min + high_min], dtype=torch.float64) / 2
    largest, smallest = estimates[:1], estimates[1:]
    if largest <= smallest:
        return None
    moved = torch.full_like(largest, max(high_min - low_min, high_max - low_max) / 2)
    coefficients, cut_off = _coefficients(function, smallest, largest, low_min, high_max, tol / 4)
    lipschitz = float(function.lipschitz(smallest, largest))
    noise = (len(coefficients) + lipschitz * float(largest)) * rounding(dim, C.dtype) + lipschitz * skew
    bound = float(function.shift(smallest, largest, moved)) + cut_off + noise
    if bound > tol:
        return None
    return _clenshaw(C, coefficients, low_min, high_max), bound, estimates


def _enclose(C: Tensor, tolerance: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Intervals that hold λmin and λmax, as wide as ``tolerance``·λmax; None where that is not to be had."""
    dim = C.shape[0]
    start = torch.randn(1, dim, min(8, dim), generator=torch.Generator().manual_seed(dim)).to(C)
    ritz = float(torch.ops.igm_fast.truncated_eigh(C[None], start, 4)[0][0, 0])
    if not ritz > 0:
        return None
    # A factorisation of hI − C or C − lI that ends proves its claim up to about d roundings.
    slack = dim * torch.finfo(C.dtype).eps / 2 * ritz
    if slack > tolerance * ritz:
        return None
    width = tolerance * ritz

    def largest_is_above(value: float) -> bool:
        return not _is_definite(C, -1.0, value)

    def smallest_is_above(value: float) -> bool:
        return _is_definite(C, 1.0, -value)

    low, step = ritz, width  # a Ritz value is below λmax, and mostly close to it: gallop from there
    while largest_is_above(low + step):
        low, step = low + step, 2 * step
    low_max, high_max = _bisect(low, low + step, width, largest_is_above)
    low_min, high_min = _bisect(0.0, max(float(C.diagonal().min()), 0.0), width, smallest_is_above)
    return (low_min - slack, high_min + slack), (low_max - slack, high_max + slack)


def _bisect(low: float, high: float, width: float, is_above: Callable[[float], bool]) -> tuple[float, float]:
    """Halve an interval that holds an eigenvalue until it is narrow."""
    while high - low > width:
        middle = (low + high) / 2
        low, high = (middle, high) if is_above(middle) else (low, middle)
    return low, high


def _is_definite(C: Tensor, sign: float, shift: float) -> bool:
    """Whether ±C + shift·I has a Cholesky factorisation."""
    shifted = C * sign
    shifted.diagonal().add_(shift)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def _coefficients(
    function: SmoothFunction, smallest: Tensor, largest: Tensor, low: float, high: float, tol: float
) -> tuple[list[float], float]:
    """Chebyshev coefficients of f on [low, high] up to MAX_DEGREE, and the sum of those that are left out.

    From samples at Chebyshev points. Those of both functions fall at least geometrically, so that twice the sum of the
    sampled ones covers those behind and what sampling folds onto these.
    """
    angles = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) * (torch.pi / SAMPLES)
    sampled = function.values((high + low) / 2 + (high - low) / 2 * angles.cos(), smallest, largest)
    every = 2 / SAMPLES * torch.cos(torch.arange(SAMPLES, dtype=torch.float64)[:, None] * angles) @ sampled
    every[0] /= 2
    left = 2 * (every.abs().sum() - every.abs().cumsum(dim=0))
    degree = max(2, min(int((left > tol).sum()), MAX_DEGREE))
    return every[: degree + 1].tolist(), float(left[degree])


def _clenshaw(C: Tensor, coefficients: list[float], low: float, high: float) -> Tensor:
    """Σ cₖ Tₖ(t), t = (2C − (high + low)I)/(high − low); three further d×d matrices."""
    t = C * (2 / (high - low))
    t.diagonal().sub_((high + low) / (high - low))
    before, last = torch.zeros_like(t), t * (2 * coefficients[-1])
    before.diagonal().add_(coefficients[-1])
    last.diagonal().add_(coefficients[-2])
    for coefficient in reversed(coefficients[1:-2]):
        before, last = last, torch.addmm(before, t, last, beta=-1, alpha=2)
        last.diagonal().add_(coefficient)
    result = torch.addmm(before, t, last, beta=-1, alpha=1)
    result.diagonal().add_(coefficients[0])
    return (result + result.mT) / 2
