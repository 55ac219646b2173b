"""The route from a sketch: C was never formed. O(d k²) flops, O(d k) memory."""

from __future__ import annotations

import torch

from igm_fast.projector.base import Projector, identity, low_rank, rounding
from igm_fast.sketch import FAILURE_PROBABILITY, Sketch


def sketched(sketch: Sketch, tau: float) -> Projector:
    """Return T = e^{−aε/2} exp(−aĈ) from the Nyström approximation Ĉ ⪯ C, and its bound.

    With C = Ĉ + E, 0 ⪯ E ⪯ εI, the matrix Ĉ + (ε/2)I is within ε/2 of C, and ‖e^{−A} − e^{−B}‖ ≤ ‖A − B‖ for A, B ⪰ 0
    (Duhamel). λmax is between Λ₁ and Λ₁ + ε, λmin between 0 and what the trace leaves for the d − k directions outside
    of Ĉ; a = τ/(Λ₁ + ε/2) therefore moves the exponents by at most the second term:

        ‖T − T̂‖₂ ≤ aε/2 + a·max(ε/2, (tr C − tr Ĉ)/(d − k)) + rounding
    """
    eigenvalues, vectors = sketch.eigh()
    certain, likely = sketch.error(eigenvalues, vectors)
    largest = eigenvalues[:, 0]
    if not (largest > 0).all():
        return identity("sketch", tau, sketch.omega)
    epsilon = torch.minimum(certain, likely)
    a = tau / (largest + epsilon / 2)
    smallest = certain / (sketch.dim - eigenvalues.shape[1])
    terms = a * epsilon / 2 + a * torch.maximum(epsilon / 2, smallest)
    sigma = torch.exp(-a[:, None] * (eigenvalues + epsilon[:, None] / 2))
    # One complement for all groups: halfway between the extremes.
    complements = torch.exp(-a * epsilon / 2)
    low, high = float(complements.min()), float(complements.max())
    bound = float(terms.max()) + (high - low) / 2 + (1 + tau) * rounding(sketch.dim, sketch.image.dtype)
    chance = FAILURE_PROBABILITY * sketch.groups if bool((likely < certain).any()) else 0.0
    basis = vectors.to(sketch.image.dtype)
    return low_rank("sketch", tau, eigenvalues, sigma, (low + high) / 2, bound, basis, chance)
