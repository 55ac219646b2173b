"""Joint training with concatenated features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Method, Stage, together
from igm_fast.models.multimodal import Head


@dataclass
class Joint(Method):
    """Joint training: one head on all features side by side, one loss.

    z = W[h¹; …; hᴹ] + b, L = cross-entropy(z, y), all encoders at once. The unimodal scores in the metrics are those of
    the shares Wᵐhᵐ + b/M, which add up to z and take no part in training.

    One stage with one cosine over all epochs: there are no turns after which a restart would make sense.
    """

    name: ClassVar[str] = "joint"
    head: ClassVar[Head] = "joint"

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage."""
        return together(modalities, epochs)

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of the joint logits."""
        return functional.cross_entropy(context.network(batch.inputs)["joint"], batch.labels)

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax(z)."""
        return logits["joint"].softmax(dim=1)
