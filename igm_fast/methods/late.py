"""Late fusion of independently trained models: what IGM is without its projector, the control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from igm_fast.methods.base import Method, Stage, alternating, check_range


@dataclass
class Late(Method):
    """Late fusion: every modality trains alone, predictions are averaged.

    Each branch minimises its own cross-entropy; p = mean over m of softmax(zᵐ). The stages, learning rates and batches
    are those of ``igm``: the two differ in the projector T (here T = I) and in nothing else. With rho > 0 it is the
    control "late fusion + SAM" (Foret et al. 2021): ω ← ω − η∇L(ω + rho g/‖g‖).

    The table of the IGM paper has no such row; without it one cannot tell what the projector adds to SAM and to
    averaging.

    Args:
        rho: radius of SAM; 0 is the plain optimizer.
    """

    name: ClassVar[str] = "late"
    rho: float = 0.0

    def __post_init__(self) -> None:
        check_range(self.name, "rho", self.rho, least=0.0)

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return the same stages as IGM."""
        return alternating(modalities, epochs, rounds)
