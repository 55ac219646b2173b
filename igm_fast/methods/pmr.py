"""PMR: joint training in which modalities that are behind are also pulled towards the prototypes of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Stage, at_least_two, check_range, check_share
from igm_fast.methods.contributions import features_during, lead
from igm_fast.methods.joint import Fusion, Joint


@dataclass
class Pmr(Joint):
    """PMR: joint training that pulls slow modalities to their class prototypes.

    Y. Fan, W. Xu, H. Wang, J. Wang, S. Guo, *PMR: Prototypical Modal Rebalance for Multimodal Learning*, CVPR 2023. At
    the start of each epoch, with h the features in evaluation mode and old prototypes cᵒ:

        cᵐ_k ← (1 − memory) mean of hᵐ over class k + memory cᵒᵐ_k   (first epoch: the mean)
        qᵐ = softmax_k(−‖hᵐ − cᵐ_k‖),   Sᵐ = Σ_i qᵐ_i[y_i],   ρᵐ = Sᵐ / mean of the other S
        L = cross-entropy(z, y) + alpha Σ_m clip(1/ρᵐ − 1, 0, 1) mean −log qᵐ[y]  −  mu H(q of the modality ahead)

    The entropy term H, in the first epochs only, keeps the modality that is ahead from settling early.

    Deviations from the authors' code: weights as the paper has them, there a switch between 0 and alpha; the entropy
    term exists, there it does not (hence mu = 0); prototypes of the whole training set, there of a random tenth, whose
    classes without a sample make NaN (here such a class keeps its prototype, or has the mean of all samples); any
    number of modalities, there two (ρ is then that of the paper). A distance of zero has gradient zero.

    Args:
        alpha: weight of the prototype loss.
        memory: how much of the prototypes stays from one epoch to the next.
        mu: weight of the entropy term.
        entropy_share: share of the epochs, from the first on, that have the entropy term.
        fusion: how features meet; concat is one head on all of them, sum adds up the logits of a head each.
    """

    name: ClassVar[str] = "pmr"
    fusion: Fusion = "concat"
    alpha: float = 1.0
    memory: float = 0.2
    mu: float = 0.0
    entropy_share: float = 0.25
    prototypes: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # [M, classes, width]
    _keep_open: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "alpha", self.alpha, least=0.0)
        check_range(self.name, "mu", self.mu, least=0.0)
        check_share(self.name, "memory", self.memory)
        check_share(self.name, "entropy_share", self.entropy_share)

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        return at_least_two(self.name, available, "to balance")

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:
        """Move the prototypes to where the classes are now."""
        self._keep_open = self.mu > 0 and epoch / stage.epochs < self.entropy_share
        with context.measure("statistics"):
            sums, counts = self._sums(stage, context)
        means, present = sums / counts.clamp_min(1e-30), counts > 0
        old = self.prototypes
        if old is None:
            overall = (sums.sum(dim=1) / counts.sum())[:, None]
            self.prototypes = torch.where(present, means, overall)
        else:
            old = old.to(means.device)
            self.prototypes = torch.where(present, (1 - self.memory) * means + self.memory * old, old)

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the joint loss with the pull on those that are behind."""
        assert self.prototypes is not None
        with features_during(context.model) as features:
            joint = context.network(batch.inputs)["joint"]
        posteriors = [
            _posterior(features[name], prototypes)
            for name, prototypes in zip(stage.modalities, self.prototypes.unbind(), strict=True)
        ]
        truth = [posterior.detach().exp().gather(1, batch.labels[:, None]).sum() for posterior in posteriors]
        scores = context.mean_over_devices(torch.stack(truth))
        behind = (1 / lead(scores) - 1).clamp(0, 1)
        pulls = torch.stack([functional.nll_loss(posterior, batch.labels) for posterior in posteriors])
        loss = functional.cross_entropy(joint, batch.labels) + self.alpha * (behind * pulls).sum()
        if self._keep_open:
            entropies = torch.stack([-(p.exp() * p).sum(dim=1).mean() for p in posteriors])
            ahead = functional.one_hot(scores.argmax(), len(scores))
            loss = loss - self.mu * (ahead * entropies).sum()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the prototypes."""
        return {"prototypes": self.prototypes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the prototypes."""
        self.prototypes = state["prototypes"]

    def _sums(self, stage: Stage, context: Context) -> tuple[Tensor, Tensor]:
        """Return over the training set the features added up by class ``[M, classes, width]``, and ``[classes, 1]``."""
        sums, counts = torch.zeros(()), torch.zeros(())
        for batch in context.training_set():
            features = context.model.features(batch.inputs, stage.modalities)
            stacked = torch.stack([features[name].double() for name in stage.modalities])
            belongs = functional.one_hot(batch.labels, context.model.num_classes).double().T  # [classes, B]
            sums, counts = sums.to(stacked) + belongs @ stacked, counts.to(stacked) + belongs.sum(dim=1, keepdim=True)
        return context.mean_over_devices(sums).float(), context.mean_over_devices(counts).float()


def _posterior(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return log q ``[B, classes]`` of features ``[B, width]``."""
    # Not by way of products, which loses the small distances to rounding.
    distances = torch.cdist(features.float(), prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return (-distances).log_softmax(dim=1)
