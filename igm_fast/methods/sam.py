"""Sharpness-aware minimisation of the joint loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from igm_fast.methods.base import check_range
from igm_fast.methods.joint import Fusion, Joint


@dataclass
class Sam(Joint):
    """SAM: joint training by the gradient at the worst point nearby.

    P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, *Sharpness-Aware Minimization for Efficiently Improving
    Generalization*, ICLR 2021; adaptive: J. Kwon et al., *ASAM*, ICML 2021. With g = ∇L(ω) over all weights together:

        ω ← ω − η ∇L(ω + ε),   ε = rho g/‖g‖;   adaptive: ε = rho ω² g/‖|ω| g‖, elementwise

    The loss is that of ``joint``. It is the row that says what flatness alone brings, without taking turns and without
    a projector.

    Deviations from the widely used code (davda54/sam): running statistics of batch norm see the first pass only; with
    several devices ε follows the averaged gradient. ASAM without the constant 0.01 beside |ω|.

    Args:
        rho: radius of SAM.
        adaptive: measure the radius relative to the weights (ASAM); radii of 0.5 to 2 are then usual.
        fusion: how features meet; concat is one head on all of them, sum adds up the logits of a head each.
    """

    name: ClassVar[str] = "sam"
    fusion: Fusion = "concat"
    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "rho", self.rho, above=0.0)

    def sam_options(self) -> dict[str, Any]:
        """Return how the radius is measured."""
        return {"adaptive": self.adaptive}
