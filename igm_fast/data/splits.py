"""Division of a data set into training, validation and test part, by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TRAIN_FRACTION = 0.60
VALIDATION_FRACTION = 0.15

# With this few groups (people, say) a draw within classes makes no sense: a person has all classes.
FEW_GROUPS = 50


class Split(NamedTuple):
    """Ascending sample indices of the three parts."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_indices(labels: NDArray[Any], seed: int, groups: NDArray[Any] | None = None) -> Split:
    """Draw 60 % training, 15 % validation and 25 % test samples; a group is never divided.

    Without groups the draw is stratified by class. Up to 50 groups are drawn as they are; more groups are drawn within
    the class that is most frequent in the group, so that all parts have similar class shares.

    Args:
        labels: ``[N]`` class numbers ≥ 0.
        seed: of ``numpy.random.RandomState``, 0 to 2³²−1: the same split on every machine.
        groups: ``[N]`` group of each sample (person, family of near-duplicates); None: every sample by itself.

    Raises:
        ValueError: lengths differ, the seed is out of range, or a part stays empty.
    """
    labels = np.asarray(labels)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected 0 to 2**32 - 1; choose another")
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups were given for {len(labels)} labels; give one group per sample")
    generator = np.random.RandomState(seed)  # its stream is fixed for ever, default_rng's is not
    names, member = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    home = np.zeros(len(names), np.int64)
    if len(names) > FEW_GROUPS or groups is None:
        counts = np.zeros((len(names), int(labels.max(initial=0)) + 1), np.int64)
        np.add.at(counts, (member, labels), 1)
        home = counts.argmax(axis=1)
    part_of_group = np.empty(len(names), np.int64)
    for label in np.unique(home):
        order = generator.permutation(np.flatnonzero(home == label))
        first = round(TRAIN_FRACTION * len(order))
        second = round((TRAIN_FRACTION + VALIDATION_FRACTION) * len(order))
        for part, chosen in enumerate((order[:first], order[first:second], order[second:])):
            part_of_group[chosen] = part
    split = Split(*(np.flatnonzero(part_of_group[member] == part) for part in range(3)))
    for name, indices in split._asdict().items():
        if len(indices) == 0:
            raise ValueError(
                f"the {name} part is empty: {len(labels)} samples in {len(names)} groups were given, expected enough "
                "for 60 % / 15 % / 25 %; give more samples or groups, or make the parts yourself"
            )
    return split


def hash_split(
    ids: Sequence[str], labels: Sequence[int], share: float = 0.1, groups: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut a validation part out of a training list by a fixed hash (sha256) of the ids, the same for every seed.

    Without groups the cut is stratified: each class with two samples or more gives up ``share`` of them, rounded, and
    at least one. With groups whole ones move, in the order of their hash, as long as that comes closer to ``share``.

    Args:
        ids: ``[N]`` name of each sample.
        labels: ``[N]`` class numbers.
        share: of the samples for validation.
        groups: ``[N]`` what must not be divided, such as a subject.

    Returns:
        Ascending rows of the training and of the validation part.
    """
    chosen = np.zeros(len(ids), bool)
    if groups is not None:
        members = np.asarray(groups)
        for group in sorted(set(groups), key=_hash)[:-1]:  # the last one stays: training is never empty
            more = chosen | (members == group)
            if chosen.any() and abs(more.sum() - share * len(ids)) > abs(chosen.sum() - share * len(ids)):
                break
            chosen = more
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)
    for label in sorted(set(labels)):
        rows = sorted((row for row in range(len(ids)) if labels[row] == label), key=lambda row: (_hash(ids[row]), row))
        if len(rows) > 1:
            chosen[rows[: max(1, round(share * len(rows)))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
