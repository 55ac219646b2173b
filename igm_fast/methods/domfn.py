"""DOMFN: samples whose modalities agree train and use a joint head, the others the surest modality alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Method, Stage, check_range, check_share, together
from igm_fast.models.multimodal import Head


@dataclass
class Domfn(Method):
    """DOMFN: fusion where the modalities agree on a sample, the surest modality where they diverge.

    Y. Yang, J. Zhang, F. Gao, X. Gao, H. Zhu, *DOMFN: A Divergence-Orientated Multi-Modal Fusion Network for Resume
    Assessment*, ACM MM 2022. For each sample, with CE_m and pᵐ of modality m's own head, CE of the joint head and p̄ the
    mean of the pᵐ:

        dᵐ = max_k (pᵐ_k − p̄_k)²;   agree: dᵐ ≤ threshold · (1 − 1/M)² for all m
        L = Σ CE_m + [agree] (CE + Σ (½ CE_m² − η dᵐ))

    The first epochs train Σ CE_m alone. Prediction: softmax of the joint logits where the modalities agree, else pᵐ of
    the modality with the largest entry (the first of equal ones).

    The equations are those of the authors' code; the paper was not at hand. Deviations from it: softmax where that
    feeds sigmoid outputs to the cross-entropy as if they were logits; batches with a gate per sample, there batches of
    one; the gate is a share of the largest divergence that M modalities can have, there a number (0.5 · 0.8 = 0.4,
    which is the default 0.9 for M = 3, and which two modalities can never exceed); one optimizer and one cosine, there
    four optimizers, two of which get another one's learning rate or schedule; ties are decided.

    Args:
        threshold: divergence up to which a sample is fused; 1 is the largest there is.
        eta: reward for divergence among modalities that agree.
        warmup_share: share of the epochs that train the modalities' own heads only.
    """

    name: ClassVar[str] = "domfn"
    head: ClassVar[Head] = "both"
    threshold: float = 0.9
    eta: float = 0.5
    warmup_share: float = 0.13
    _warming_up: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_range(self.name, "threshold", self.threshold, above=0.0)
        check_range(self.name, "eta", self.eta, least=0.0)
        check_share(self.name, "warmup_share", self.warmup_share)

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage."""
        return together(modalities, epochs)

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:  # noqa: ARG002
        """Decide whether this epoch warms up."""
        self._warming_up = epoch < int(self.warmup_share * stage.epochs)

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the mean over samples of the gated loss."""
        logits = context.network(batch.inputs)
        own = torch.stack([logits[name] for name in stage.modalities])  # [M, B, classes]
        losses = torch.stack([functional.cross_entropy(z, batch.labels, reduction="none") for z in own])
        divergence = _divergence(own.softmax(dim=2))
        agree = self._agree(divergence.detach()) & (not self._warming_up)
        fused = functional.cross_entropy(logits["joint"], batch.labels, reduction="none")
        diverse = (0.5 * losses.square() - self.eta * divergence).sum(dim=0)
        # Times 0, not left out: with several devices every weight must have a gradient.
        return (losses.sum(dim=0) + agree * (fused + diverse)).mean()

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return the joint probabilities where the modalities agree, else those of the surest."""
        own = torch.stack([z for name, z in logits.items() if name != "joint"]).softmax(dim=2)  # [M, B, classes]
        surest = own.amax(dim=2).argmax(dim=0)
        alone = own[surest, torch.arange(len(surest), device=own.device)]
        agree = self._agree(_divergence(own))
        return torch.where(agree[:, None], logits["joint"].softmax(dim=1), alone)

    def _agree(self, divergence: Tensor) -> Tensor:
        """Return for each sample ``[B]`` whether no modality diverges too much, from ``[M, B]``."""
        largest = (1 - 1 / len(divergence)) ** 2  # all others are sure of one class, this one of another
        return (divergence <= self.threshold * largest).all(dim=0)


def _divergence(probabilities: Tensor) -> Tensor:
    """Return max over classes of (pᵐ − p̄)² ``[M, B]`` for probabilities ``[M, B, classes]``."""
    return (probabilities - probabilities.mean(dim=0)).square().amax(dim=2)
