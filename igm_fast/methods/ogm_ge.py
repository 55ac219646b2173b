"""OGM-GE: OGM with noise on the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from igm_fast.methods.ogm import Ogm


@dataclass
class OgmGe(Ogm):
    """OGM-GE: OGM with Gaussian noise that makes up for the gradient taken away.

    θᵐ ← θᵐ − η (kᵐ gᵐ + ε), ε ~ N(0, σ²) with σ the standard deviation of gᵐ, tensor by tensor; k, scope and epochs as
    in ``ogm``, whose citation and deviations hold here too. As in the authors' code, the modality that is not slowed
    down gets noise too. σ is that of the values themselves (divided by n, there by n − 1), so that it exists for
    tensors of one value.

    Args:
        alpha: how much a modality that is ahead is slowed; the authors use 0.8 for CREMA-D, 0.1 for VGGSound.
        begin: share of the epochs after which modulation and noise begin.
        end: share of the epochs after which they end.
        ratio: compare with the mean or with the sum of the other modalities; with two they are the same.
        scope: which tensors are modulated; weights has two and more dimensions, kernels are those of convolutions.
        fusion: how features meet; concat is one head on all of them, sum adds up the logits of a head each.
    """

    name: ClassVar[str] = "ogm-ge"
    noise: ClassVar[bool] = True
