"""ReconBoost: modalities take turns as learners of one ensemble, each correcting what the others leave open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Method, Stage, alternating, at_least_two, check_range, together
from igm_fast.models.multimodal import Head


@dataclass
class ReconBoost(Method):
    """ReconBoost: modalities take turns as learners of one ensemble, then all are rectified together.

    C. Hua, Q. Xu, S. Bao, Z. Yang, Q. Huang, *ReconBoost: Boosting Can Achieve Modality Reconcilement*, ICML 2024. The
    ensemble is Z = b Σ zᵐ with one head shared by all modalities and a trained b. In its turn modality m minimises,
    with pᵐ = softmax(zᵐ) and q = softmax(b Σ_{j≠m} zʲ) of the others, which are constant:

        L = −(1/K) (weight − damping q[y]) log pᵐ[y] + agreement · mean_k (pᵐ_k − pˡ_k)²

    over K classes, pˡ being the learner of the turn before. Where the others are sure of the label, m learns less.
    After each turn everything, also b, minimises cross-entropy(Z, y). Prediction: softmax(Z).

    Of the E epochs each modality gets, E/(M+1) are its own turns and the others rectify: the authors' proportion of as
    many epochs of rectification after a turn as in it. Deviations from the authors' code: the agreement term has a
    gradient (there both sides are detached, so that it does nothing); learning starts from random weights, not from
    unimodal models trained before; every stage has a cosine and a fresh optimizer, as all methods in turns, there the
    rate falls tenfold every 30 stages; the head is one linear layer, as in ``mla``, there two; the best epoch is chosen
    on validation, there on test.

    Args:
        weight: weight of a sample on which the others give its label no probability.
        damping: by how much it is less where the others are sure of the label; at most weight.
        agreement: weight of the distance to the learner of the turn before.
    """

    name: ClassVar[str] = "reconboost"
    head: ClassVar[Head] = "boosted"
    weight: float = 5.0
    damping: float = 1.0
    agreement: float = 0.5

    def __post_init__(self) -> None:
        check_range(self.name, "weight", self.weight, above=0.0)
        for option in ("damping", "agreement"):
            check_range(self.name, option, getattr(self, option), least=0.0)
        if self.damping > self.weight:
            raise ValueError(
                f"{self.name}: damping is {self.damping}, expected at most weight, which is {self.weight}: beyond it a "
                "learner would unlearn what the others know"
            )

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        return at_least_two(self.name, available, "to boost one another")

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return turns, each followed by a stage that trains all; stages of no epoch are left out.

        >>> [(stage.trained, stage.epochs) for stage in ReconBoost().schedule(["a", "b"], 6, 2)]
        [('a', 1), ('a+b', 1), ('b', 1), ('a+b', 1), ('a', 1), ('a+b', 1), ('b', 1), ('a+b', 1)]
        """
        own = max(1, round(epochs / (len(modalities) + 1)))
        turns = alternating(modalities, own, min(rounds, own))
        shortest, longer = divmod(epochs - own, len(turns))
        stages: list[Stage] = []
        for place, turn in enumerate(turns):
            more = shortest + (place >= len(turns) - longer)  # the later turns: the run ends with all trained
            parts = [turn, *(together(modalities, more) if more else [])]
            stages += [replace(part, index=len(stages) + i, round=place) for i, part in enumerate(parts)]
        return stages

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the boosting loss in a turn, the ensemble's cross-entropy in a rectification."""
        if len(stage.modalities) > 1:
            return functional.cross_entropy(context.network(batch.inputs)["joint"], batch.labels)
        (learner,) = stage.modalities
        names = context.model.modalities
        with torch.no_grad():
            others = context.network(batch.inputs, [name for name in names if name != learner])
            rest = (context.model.boost_rate * torch.stack(list(others.values())).sum(dim=0)).softmax(dim=1)
        logits = context.network(batch.inputs, (learner,))[learner]
        certainty = rest.gather(1, batch.labels[:, None])[:, 0]
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        boosting = ((self.weight - self.damping * certainty) * losses).mean() / logits.shape[1]
        if stage.index == 0:  # no learner before
            return boosting
        before = others[names[names.index(learner) - 1]].softmax(dim=1)
        return boosting + self.agreement * functional.mse_loss(logits.softmax(dim=1), before)

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax(Z)."""
        return logits["joint"].softmax(dim=1)
