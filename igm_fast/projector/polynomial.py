"""The dense route without eigenvectors: the exponent is never below −τ, so a short Chebyshev series is enough."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import ive
from torch import Tensor

from igm_fast import ops  # noqa: F401 - registers torch.ops.igm_fast
from igm_fast.projector.base import Projector, dense, rounding

MAX_DEGREE = 64  # τ = 16 to float64 round-off needs 30


def polynomial(C: Tensor, tau: float, tol: float) -> Projector | None:
    """Return T of C ``[groups, d, d]``, dense, or None where rounding or a narrow spectrum keeps it above ``tol``.

    λmax and λmin are enclosed by Cholesky factorisations: hI − C and C − lI have one iff h > λmax, l < λmin. With
    t = (2C − (h + l)I)/(h − l) and z = τ(h − l)/2(λmax − λmin), e^{−z t} = I₀(z) + 2 Σ (−1)ᵏ Iₖ(z) Tₖ(t); what is cut
    off is at most the sum of the remaining coefficients. Clenshaw's recurrence makes degree − 1 products, 2 d³ flops
    each.

    Args:
        C: float32 or float64, contiguous, symmetric, positive semi-definite.
        tau: τ.
        tol: the bound to reach.
    """
    made = [_one(matrix, tau, tol) for matrix in C]
    if any(one is None for one in made):
        return None
    groups, dim, _ = C.shape
    matrices, bounds, ends = zip(*(one for one in made if one is not None), strict=True)
    T = torch.stack(matrices)
    eigenvalues = torch.tensor(ends, dtype=torch.float64, device=C.device)  # λmax, λmin
    sigma = torch.tensor([[math.exp(-tau), 1.0]] * groups, dtype=torch.float64, device=C.device)
    known = float(sigma.sum())
    others = groups * (dim - 2)
    trace = float(T.diagonal(dim1=-2, dim2=-1).double().sum())
    complement = (trace - known) / others if others else 1.0
    return dense("polynomial", tau, eigenvalues, sigma, complement, max(bounds), T)


def _one(C: Tensor, tau: float, tol: float) -> tuple[Tensor, float, tuple[float, float]] | None:
    """T ``[d, d]``, its bound, and estimates of λmax and λmin."""
    dim = C.shape[0]
    if dim < 2:
        return None
    ends = _enclose(C, tol / (8 * max(tau, 1.0)))
    if ends is None:
        return None
    (low_min, high_min), (low_max, high_max) = ends
    smallest, largest = (low_min + high_min) / 2, (low_max + high_max) / 2
    if largest <= smallest:
        return None
    a = tau / (largest - smallest)
    moved = a * max(high_min - low_min, high_max - low_max) / 2  # of the exponents, at the ends of the spectrum
    series = _coefficients(a, smallest, low_min, high_max, tol / 4)
    if series is None:
        return None
    coefficients, cut_off = series
    bound = moved * math.exp(moved) + cut_off + (len(coefficients) + tau) * rounding(dim, C.dtype)
    if bound > tol:
        return None
    return _clenshaw(C, coefficients, low_min, high_max), bound, (largest, smallest)


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


def _coefficients(a: float, smallest: float, low: float, high: float, tol: float) -> tuple[list[float], float] | None:
    """Chebyshev coefficients of exp(−a(λ − smallest)) on [low, high], and the sum of those that are left out."""
    z = a * (high - low) / 2
    scale = math.exp(z - a * ((high + low) / 2 - smallest))  # ive is scaled by e^{−z}
    every = [scale * (1 if k == 0 else 2) * (-1) ** k * float(ive(k, z)) for k in range(2 * MAX_DEGREE)]
    for degree in range(2, MAX_DEGREE):
        cut_off = sum(map(abs, every[degree + 1 :]))
        if cut_off <= tol:
            return every[: degree + 1], cut_off
    return None


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
