"""IGM without SAM: the projector alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from igm_fast.methods.igm import Igm, Perturbation


@dataclass
class IgmNoSam(Igm):
    """IGM without sharpness-aware minimisation: the projector alone.

    ωᵃ ← ωᵃ − η ∇L(ωᵃ) T, with T as in ``igm``: the ablation row of the paper. One forward and backward pass per step.

    Args:
        tau: strength of the projector; eigenvalues of T lie in [exp(−tau), 1], and with 0 nothing is projected.
        mixup: plain trains on blends of two samples; official adds the loss of the blend against the first's label.
        mixup_alpha: shares of the blends are drawn from Beta(alpha, alpha).
        flat_ratio: weight of official mixup's added loss; the authors' code has none without its noise.
        layers: which layers are projected; none trains as without the projector.
        projector: flat is T above; mla is α/(α + Λ) in place of the exponential.
        alpha: of mla.
        partners: previous takes T from the modality trained just before, all from the mean of the exponents of all
            others trained so far.
        projected_targets: modalities whose gradient is projected, separated by commas; all is all.
        estimator: how C is measured; full is exact, sketch needs no d×d matrix, batch_mean is the authors'.
        statistics: pass measures C in an extra pass over the training set, in evaluation mode; ride during the last
            epoch of the modality's own turn, from the forward passes that training makes anyway.
        statistics_every: of ride: every n-th batch is looked at.
        centered: subtract the mean activation: variance instead of second moment.
        projector_method: how T is made of C; auto takes the cheapest route that keeps tol.
        tol: largest error of T, in operator norm, that truncated routes may leave.
        match: which layer of v is the partner of a layer of a; name is the safest.
    """

    name: ClassVar[str] = "igm-no-sam"
    rho: float = field(default=0.0, init=False)
    perturbation: Perturbation = field(default="full", init=False)
    every: int = field(default=1, init=False)
    noise_ratio: float = field(default=0.0, init=False)
    flat_ratio: float = 0.0
