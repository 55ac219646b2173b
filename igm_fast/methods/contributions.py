"""What single modalities contribute in a model that trains them together: shared by the methods that balance them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from igm_fast.models import MultimodalModel

Ratio = Literal["mean", "sum"]


@contextmanager
def features_during(model: MultimodalModel) -> Iterator[dict[str, Tensor]]:
    """Collect what each encoder returns to the calls made inside: ``{modality: [B, width]}``, with its graph.

    With several devices only the whole network's forward may be called, which returns logits alone.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str, _encoder: object, _inputs: object, output: Tensor) -> None:
        features[name] = output

    hooks = [model.branch(name).encoder.register_forward_hook(partial(keep, name)) for name in model.modalities]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def chance_of_truth(logits: Tensor, labels: Tensor) -> Tensor:
    """Return Σ softmax(z)[y] over a batch, a scalar without gradient, for logits ``[B, classes]``."""
    probabilities = logits.detach().float().softmax(dim=1)
    return probabilities.gather(1, labels[:, None]).sum()


def lead(scores: Tensor, ratio: Ratio = "mean") -> Tensor:
    """Return ρ ``[M]``: each score by the mean (or the sum) of the others' scores; with two modalities the same.

    >>> lead(torch.tensor([1.0, 2.0, 6.0]))
    tensor([0.2500, 0.5714, 4.0000])
    """
    others = scores.sum() - scores
    if ratio == "mean":
        others = others / (len(scores) - 1)
    tiny = torch.finfo(scores.dtype).tiny
    return scores.clamp_min(tiny) / others.clamp_min(tiny)


def subsets(names: Sequence[str]) -> list[frozenset[str]]:
    """Return all sets of modalities, from none to all."""
    return [frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]


def shapley(worth: Mapping[frozenset[str], Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return φᵐ = Σ_{S∌m} |S|! (M−|S|−1)!/M! · (v(S∪m) − v(S)) for each modality, which add up to v(all) − v(∅).

    Args:
        worth: v, for each of :func:`subsets`.
        names: the modalities.

    >>> alone, both = torch.tensor(1.0), torch.tensor(2.0)  # a is right by itself and v is not, together they are right
    >>> v = {frozenset(): 0 * both, frozenset("a"): alone, frozenset("v"): 0 * alone, frozenset("av"): both}
    >>> shapley(v, ["a", "v"])
    {'a': tensor(1.5000), 'v': tensor(0.5000)}
    """
    values: dict[str, Tensor] = {}
    for name in names:
        without = [chosen for chosen in subsets(names) if name not in chosen]
        weights = [1 / (len(names) * math.comb(len(names) - 1, len(chosen))) for chosen in without]
        gains = [worth[chosen | {name}] - worth[chosen] for chosen in without]
        values[name] = torch.stack([weight * gain for weight, gain in zip(weights, gains, strict=True)]).sum(dim=0)
    return values
