"""Joint training with concatenated or added features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Method, Stage, check_choice, together
from igm_fast.models.multimodal import Head

Fusion = Literal["concat", "sum"]


@dataclass
class Joint(Method):
    """Joint training: one head on all features side by side, one loss.

    z = W[h¹; …; hᴹ] + b, L = cross-entropy(z, y), all encoders at once. The unimodal scores in the metrics are those of
    the shares Wᵐhᵐ + b/M, which add up to z and take no part in training. With fusion sum, z = Σ (Wᵐhᵐ + bᵐ): the same
    functions, but each modality has a bias and first weights of its own, and its share is a head of its own.

    One stage with one cosine over all epochs: there are no turns after which a restart would make sense.

    Args:
        fusion: how features meet; concat is one head on all of them, sum adds up the logits of a head each.
    """

    name: ClassVar[str] = "joint"
    head: ClassVar[Head] = "joint"
    fusion: Fusion = "concat"

    def __post_init__(self) -> None:
        check_choice(self.name, "fusion", self.fusion, get_args(Fusion))

    def heads(self) -> Head:
        """Return the head that the fusion asks for."""
        return "joint" if self.fusion == "concat" else "sum"

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage."""
        return together(modalities, epochs)

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of the joint logits."""
        return functional.cross_entropy(context.network(batch.inputs)["joint"], batch.labels)

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax(z)."""
        return logits["joint"].softmax(dim=1)
