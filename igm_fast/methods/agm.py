"""AGM: joint training in which each modality's part of the logits passes back more or less of the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.batch_statistics import evaluation_flags
from igm_fast.methods.base import Batch, Context, Stage, at_least_two, check_range
from igm_fast.methods.contributions import shapley, subsets
from igm_fast.methods.joint import Fusion, Joint
from igm_fast.models import MultimodalModel

LARGEST_EXPONENT = 10.0  # of τ − r, before alpha


@dataclass
class Agm(Joint):
    """AGM: joint training in which the modality that is ahead of its usual lead passes back less gradient.

    H. Li, X. Li, P. Hu, Y. Lei, C. Li, Y. Zhou, *Boosting Multi-modal Model Performance with Adaptive Gradient
    Modulation*, ICCV 2023. F(S) are the joint logits when the inputs of modalities outside S are zero, F(∅) = 0, and
    zᵐ the Shapley value of m, so that Σ zᵐ = F(all); with two modalities zᵃ = ½[F(a,v) − F(v) + F(a)]. For each batch,
    with sᵐ = mean −log softmax(zᵐ)[y] and its mean ŝᵐ over all earlier steps:

        rᵐ = exp(M/(M−1) (s̄ − sᵐ)),   τᵐ = exp(M/(M−1) (mean of ŝ − ŝᵐ)),   κᵐ = exp(alpha min(τᵐ − rᵐ, 10))

    The loss is the cross-entropy of Σ zᵐ; on its way back into zᵐ the gradient is multiplied by κᵐ. When an entry of
    the head's gradient exceeds 1, all gradients are scaled to a common norm of at most ``clip``. Prediction:
    softmax(F(all)).

    As in the authors' code, batch norm is in evaluation mode wherever inputs are zero, and these passes are trained
    too. Deviations from it: features of single modalities are computed once for all S (two passes per encoder and one
    for a single zero sample, there four passes of the whole model); any number of modalities, equal to two at M = 2;
    κ = 1 in the first step, when there is no ŝ; no end of the modulation (there after 1500 epochs). The zero of tokens
    is padding. Unimodal scores in the metrics are those of the joint head's shares, as of ``joint``.

    Args:
        alpha: strength of the modulation.
        clip: norm to which gradients are scaled when the head's are large; 0 never does.
        fusion: how features meet; concat is one head on all of them, sum adds up the logits of a head each.
    """

    name: ClassVar[str] = "agm"
    fusion: Fusion = "concat"
    alpha: float = 1.5
    clip: float = 1.0
    surprise: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # ŝ [M] float64
    steps: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "alpha", self.alpha, least=0.0)
        check_range(self.name, "clip", self.clip, least=0.0)

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        return at_least_two(self.name, available, "to balance")

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy of Σ zᵐ, with κ waiting on the way back."""
        responses = self._responses(batch, context)
        truth = torch.stack([z.detach().softmax(dim=1).gather(1, batch.labels[:, None]) for z in responses.values()])
        surprise = -truth.double().clamp_min(1e-8).log().mean(dim=(1, 2))
        factors = self._factors(context.mean_over_devices(surprise * batch.weight))
        for z, factor in zip(responses.values(), factors.float().unbind(), strict=True):
            z.register_hook(lambda gradient, factor=factor: gradient * factor)
        total = torch.stack([responses[name] for name in stage.modalities]).sum(dim=0)
        return functional.cross_entropy(total, batch.labels)

    def modify(self, stage: Stage, context: Context) -> None:
        """Scale the gradients down when the head's are large."""
        if self.clip == 0.0:
            return
        gradients = [p.grad for p in context.model.parameters() if p.grad is not None]
        heads = [head.weight.grad for head in self._heads(stage, context.model) if head.weight.grad is not None]
        largest = torch.stack([gradient.abs().amax() for gradient in heads]).amax()
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        # No question is asked on the host, which would have to wait for the device.
        factor = torch.where(largest > 1, (self.clip / norm).clamp(max=1.0), 1.0)
        for gradient in gradients:
            gradient.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """Return ŝ and the number of steps it is the mean of."""
        return {"surprise": self.surprise, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over ŝ and its number of steps."""
        self.surprise, self.steps = state["surprise"], state["steps"]

    def _responses(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        """Return zᵐ ``[B, classes]`` of each modality, with their graphs."""
        model = context.model
        whole = context.network(batch.inputs)["joint"]
        with evaluation_flags(model):
            given = model.features(batch.inputs)
            zeros = model.features({name: torch.zeros_like(x[:1]) for name, x in batch.inputs.items()})
        names = model.modalities
        logits = {frozenset(names): whole, frozenset[str](): torch.zeros_like(whole)}
        for chosen in subsets(names)[1:-1]:
            features = {m: given[m] if m in chosen else zeros[m].expand_as(given[m]) for m in names}
            logits[chosen] = model.classify(features)["joint"]
        return shapley(logits, names)

    def _factors(self, surprise: Tensor) -> Tensor:
        """Return κ ``[M]`` of a batch's s ``[M]``, and take s into the running mean."""
        usual = surprise if self.surprise is None else self.surprise.to(surprise.device)
        difference = (_relative(usual) - _relative(surprise)).clamp(max=LARGEST_EXPONENT)
        self.steps += 1
        self.surprise = usual + (surprise - usual) / self.steps
        return torch.exp(self.alpha * difference)

    def _heads(self, stage: Stage, model: MultimodalModel) -> list[torch.nn.Linear]:
        if self.fusion == "concat":
            return [model.joint_head]
        heads = [model.branch(name).head for name in stage.modalities]
        parts = (part for head in heads if head is not None for part in head.modules())
        return [part for part in parts if isinstance(part, torch.nn.Linear)]


def _relative(surprise: Tensor) -> Tensor:
    """Return exp(M/(M−1) (s̄ − s)): how much less surprised than the others each modality is."""
    count = len(surprise)
    return torch.exp(count / (count - 1) * (surprise.mean() - surprise))
