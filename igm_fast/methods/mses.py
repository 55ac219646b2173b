"""MSES: added logits; a modality whose validation loss has stopped falling goes back to its best epoch and rests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from igm_fast.methods.base import Batch, Context, Stage, check_range, check_share
from igm_fast.methods.joint import Fusion, Joint


@dataclass
class Mses(Joint):
    """MSES: additive fusion in which every modality stops early on its own.

    N. Fujimori, R. Endo, Y. Kawai, T. Mochizuki, *Modality-Specific Learning Rate Control for Multimodal
    Classification*, ACPR 2019. z = Σ zᵐ of one head each, one cross-entropy of z. After each epoch e, with the
    cross-entropy ℓᵐ of zᵐ alone on the validation split:

        ℓ̃ᵐ(e) = smoothing ℓᵐ(e−1) + (1 − smoothing) ℓᵐ(e)
        no new least ℓ̃ᵐ for more than ``patience`` epochs: encoder and head of m go back to that epoch and stay

    When all modalities rest nothing trains; the epochs that are left only measure.

    Deviations from the code of AGM's authors, the paper not being at hand: validation split, there test; only the
    modality that stops goes back, there the whole model and its optimizer; at rest means no gradient, no step and batch
    norm as it was, there a gradient of zero, under which weight decay and momentum go on; patience 5, there 80, which
    runs of some dozen epochs never reach.

    Args:
        patience: epochs without a new least loss that a modality is allowed.
        smoothing: weight of the epoch before in the loss that is compared.
    """

    name: ClassVar[str] = "mses"
    fusion: Fusion = field(default="sum", init=False)
    patience: int = 5
    smoothing: float = 0.6
    _before: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _least: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _least_epoch: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _weights: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _resting: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "patience", self.patience, least=0)
        check_share(self.name, "smoothing", self.smoothing)

    def attach(self, stage: Stage, context: Context) -> None:  # noqa: ARG002
        """Let those rest again that did before the run was resumed."""
        for name in self._resting:
            _rest(context, name)

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:
        """Train the modalities that do not rest; with none left, only measure the loss."""
        if len(self._resting) < len(stage.modalities):
            return super().step(stage, batch, progress, context)
        with torch.no_grad():
            return {"fused": self.loss(stage, batch, context) * batch.weight}

    def end_epoch(self, stage: Stage, epoch: int, scores: Mapping[str, Mapping[str, float]], context: Context) -> None:
        """Keep each modality's best weights; put those to rest that have not improved for too long."""
        for name in stage.modalities:
            if name in self._resting:
                continue
            loss, branch = scores[name]["loss"], context.model.branch(name)
            smooth = self.smoothing * self._before.get(name, loss) + (1 - self.smoothing) * loss
            self._before[name] = loss
            if name not in self._least or smooth < self._least[name]:
                self._least[name], self._least_epoch[name] = smooth, epoch
                self._weights[name] = {key: value.clone() for key, value in branch.state_dict().items()}
            elif epoch - self._least_epoch[name] > self.patience:
                branch.load_state_dict(self._weights.pop(name))
                self._resting.append(name)
                _rest(context, name)

    def state_dict(self) -> dict[str, Any]:
        """Return who rests, and of the others the last loss and the best weights."""
        return {
            "before": dict(self._before),
            "least": dict(self._least),
            "least_epoch": dict(self._least_epoch),
            "weights": {name: dict(weights) for name, weights in self._weights.items()},
            "resting": list(self._resting),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._before, self._least = dict(state["before"]), dict(state["least"])
        self._least_epoch, self._weights = dict(state["least_epoch"]), dict(state["weights"])
        self._resting = list(state["resting"])


def _rest(context: Context, name: str) -> None:
    """Keep every bit of a branch: no gradient, hence no step, no decay and no momentum; batch norm as it was."""
    branch = context.model.branch(name)
    branch.requires_grad_(False)
    branch.eval()
    for parameter in branch.parameters():
        parameter.grad = None
