"""MLA: modalities take turns in every batch, meet in one shared head, whose gradient is kept off what it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Method, Stage, check_choice, check_range, together
from igm_fast.methods.contributions import features_during
from igm_fast.models.multimodal import Head

Form = Literal["paper", "official"]


@dataclass
class Mla(Method):
    """MLA: alternating unimodal adaptation with a shared head.

    X. Zhang, J. Yoon, M. Bansal, H. Yao, *Multimodal Representation Learning by Alternating Unimodal Adaptation*,
    CVPR 2024. For each batch, for each modality m in order, with the mean feature h̄ of the batch:

        θᵐ ← θᵐ − η ∇L_m,   W ← W − η ∇_W L_m P,   then   P ← P − (P h̄)(P h̄)ᵀ / (α + h̄ᵀ P h̄)

    P starts as I and equals (I + Σ h̄h̄ᵀ/α)⁻¹ for constant α. Prediction: softmax(Σ λᵐ zᵐ), λ = softmax(−entropy of pᵐ).

    Deviations from the authors' code: there P never reaches the gradient (it looks for a parameter name that does not
    occur), a matrix stands where the scalar h̄ᵀPh̄ is meant, P is divided by its norm in every step, and P takes in the
    present modality before projecting its gradient; here P is as published and updated after the step (as the equation
    protects *others*). Entropy is per sample over classes, not over the batch. As there: the head's bias is not
    projected, its momentum is shared, and it steps once per modality.

    ``form="official"`` does what that code does: nothing is projected, so that P and its other errors do not matter,
    and a modality has one weight λᵐ for a whole batch, from eᵐ = −Σ q log q over all entries of q, the softmax of zᵐ
    over the *samples* of the batch. It depends on how the test set is cut into batches. There all encoders read the
    batch before any of them steps; since a step leaves the others alone, the order makes no difference.

    Args:
        form: paper is the equation; official is what the authors' code does, without projection.
        alpha: regulariser of P at an epoch's start.
        alpha_decay: α is alpha · alpha_decay^(share of the epoch that has passed).
    """

    name: ClassVar[str] = "mla"
    head: ClassVar[Head] = "shared"
    form: Form = "paper"
    alpha: float = 0.1
    alpha_decay: float = 0.1
    projector: Tensor | None = field(default=None, init=False, repr=False)  # P [width, width] float64

    def __post_init__(self) -> None:
        check_choice(self.name, "form", self.form, get_args(Form))
        check_range(self.name, "alpha", self.alpha, above=0.0)
        check_range(self.name, "alpha_decay", self.alpha_decay, above=0.0)

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage: turns are taken within each batch."""
        return together(modalities, epochs)

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:
        """Train each modality once on the batch."""
        head = context.model.shared_head
        losses: dict[str, Tensor] = {}
        for name in stage.modalities:
            with features_during(context.model) as features:
                logits = context.network(batch.inputs, (name,))[name]
            loss = functional.cross_entropy(logits, batch.labels) * batch.weight
            context.backward(loss, name)
            if self.form == "paper":
                self._project(head)
            context.optimizer.step()
            context.optimizer.zero_grad()
            if self.form == "paper":
                mean = features[name].detach().mean(dim=0).double() * batch.weight
                self._protect(context.mean_over_devices(mean), self.alpha * self.alpha_decay**progress)
            losses[name] = loss.detach()
        return losses

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax(Σ λᵐ zᵐ); the surer a modality is of a sample, the more it counts."""
        stacked = torch.stack(list(logits.values()))  # [M, B, classes]
        if self.form == "paper":
            entropy = torch.special.entr(stacked.softmax(dim=2)).sum(dim=2, keepdim=True)
        else:
            entropy = torch.special.entr(stacked.softmax(dim=1)).sum(dim=(1, 2), keepdim=True)
        weights = (-entropy).softmax(dim=0)
        fused: Tensor = (weights * stacked).sum(dim=0)
        return fused.softmax(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Return P."""
        return {"projector": self.projector}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over P."""
        self.projector = state["projector"]

    def _project(self, head: nn.Linear) -> None:
        """Keep the head's gradient off what it knows."""
        if self.projector is None:
            # float64: thousands of rank-1 updates drive eigenvalues of P towards 0.
            self.projector = torch.eye(head.in_features, dtype=torch.float64)
        self.projector = self.projector.to(head.weight.device)  # also from a checkpoint, which is read onto the CPU
        assert head.weight.grad is not None
        head.weight.grad = head.weight.grad @ self.projector.to(head.weight.dtype)

    def _protect(self, mean: Tensor, alpha: float) -> None:
        """Take the direction of a mean feature out of P."""
        assert self.projector is not None
        direction = self.projector @ mean
        self.projector = self.projector - torch.outer(direction, direction) / (alpha + mean @ direction)
