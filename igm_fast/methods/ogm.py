"""OGM: while modalities train together, the encoder of the one that is ahead is slowed down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Stage, at_least_two, check_choice, check_range
from igm_fast.methods.contributions import Ratio, chance_of_truth, lead
from igm_fast.methods.joint import Fusion, Joint

Scope = Literal["weights", "kernels"]


@dataclass
class Ogm(Joint):
    """OGM: joint training in which the encoder that is ahead gets a smaller gradient.

    X. Peng, Y. Wei, A. Deng, D. Wang, D. Hu, *Balanced Multimodal Learning via On-the-fly Gradient Modulation*, CVPR
    2022. For each batch, with zᵐ the modality's share of the joint logits and sᵐ = Σ softmax(zᵐ)[y]:

        ρᵐ = sᵐ / mean of the other s;   kᵐ = 1 − tanh(alpha ρᵐ) if ρᵐ > 1, else 1;   θᵐ ← θᵐ − η kᵐ ∇L

    The head, biases and batch norm train as ever, and momentum sees the smaller gradient.

    Deviations from the authors' code: any number of modalities (two there: ρᵃ = sᵃ/sᵛ, as here; ratio sum is the form
    with which MLA's authors compare, and slows one modality at most). All encoder weights of two and more dimensions
    are modulated, there 4-dimensional ones: text encoders and small ones have none (scope kernels is closest). The
    epochs in which it works are shares of the run, there epochs 0 to 50 of 100. Nothing waits for the device.

    Args:
        alpha: how much a modality that is ahead is slowed; the authors use 0.8 for CREMA-D, 0.1 for VGGSound.
        begin: share of the epochs after which modulation begins.
        end: share of the epochs after which it ends.
        ratio: compare with the mean or with the sum of the other modalities; with two they are the same.
        scope: which tensors are modulated; weights has two and more dimensions, kernels are those of convolutions.
        fusion: how features meet; concat is one head on all of them, sum adds up the logits of a head each.
    """

    name: ClassVar[str] = "ogm"
    noise: ClassVar[bool] = False  # OGM-GE
    fusion: Fusion = "concat"
    alpha: float = 0.8
    begin: float = 0.0
    end: float = 0.5
    ratio: Ratio = "mean"
    scope: Scope = "weights"
    _active: bool = field(default=False, init=False, repr=False, compare=False)
    _coefficients: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # k [M]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "alpha", self.alpha, above=0.0)
        check_choice(self.name, "ratio", self.ratio, get_args(Ratio))
        check_choice(self.name, "scope", self.scope, get_args(Scope))
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise ValueError(
                f"{self.name}: begin is {self.begin} and end {self.end}, expected shares of the epochs with "
                "0 ≤ begin < end ≤ 1"
            )

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        return at_least_two(self.name, available, "to balance")

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:  # noqa: ARG002
        """Find out whether gradients are modulated in this epoch."""
        self._active = self.begin <= epoch / stage.epochs < self.end

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy of the joint logits; note how much each modality is ahead."""
        logits = context.network(batch.inputs)
        scores = torch.stack([chance_of_truth(logits[name], batch.labels) for name in stage.modalities])
        self._coefficients = self._slow_down(lead(context.mean_over_devices(scores), self.ratio))
        return functional.cross_entropy(logits["joint"], batch.labels)

    def modify(self, stage: Stage, context: Context) -> None:
        """Multiply the encoders' gradients by k, and add noise if the method does."""
        if not self._active:
            return
        assert self._coefficients is not None
        for name, k in zip(stage.modalities, self._coefficients.unbind(), strict=True):
            for gradient in self._modulated(name, context.model.branch(name).encoder):
                # As wide as the gradient that came, also where k leaves little of it.
                noise = torch.randn_like(gradient) * gradient.std(correction=0) if self.noise else None
                gradient.mul_(k)
                if noise is not None:
                    gradient.add_(noise)

    def _slow_down(self, rho: Tensor) -> Tensor:
        return torch.where(rho > 1, 1 - torch.tanh(self.alpha * rho), 1.0)

    def _modulated(self, name: str, encoder: nn.Module) -> list[Tensor]:
        """Return the gradients in scope."""
        least = 2 if self.scope == "weights" else 3
        gradients = [p.grad for p in encoder.parameters() if p.dim() >= least and p.grad is not None]
        if not gradients:
            raise ValueError(
                f"{self.name}: the encoder of {name} has no weight of scope {self.scope}, expected at least one; use "
                "--scope weights"
            )
        return gradients
