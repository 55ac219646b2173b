"""What Ritz pairs prove about f(C): the bound of the low-rank routes, for every number of directions that may be kept.

U are m Ritz vectors, Λ Ritz values, R = CU − UΛ. Kept are the first k. With P = I − U_k U_kᵀ the matrix
Ĉ = U_k Λ_k U_kᵀ + PCP is a pinching of C, so that its eigenvalues lie between λmin and λmax, and ‖C − Ĉ‖₂ = ‖R_k‖₂. On
Ĉ's two invariant subspaces T̂ = cI + U_k(Σ − cI)U_kᵀ is off by no more than half of what f(λ) can be there, with
λ ∈ [0, μ_k], μ_k ≥ ‖PCP‖₂, on the complement, and λmin ∈ [0, s], λmax ∈ [Λ₁, h] everywhere:

    ‖f(C) − T̂‖₂ ≤ L‖R_k‖₂ + max(½ range of f(Λ_k), ½ range of f([0, μ_k])) + rounding

PCP consists of Λ_{k+1…m}, the coupling R_{k+1…m} and E = (I − UUᵀ)C(I − UUᵀ): μ_k is the norm of the 2×2 matrix of
their norms, h the same for k = 1 with Λ₁. s = (tr C − ΣΛ)/(d − m). A bound on ‖E‖₂ is √(‖C‖_F² − ΣΛ² − 2‖R‖_F²),
certain, or comes from random probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from igm_fast.projector.base import Projector, low_rank, rounding
from igm_fast.projector.functions import EnergyThreshold, SmoothFunction, SpectralFunction
from igm_fast.sketch import norm_bound

# 16 columns are what a product with C handles well; χ²₁₆ is above 2 but for a chance of 1e-5 (1 for 12, ½ for 10).
PROBES = 16
# E is looked at through E³: the third root leaves a factor of about 1.5 of the probes' slack (E²: 1.9). What a smaller
# bound saves in directions is more than the product that it costs.
POWER = 3
# What the bound from probes comes to, in units of ‖R‖₂: E couples to U by a third of its width or so.
LIKELY = 3.2


@dataclass(frozen=True)
class Facts:
    """What one pass over C ``[groups, d, d]`` says of it; ``[groups, 1]`` float64 each, on the CPU."""

    asymmetry: Tensor  # ‖C − Cᵀ‖_F
    norm: Tensor  # ‖C‖_F
    trace: Tensor
    least_diagonal: Tensor

    def __getitem__(self, groups: slice | Tensor) -> Facts:
        """Return those of some groups."""
        return Facts(self.asymmetry[groups], self.norm[groups], self.trace[groups], self.least_diagonal[groups])


@dataclass(frozen=True)
class Proposal:
    """T̂ on the first ``rank`` Ritz vectors: ``sigma`` ``[groups, rank]``, c, and the bound that is proven for it."""

    rank: int
    sigma: Tensor
    complement: float
    bound: float


class Evidence:
    """Ritz pairs of one layer's C, and what they prove together with a bound on ‖E‖₂.

    Vectors stay on their device; Λ and RᵀR, from which all else follows, are copied to the CPU, once.
    """

    def __init__(self, eigenvalues: Tensor, vectors: Tensor, residuals: Tensor, facts: Facts) -> None:
        """Take Λ ``[groups, m]``, U and R ``[groups, d, m]``."""
        self.eigenvalues, self.vectors, self.facts = eigenvalues.cpu(), vectors, facts
        self.dim, self.size = vectors.shape[1:]
        self.rounding = rounding(self.dim, vectors.dtype)
        self.gram = (residuals.mT @ residuals).cpu()
        self.lengths = self.gram.diagonal(dim1=1, dim2=2).double().sqrt()  # of R's columns
        self.skew = facts.asymmetry / 2  # of C = S + K, in R and in E: the theorem is about S
        self.coupling = _norm(self.gram) + self.skew  # ‖R‖₂
        # Rounding of the two sums stays in their difference.
        noise = 8 * torch.finfo(vectors.dtype).eps * facts.norm.square()
        explained = (self.eigenvalues.square() + 2 * self.lengths.square()).sum(dim=1, keepdim=True)
        self.certain_tail = ((facts.norm.square() - explained).clamp(min=0.0) + noise).sqrt() + self.skew
        spare = (facts.trace - self.eigenvalues.sum(dim=1, keepdim=True)).clamp(min=0.0)
        least = self.eigenvalues[:, -1:].clamp(min=0.0)
        self.smallest = spare / (self.dim - self.size) if self.size < self.dim else least

    def likely_tail(self) -> Tensor:
        """Return what ‖E‖₂ will probably turn out to be bounded by."""
        return torch.minimum(LIKELY * self.coupling, self.certain_tail)

    def tails(self, tail: Tensor) -> Tensor:
        """Return μ_k ``[groups, m]`` for k = 1 … m."""
        return torch.cat([_block_norm(self.eigenvalues[:, 1:], self.coupling, tail), tail], dim=1)

    def propose(self, function: SpectralFunction, tol: float, tail: Tensor, limit: int) -> Proposal:
        """Return T̂ on the fewest directions that keep the bound within ``tol``; if none do, on those that come closest.

        Args:
            function: f.
            tol: the bound to reach.
            tail: bound on ‖E‖₂, ``[groups, 1]``.
            limit: of k.
        """
        if isinstance(function, EnergyThreshold):
            return self._threshold(function, tail, limit)
        return self._smooth(function, tol, tail, limit)

    def accept(self, function: SpectralFunction, proposal: Proposal, chance: float) -> Projector:
        """Return T̂, whose bound is violated with a chance."""
        keep = slice(0, proposal.rank)
        vectors, values = self.vectors[:, :, keep], self.eigenvalues[:, keep]
        c, bound = proposal.complement, proposal.bound
        return low_rank("truncated", function, values, proposal.sigma, c, bound, vectors, chance)

    def _smooth(self, function: SmoothFunction, tol: float, tail: Tensor, limit: int) -> Proposal:
        least = self.eigenvalues[:, :1]
        nothing = torch.zeros_like(least)
        tails = self.tails(tail)
        highest = _block_norm(least, self.lengths[:, :1] + self.skew, tails[:, :1])
        upper = function.values(self.eigenvalues, self.smallest, highest).clamp(max=1.0)
        lower = function.values(self.eigenvalues, nothing, least)
        # One complement for all groups: what the largest tail asks for is within its term for the others too.
        floor = function.values(torch.minimum(tails, highest), nothing, least).amin(dim=0)
        lipschitz = function.lipschitz(self.smallest, least)
        blocks = torch.maximum(((upper - lower) / 2).cummax(dim=1).values, (1 - floor) / 2)
        blocks = blocks + lipschitz * self.skew + (1 + lipschitz * least) * self.rounding
        # ‖R_k‖_F serves to find k; ‖R_k‖₂ is smaller.
        bounds = (blocks + lipschitz * self.lengths.square().cumsum(dim=1).sqrt()).amax(dim=0)[:limit]
        fits = bounds <= tol
        place = int(fits.int().argmax()) if fits.any() else int(bounds.argmin())
        rank = place + 1
        bound = float((blocks[:, place, None] + lipschitz * _norm(self.gram[:, :rank, :rank])).amax())
        return Proposal(rank, (upper + lower)[:, :rank] / 2, float((1 + floor[place]) / 2), bound)

    def _threshold(self, function: EnergyThreshold, tail: Tensor, limit: int) -> Proposal:
        """‖sin Θ‖ ≤ ‖R_k‖/(Λ_k − μ_k), where k is proven to be the number that holds the share.

        ΣΛ_{1…k} ≤ Σλ_{1…k} ≤ ΣΛ_{1…k} + ‖R_k‖_* (Ky Fan; C is within R_k of its pinching), once Λ_k > μ_k.
        """
        asked = function.share * self.facts.trace
        noise = self.rounding * self.facts.trace
        held = self.eigenvalues.cumsum(dim=1)
        at_most = held + (self.lengths + 2 * self.skew).cumsum(dim=1) + noise
        enough = held - noise >= asked
        counts = torch.where(enough.any(dim=1), enough.int().argmax(dim=1) + 1, self.size + 1)[:, None]
        rank = int(counts.max())
        if rank > min(limit, self.size):
            return Proposal(0, held[:, :0], 1.0, torch.inf)
        place = counts - 1
        gap = (self.eigenvalues - self.tails(tail) - self.skew).gather(1, place)
        sure = (gap > 0) & ((place == 0) | (at_most.gather(1, (place - 1).clamp(min=0)) < asked))
        residual = self.lengths.square().cumsum(dim=1).sqrt().gather(1, place) + self.skew
        angle = residual / gap + self.rounding * (1 + self.eigenvalues[:, :1] / gap)
        sigma = (torch.arange(rank, device=counts.device) >= counts).double()  # σ = c = 1 where a group needs fewer
        return Proposal(rank, sigma, 1.0, float(torch.where(sure, angle, torch.inf).max()))


def tail_from_probes(C: Tensor, U: Tensor, generator: torch.Generator) -> Tensor:
    """Return a bound ``[groups, 1]`` on ‖E‖₂, E = (I − UUᵀ)C(I − UUᵀ), violated with FAILURE_PROBABILITY each.

    ‖E³‖₂ from E³G by :func:`norm_bound`, for Gaussian G that U has not seen; G is the same on every device.
    """
    image = _deflate(U, torch.randn(*C.shape[:2], PROBES, generator=generator, dtype=C.dtype).to(C.device))
    for _ in range(POWER):
        image = _deflate(U, torch.ops.igm_fast.tall_product(C, image))
    squares = torch.linalg.eigvalsh((image.double().mT @ image.double()).cpu()).clamp(min=0.0)
    bound: Tensor = norm_bound(torch.diag_embed(squares.sqrt()))
    return bound.pow(1 / POWER)[:, None]


def _deflate(U: Tensor, block: Tensor) -> Tensor:
    return torch.baddbmm(block, U, U.mT @ block, alpha=-1)


def _norm(gram: Tensor) -> Tensor:
    """‖R‖₂ ``[groups, 1]`` from RᵀR."""
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares[:, -1:].double().clamp(min=0.0).sqrt()


def _block_norm(first: Tensor, coupling: Tensor, second: Tensor) -> Tensor:
    """Norm of [[first, coupling], [coupling, second]], entries ≥ 0."""
    return (first + second) / 2 + ((first - second).square() / 4 + coupling.square()).sqrt()
