"""The route from a sketch: C was never formed. O(d k²) flops, O(d k) memory."""

from __future__ import annotations

import torch

from igm_fast.projector.base import Projector, identity, low_rank, rounding
from igm_fast.projector.functions import SmoothFunction
from igm_fast.sketch import FAILURE_PROBABILITY, Sketch


def sketched(sketch: Sketch, function: SmoothFunction) -> Projector:
    """Return T = f(Ĉ + (ε/2)I) from the Nyström approximation Ĉ ⪯ C, and its bound.

    With C = Ĉ + E, 0 ⪯ E ⪯ εI, the matrix Ĉ + (ε/2)I is within ε/2 of C, which costs Lε/2. λmax is between Λ₁ and
    Λ₁ + ε, λmin between 0 and what the trace leaves for the d − k directions outside of Ĉ; taking Λ₁ + ε/2 and 0 for
    them costs what f says of it:

        ‖T − T̂‖₂ ≤ Lε/2 + shift(max(ε/2, (tr C − tr Ĉ)/(d − k))) + rounding
    """
    eigenvalues, vectors = sketch.eigh()
    certain, likely = sketch.error(eigenvalues, vectors)
    if not (eigenvalues[:, 0] > 0).all():
        return identity("sketch", function, sketch.omega)
    epsilon = torch.minimum(certain, likely)[:, None]
    largest = eigenvalues[:, :1] + epsilon / 2
    nothing = torch.zeros_like(largest)
    smallest = certain[:, None] / (sketch.dim - eigenvalues.shape[1])
    lipschitz = function.lipschitz(nothing, largest)
    terms = lipschitz * epsilon / 2 + function.shift(nothing, largest, torch.maximum(epsilon / 2, smallest))
    sigma = function.values(eigenvalues + epsilon / 2, nothing, largest)
    # One complement for all groups: halfway between the extremes.
    complements = function.values(epsilon / 2, nothing, largest)
    low, high = float(complements.min()), float(complements.max())
    noise = (1 + float((lipschitz * largest).max())) * rounding(sketch.dim, sketch.image.dtype)
    bound = float(terms.max()) + (high - low) / 2 + noise
    chance = FAILURE_PROBABILITY * sketch.groups if bool((likely < certain).any()) else 0.0
    basis = vectors.to(sketch.image.dtype)
    return low_rank("sketch", function, eigenvalues, sigma, (low + high) / 2, bound, basis, chance)
