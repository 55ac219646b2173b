"""Unimodal: one modality alone, the row to which every multimodal result is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from igm_fast.methods.base import Method, Stage, alternating
from igm_fast.names import nearest


@dataclass
class Unimodal(Method):
    """Unimodal training: encoder and head of one modality, cross-entropy.

    L = −(1/B) Σ log softmax(f(φ(x_i)))[y_i]; plain SGD or AdamW.

    Same encoder, head depth, epochs and restarts of the learning rate as the modality has in ``late``, and the same
    first weights and batches for the same seed: its result is bit for bit that branch of ``late``, up to the epoch
    that validation selects.

    Args:
        modality: which one; must be given.
    """

    name: ClassVar[str] = "unimodal"
    modality: str | None = None

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return the one modality."""
        if self.modality is None:
            raise ValueError(f"unimodal: no modality given, expected one of {', '.join(available)}; pass --modality")
        if self.modality not in available:
            raise ValueError(f"unimodal: {nearest(self.modality, available, 'modality')}")
        return [self.modality]

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return the rounds of the one modality."""
        return alternating(modalities, epochs, rounds)
