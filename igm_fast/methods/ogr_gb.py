"""OGR-GB: joint and unimodal losses, weighted by how well short trial runs on each of them generalise."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import (
    Batch,
    Context,
    Method,
    Selection,
    Stage,
    check_choice,
    check_range,
    check_share,
    together,
)
from igm_fast.methods.samples import generator_of, sample_values
from igm_fast.models.multimodal import Head

Predict = Literal["joint", "average"]


@dataclass
class OgrGb(Method):
    """OGR-GB: gradient blending by the overfitting-to-generalisation ratio.

    W. Wang, D. Tran, M. Feiszli, *What Makes Training Multi-Modal Classification Networks Hard?*, CVPR 2020. The loss
    is Σ_k w_k L_k over the joint head (k = 0) and each modality's own head. Every ``super_epoch`` epochs copies of the
    model train that long, each on one L_k alone. With mean losses Lᵀ on what they train on and Lⱽ on samples held out,
    before (n) and after (n'):

        G_k = Lⱽₙ − Lⱽₙ',   O_k = (Lⱽₙ' − Lᵀₙ') − (Lⱽₙ − Lᵀₙ),   w_k = max(G_k, 0)/max(O_k², s_k²),   Σ w = 1

    s_k is the standard error of O_k: without it, a head whose overfitting is too small to be seen in so few samples
    takes all the weight. Equal weights where nothing generalises. Prediction: softmax of the joint logits, or of the
    mean of all heads'. Trials make a run about three times as long: the joint copy is one, and one copy trains all own
    heads, which share no weight. They train at the learning rate at which the run stands.

    The held-out samples are a share of the training set that is never trained on; validation and test are not looked
    at. Deviations from BalanceBenchmark's code (the authors published none for this setting): losses are means, there
    sums over unequal numbers of batches; both are measured in evaluation mode, before the trial and after it, there
    after its first epoch and partly while training; what gets worse has weight 0, there |G|; unimodal losses have own
    heads, there the joint head with other inputs zero; it takes the test set for held-out samples where a data set has
    no validation set.

    Args:
        super_epoch: epochs from one trial to the next; as many as the run has: one trial, for the whole run.
        held_out: share of the training set on which generalisation is measured.
        predict: joint head, or average of all logits.
    """

    name: ClassVar[str] = "ogr-gb"
    head: ClassVar[Head] = "both"
    super_epoch: int = 8
    held_out: float = 0.1
    predict: Predict = "joint"
    weights: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # "joint" and the modalities

    def __post_init__(self) -> None:
        check_range(self.name, "super_epoch", self.super_epoch, least=1)
        check_range(self.name, "held_out", self.held_out, above=0.0)
        check_share(self.name, "held_out", self.held_out)
        check_choice(self.name, "predict", self.predict, get_args(Predict))

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage."""
        return together(modalities, epochs)

    def order(self, stage: Stage, epoch: int, shuffled: Tensor, context: Context) -> Selection:
        """Return the samples that are not held out; before a super-epoch, find the weights."""
        held = self._held_out(len(shuffled))
        trained = shuffled[~held[shuffled]]
        if epoch % self.super_epoch == 0:
            generator, epochs = generator_of(shuffled), min(self.super_epoch, stage.epochs - epoch)
            orders = [trained[torch.randperm(len(trained), generator=generator)] for _ in range(epochs)]
            trials = [self._trial(names, orders, context) for names in (["joint"], list(stage.modalities))]
            weights = blending_weights(torch.cat(trials, dim=1), held).tolist()
            self.weights = dict(zip(["joint", *stage.modalities], weights, strict=True))
        return Selection(trained)

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:  # noqa: ARG002
        """Return the weighted sum of the losses."""
        logits = context.network(batch.inputs)
        weighted = [self.weights[name] * functional.cross_entropy(z, batch.labels) for name, z in logits.items()]
        return torch.stack(weighted).sum()

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax of the joint logits or of the mean of all logits."""
        if self.predict == "joint":
            return logits["joint"].softmax(dim=1)
        return torch.stack(list(logits.values())).mean(dim=0).softmax(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the present super-epoch."""
        return {"weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the weights."""
        self.weights = dict(state["weights"])

    def _held_out(self, samples: int) -> Tensor:
        """Return which samples ``[N]`` are held out: the same ones in every run on these data."""
        count = max(1, round(self.held_out * samples))
        held = torch.zeros(samples, dtype=torch.bool)
        held[torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:count]] = True
        return held

    def _trial(self, names: Sequence[str], orders: Sequence[Tensor], context: Context) -> Tensor:
        """Train a copy of the model on some heads' losses; return by how much each sample's loss ``[N, K]`` grew."""
        twin = context.twin(copy.deepcopy(context.model))
        for group in twin.optimizer.param_groups:
            group["lr"] = context.optimizer.param_groups[0]["lr"]
        before = _losses(names, twin)
        twin.model.train()
        for rows in orders:
            for batch in twin.batches(Selection(rows)):
                logits = twin.network(batch.inputs)
                losses = {name: functional.cross_entropy(z, batch.labels) for name, z in logits.items()}
                # Times 0, not left out: with several devices every weight must have a gradient.
                loss = torch.stack([value * (name in names) for name, value in losses.items()]).sum()
                twin.backward(loss * batch.weight, "+".join(names))
                twin.optimizer.step()
                twin.optimizer.zero_grad()
        return _losses(names, twin) - before


def _losses(names: Sequence[str], context: Context) -> Tensor:
    """Return each sample's losses ``[N, K]`` under the named heads in evaluation mode, in which the model is left."""

    def losses(batch: Batch) -> Tensor:
        logits = context.network(batch.inputs)
        rows = [functional.cross_entropy(logits[name], batch.labels, reduction="none") for name in names]
        return torch.stack(rows, dim=1)

    context.model.eval()
    with torch.no_grad():
        return sample_values(context, losses)


def blending_weights(changes: Tensor, held: Tensor) -> Tensor:
    """Return w ``[K]``, which add up to 1; see :class:`OgrGb`.

    Args:
        changes: ``[N, K]``: by how much each sample's loss is larger after training on head k than before.
        held: ``[N]`` bool: the samples that were held out.

    >>> changes = torch.tensor([[-2.0, -2.0], [-2.0, -2.0], [-1.5, -1.0], [-1.5, -1.0]])
    >>> blending_weights(changes, torch.tensor([False, False, True, True]))  # G = 1½, 1 and O = ½, 1
    tensor([0.8571, 0.1429])
    """
    parts = changes[held], changes[~held]
    gains = [-part.mean(dim=0) for part in parts]
    overfitting = gains[1] - gains[0]
    resolution = torch.stack([part.var(dim=0, correction=0) / len(part) for part in parts]).sum(dim=0)
    tiny = torch.finfo(changes.dtype).tiny
    ratios = gains[0].clamp_min(0) / overfitting.square().maximum(resolution).clamp_min(tiny)
    return ratios / ratios.sum() if ratios.any() else torch.full_like(ratios, 1 / len(ratios))
