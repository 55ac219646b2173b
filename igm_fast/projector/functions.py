"""Spectral functions: a projector is f(C) = U f(Λ) Uᵀ, and a method is the choice of f.

Each f falls from 1 on directions that the activations do not use to less on those that they do, and says what its
certificates need: how far f(C) moves when C does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatExponential:
    """f(λ) = exp(−τ(λ − λmin)/(λmax − λmin)), IGM (Jiang, Chi, Yang, IJCAI 2025): values in [e^{−τ}, 1].

    ‖e^{−A} − e^{−B}‖ ≤ ‖A − B‖ for A, B ⪰ 0 (Duhamel), so that the Lipschitz constant is τ/(λmax − λmin).
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau={self.tau}, expected a number > 0. The paper's is 0.4; for T = I use none")

    def values(self, eigenvalues: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
        """Return f(λ), increasing in λmin and λmax; 1 where λmax = λmin."""
        spread = (largest - smallest).clamp(min=0.0)
        share = torch.where(spread > 0, (eigenvalues - smallest) / spread, 0.0)
        return torch.exp(-self.tau * share)

    def lipschitz(self, smallest: Tensor, largest: Tensor) -> Tensor:
        """Return L: ‖f(A) − f(B)‖₂ ≤ L‖A − B‖₂ for A, B ⪰ λmin I, with both ends held fixed."""
        return self.tau / (largest - smallest)

    def shift(self, smallest: Tensor, largest: Tensor, moved: Tensor) -> Tensor:
        """Return a bound on |f(λ) − f̂(λ)| over the spectrum, f̂ having ends that are off by at most ``moved``.

        The exponents differ by a function linear in λ, hence most at an end; there by a·moved.
        """
        return torch.expm1(self.lipschitz(smallest, largest) * moved)


@dataclass(frozen=True)
class Exponential:
    """f(λ) = exp(−τλ): of a matrix that is scaled already, such as a mean of several (C − λmin I)/(λmax − λmin).

    The Lipschitz constant is τ, as for :class:`FlatExponential`; λmin and λmax are not in it.
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau={self.tau}, expected a number > 0. For T = I use no projector")

    def values(self, eigenvalues: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:  # noqa: ARG002
        """Return f(λ)."""
        return torch.exp(-self.tau * eigenvalues.clamp(min=0.0))

    def lipschitz(self, smallest: Tensor, largest: Tensor) -> Tensor:  # noqa: ARG002
        """Return L: ‖f(A) − f(B)‖₂ ≤ L‖A − B‖₂ for A, B ⪰ 0."""
        return torch.full_like(largest, self.tau)

    def shift(self, smallest: Tensor, largest: Tensor, moved: Tensor) -> Tensor:  # noqa: ARG002
        """Return 0: f does not depend on the ends of the spectrum."""
        return torch.zeros_like(largest)


@dataclass(frozen=True)
class RidgeComplement:
    """f(λ) = α/(α + λ), the P = (I + C/α)⁻¹ of OWM (Zeng et al. 2019) and MLA (Zhang et al., CVPR 2024).

    α/(α + A) − α/(α + B) = α (α + A)⁻¹(B − A)(α + B)⁻¹, so that the Lipschitz constant is 1/α. No λmin or λmax in it.
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(
                f"alpha={self.alpha}, expected a number > 0. It has the unit of C: a share of its largest eigenvalue"
            )

    def values(self, eigenvalues: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:  # noqa: ARG002
        """Return f(λ)."""
        return self.alpha / (self.alpha + eigenvalues.clamp(min=0.0))

    def lipschitz(self, smallest: Tensor, largest: Tensor) -> Tensor:  # noqa: ARG002
        """Return L: ‖f(A) − f(B)‖₂ ≤ L‖A − B‖₂ for A, B ⪰ 0."""
        return torch.full_like(largest, 1 / self.alpha)

    def shift(self, smallest: Tensor, largest: Tensor, moved: Tensor) -> Tensor:  # noqa: ARG002
        """Return 0: f does not depend on the ends of the spectrum."""
        return torch.zeros_like(largest)


@dataclass(frozen=True)
class EnergyThreshold:
    """f = 0 on the leading eigenvectors that hold ``share`` of tr C, 1 on the others: GPM (Saha, Garg, Roy, ICLR 2021).

    It jumps, so that no Lipschitz constant exists: what can be said of it hangs on the gap in the spectrum at the jump
    (Davis and Kahan, *The rotation of eigenvectors by a perturbation*, 1970: sin Θ ≤ ‖residual‖/gap).
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}, expected a number in (0, 1]. GPM uses 0.95 to 0.99")


SmoothFunction: TypeAlias = FlatExponential | Exponential | RidgeComplement
SpectralFunction: TypeAlias = SmoothFunction | EnergyThreshold

_FUNCTIONS: dict[str, type[SpectralFunction]] = {
    "flat_exponential": FlatExponential,
    "exponential": Exponential,
    "ridge_complement": RidgeComplement,
    "energy_threshold": EnergyThreshold,
}


def function_state(function: SpectralFunction) -> dict[str, Any]:
    """Return a name and numbers, for :func:`function_from_state`."""
    name = next(name for name, kind in _FUNCTIONS.items() if isinstance(function, kind))
    return {"name": name} | asdict(function)


def function_from_state(state: Mapping[str, Any]) -> SpectralFunction:
    """Return the function of a :func:`function_state`.

    Raises:
        ValueError: the name, or what comes with it, is not one of ours.
    """
    kind = _FUNCTIONS.get(state.get("name", ""))
    if kind is None or set(state) != {"name"} | {field.name for field in fields(kind)}:
        raise ValueError(f"spectral function {dict(state)}, expected one of {', '.join(_FUNCTIONS)} with its parameter")
    return kind(**{key: value for key, value in state.items() if key != "name"})
