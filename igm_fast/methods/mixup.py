"""Mixup: a batch in which each sample is blended with another one, and the loss that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch


@dataclass(frozen=True)
class Mixed:
    """Inputs λx + (1 − λ)x′ of a batch, whose labels are y and those of x′ are y′."""

    inputs: dict[str, Tensor]
    labels: Tensor  # y [B]
    others: Tensor  # y′ [B]
    share: float = 1.0  # λ

    def loss(self, logits: Tensor) -> Tensor:
        """Return λ CE(z, y) + (1 − λ) CE(z, y′), a scalar."""
        own = functional.cross_entropy(logits, self.labels)
        if self.share == 1.0:
            return own
        return self.share * own + (1.0 - self.share) * functional.cross_entropy(logits, self.others)


def unmixed(batch: Batch) -> Mixed:
    """Return a batch as it is: λ = 1."""
    return Mixed(batch.inputs, batch.labels, batch.labels)


def mix(batch: Batch, modality: str, alpha: float, generator: np.random.Generator) -> Mixed:
    """Return a batch in which one modality is mixed up; token ids have no in-between and stay as they are.

    H. Zhang, M. Cisse, Y. Dauphin, D. Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, with one λ and
    one permutation per batch. Several devices share λ, and each blends the samples it has.

    Args:
        batch: to mix.
        modality: whose inputs; the others are left alone.
        alpha: λ ~ Beta(alpha, alpha).
        generator: draws λ, then the permutation that makes x′ of x.
    """
    samples = batch.inputs[modality]
    if not samples.is_floating_point():
        return unmixed(batch)
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(samples))).to(samples.device)
    blended = share * samples + (1.0 - share) * samples[order]
    return Mixed({**batch.inputs, modality: blended}, batch.labels, batch.labels[order], share)
