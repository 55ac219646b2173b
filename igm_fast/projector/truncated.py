"""The low-rank route: the leading eigenvectors of a formed C, as many as the certificate asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from igm_fast import ops  # noqa: F401 - registers torch.ops.igm_fast
from igm_fast.projector.base import Projector, identity, low_rank, rounding
from igm_fast.sketch import FAILURE_PROBABILITY, PROBES, norm_bound

FIRST_RANK = 32
MAX_RANK = 128
# Products C·(block) before the Rayleigh–Ritz step: with a block twice as wide as what is kept, two are enough for
# residuals far below the tail.
STEPS = 2
# μ is bounded through C³ on the complement: the third root takes most of the probes' slack away.
POWER = 3


def truncated(C: Tensor, tau: float, tol: float, start: Tensor | None = None) -> Projector | None:
    """Return T = cI + U(Σ − cI)Uᵀ of C ``[groups, d, d]``, or None where rank min(d/8, 128) does not reach ``tol``.

    U are Ritz vectors, Λ Ritz values, R = CU − UΛ, a = τ/Λ₁ and μ ≥ ‖(I − UUᵀ)C(I − UUᵀ)‖₂, c = (1 + e^{−aμ})/2.
    Without R the matrix is block diagonal, and T̂ is off by at most (1 − e^{−aμ})/2 on the complement; R costs a‖R‖
    (Duhamel: ‖e^{−A} − e^{−B}‖ ≤ ‖A − B‖ for A, B ⪰ 0); λmin ∈ [0, (tr C − ΣΛ)/(d − k)] and λmax, at most the larger
    eigenvalue of [[Λ₁, ‖R‖], [‖R‖, μ]], move the exponents by the third term:

        ‖T − T̂‖₂ ≤ a‖R‖₂ + (1 − e^{−aμ})/2 + max(a·λmin, τ(λmax/Λ₁ − 1)) + rounding

    μ is the smaller of √(‖C‖_F² − ΣΛ² − 2‖R‖_F²), certain, and a bound from random probes (``norm_bound``).

    Args:
        C: float32 or float64, contiguous, symmetric, positive semi-definite.
        tau: τ.
        tol: the bound to reach.
        start: ``[groups, d, k]``, directions to start from, such as the basis of an earlier T.
    """
    dim = C.shape[1]
    limit = min(dim // 8, MAX_RANK)
    if limit == 0:
        return None
    if not C.any():
        return identity("truncated", tau, C)
    generator = torch.Generator().manual_seed(dim)
    block, rank = start, min(FIRST_RANK, limit)
    while True:
        eigenvalues, vectors, residuals = torch.ops.igm_fast.truncated_eigh(C, _widen(block, C, rank, generator), STEPS)
        projector = _certified(C, tau, tol, eigenvalues, vectors, residuals, generator)
        if projector is not None:
            return projector
        if rank == limit:
            return None
        block, rank = vectors, min(2 * rank, limit)


def _widen(block: Tensor | None, C: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The first columns of a block, with Gaussian ones up to a rank."""
    groups, dim, _ = C.shape
    given = C.new_empty(groups, dim, 0) if block is None else block[:, :, :rank].to(C)
    fresh = torch.randn(groups, dim, rank - given.shape[2], generator=generator)
    return torch.cat([given, fresh.to(C)], dim=2)


def _certified(
    C: Tensor,
    tau: float,
    tol: float,
    eigenvalues: Tensor,
    vectors: Tensor,
    residuals: Tensor,
    generator: torch.Generator,
) -> Projector | None:
    """The projector on the best number of leading Ritz vectors, if its bound is at most ``tol``."""
    groups, dim, _ = C.shape
    largest = eigenvalues[:, :1]
    if not (largest > 0).all():  # C is not positive semi-definite, or numerically zero: leave it to the other routes
        return None
    trace = C.diagonal(dim1=1, dim2=2).double().sum(dim=1, keepdim=True)
    frobenius = torch.linalg.vector_norm(C, dim=(1, 2), dtype=torch.float64).square()[:, None]
    residual_squares = residuals.double().square().sum(dim=1).cumsum(dim=1)  # ‖R‖_F² of the first 1, 2, … columns
    # The differences below cancel: rounding of the two sums stays in them.
    noise = 8 * torch.finfo(C.dtype).eps * frobenius
    tail = (frobenius - eigenvalues.square().cumsum(dim=1) - 2 * residual_squares).clamp(min=0.0).add(noise).sqrt()
    left = torch.arange(dim - 1, dim - 1 - eigenvalues.shape[1], -1, device=C.device)
    smallest = ((trace - eigenvalues.cumsum(dim=1)) / left).clamp(min=0.0)
    bounds = _bound(tau, largest, residual_squares.sqrt(), tail, smallest).amax(dim=0)
    kept = int(bounds.argmin()) + 1

    U, R, place = vectors[:, :, :kept], residuals[:, :, :kept], slice(kept - 1, kept)
    mu = torch.minimum(tail[:, place], _tail_from_probes(C, U, generator))
    norm = torch.linalg.matrix_norm(R.double(), ord=2)[:, None]
    a = tau / largest
    # One complement for all groups: what the largest tail asks for is within its term for the others too.
    mu_scaled = (a * mu).max()
    terms = _bound(tau, largest, norm, mu_scaled / a, smallest[:, place])
    bound = float(terms.max()) + (1 + tau) * rounding(dim, C.dtype)
    if bound > tol:
        return None
    chance = FAILURE_PROBABILITY * groups if bool((mu < tail[:, place]).any()) else 0.0
    sigma = torch.exp(-a * eigenvalues[:, :kept])
    complement = float((1 + torch.exp(-mu_scaled)) / 2)
    return low_rank("truncated", tau, eigenvalues[:, :kept], sigma, complement, bound, U, chance)


def _bound(tau: float, largest: Tensor, residual: Tensor, tail: Tensor, smallest: Tensor) -> Tensor:
    a = tau / largest
    highest = (largest + tail) / 2 + ((largest - tail).square() / 4 + residual.square()).sqrt()
    exponents = torch.maximum(a * smallest, tau * (highest / largest - 1))
    return a * residual + (1 - torch.exp(-a * tail)) / 2 + exponents


def _tail_from_probes(C: Tensor, U: Tensor, generator: torch.Generator) -> Tensor:
    """‖PCP‖₂ ≤ (bound on ‖(PCP)³‖₂ from probes)^{1/3}, P = I − UUᵀ, ``[groups, 1]``."""
    probes = torch.randn(*C.shape[:2], PROBES, generator=generator).to(C)
    image = _deflate(U, probes)
    for _ in range(POWER):
        image = _deflate(U, C @ image)
    return norm_bound(image.double()).pow(1 / POWER)[:, None]


def _deflate(U: Tensor, block: Tensor) -> Tensor:
    for _ in range(2):  # once leaves what rounding in UᵀU makes of the leading directions
        block = block - U @ (U.mT @ block)
    return block
