"""SMV: samples come again without the modalities that answer for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import (
    Batch,
    Context,
    Method,
    Selection,
    Stage,
    at_least_two,
    check_choice,
    check_range,
    check_share,
    together,
)
from igm_fast.methods.contributions import shapley, subsets
from igm_fast.methods.samples import generator_of, sample_values
from igm_fast.models.multimodal import Head

Level = Literal["sample", "modality"]


@dataclass
class Smv(Method):
    """SMV: samples are trained again on the modality that contributes little to them.

    Y. Wei, R. Feng, Z. Wang, D. Hu, *Enhancing Multimodal Cooperation via Sample-level Modality Valuation*, CVPR 2024.
    A set S of modalities is worth v(S) = |S| for a sample that the joint head, with the features of all others set to
    0, classifies rightly, else 0. Before each epoch, in evaluation mode, the Shapley value of modality m is

        φᵐ = Σ_{S∌m} |S|! (M−|S|−1)!/M! · (v(S∪m) − v(S));   M = 2: φᵃ = ½ (v(a) + v(av) − v(v))

    Level sample: the sample comes max(0, 2(1 − φᵐ)) more times (rounded) with the features of all modalities but m set
    to 0; for M = 2 once, twice, three times for φᵐ = ½, 0, −½. Level modality, with φ̄ᵐ the mean over all N samples:
    for each modality m worse than the best one, b, come ⌊⅔ (φ̄ᵇ − φ̄ᵐ) · strength · N⌋ random samples with m alone. The
    loss is the cross-entropy of the joint logits, which also predict. The first epochs are joint training.

    An epoch is longer by the added samples, at first several times: the budget is counted in epochs, not in steps. As
    in the authors' code the encoders run also where their feature is set to 0, and batch norm sees these samples.
    Deviations from it: contributions are taken without augmentation; φ̄ over all samples, there over a random fifth;
    the rules for M > 2, which the paper leaves open.

    Args:
        level: whether each sample, or each modality as a whole, decides what comes again.
        strength: how many samples level modality adds.
        warmup_share: share of the epochs before the first valuation.
    """

    name: ClassVar[str] = "smv"
    head: ClassVar[Head] = "joint"
    level: Level = "sample"
    strength: float = 1.0
    warmup_share: float = 0.09
    values: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # φ [N, M] of the present epoch

    def __post_init__(self) -> None:
        check_choice(self.name, "level", self.level, get_args(Level))
        check_range(self.name, "strength", self.strength, least=0.0)
        check_share(self.name, "warmup_share", self.warmup_share)

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        return at_least_two(self.name, available, "to value against one another")

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage."""
        return together(modalities, epochs)

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:
        """Value each modality for each sample."""
        self.values = None
        if epoch >= int(self.warmup_share * stage.epochs):
            with context.measure("statistics"):
                self.values = sample_values(context, lambda batch: _values(batch, context))

    def order(self, stage: Stage, epoch: int, shuffled: Tensor, context: Context) -> Selection:  # noqa: ARG002
        """Return all samples and, after the warm-up, those that come again, in one random order."""
        if self.values is None:
            return Selection(shuffled)
        generator = generator_of(shuffled)
        again, alone = repeated(self.values) if self.level == "sample" else self._drawn(self.values, generator)
        rows = torch.cat([shuffled, again])
        all_kept = torch.ones_like(self.values, dtype=torch.bool)
        kept = torch.cat([all_kept, functional.one_hot(alone, all_kept.shape[1]) > 0])
        mixed = torch.randperm(len(rows), generator=generator)
        return Selection(rows[mixed], kept[mixed])

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of the joint logits, made of the features that are kept."""
        if batch.kept is None:
            return functional.cross_entropy(context.network(batch.inputs)["joint"], batch.labels)
        mask = batch.kept.repeat_interleave(context.model.width, dim=1)
        # Features are set to 0 where they enter the head: with several devices only the whole network's forward may be
        # called.
        with context.model.joint_head.register_forward_pre_hook(lambda _head, inputs: inputs[0] * mask):
            logits = context.network(batch.inputs)["joint"]
        return functional.cross_entropy(logits, batch.labels)

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax(z)."""
        return logits["joint"].softmax(dim=1)

    def _drawn(self, values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random samples, and with which modality each comes again."""
        means = values.mean(dim=0)
        counts = (2 / 3 * (means.max() - means) * self.strength * len(values)).floor().long()
        drawn = torch.randint(len(values), (int(counts.sum()),), generator=generator)
        return drawn, torch.arange(len(counts)).repeat_interleave(counts)


def repeated(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return which samples come again and with which modality alone, each ``[R]``, for φ ``[N, M]``."""
    counts = (2 * (1 - values) + 0.5 + 1e-9).floor().long().clamp_min(0)  # thirds are not exact: halves round up
    again, alone = counts.nonzero(as_tuple=True)
    times = counts[again, alone]
    return again.repeat_interleave(times), alone.repeat_interleave(times)


def _values(batch: Batch, context: Context) -> Tensor:
    """Return φ ``[B, M]`` float64 of a batch: one pass through the encoders, one through the head for each set."""
    model = context.model
    features, worth = model.features(batch.inputs), {}
    for chosen in subsets(model.modalities):
        kept = {name: feature if name in chosen else torch.zeros_like(feature) for name, feature in features.items()}
        right = model.classify(kept)["joint"].argmax(dim=1) == batch.labels
        worth[chosen] = len(chosen) * right.double()
    return torch.stack(list(shapley(worth, model.modalities).values()), dim=1)
