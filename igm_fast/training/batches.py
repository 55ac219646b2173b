"""Which samples make which batch: a function of seed, round and epoch alone, so that a resumed run sees the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from igm_fast.data import MultimodalDataset
from igm_fast.methods.base import Batch


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process gets: samples ``rank``, ``rank + world``, …, moved to ``device``."""

    rank: int
    world: int
    device: torch.device


def derived_seed(*parts: object) -> int:
    """Return a seed that depends on all parts and differs for neighbouring ones (torch's generators accept 64 bits)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def shuffled(size: int, *seed_parts: object) -> Tensor:
    """Return a permutation of ``range(size)``."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(derived_seed("order", *seed_parts)))


def batches_per_epoch(size: int, batch_size: int, world: int) -> int:
    """Return how many batches :func:`training_batches` yields."""
    full, rest = divmod(size, batch_size)
    return full + (rest >= 2 * world)


def training_batches(
    dataset: MultimodalDataset, order: Tensor, batch_size: int, share: Share, kept: Tensor | None = None
) -> Iterator[Batch]:
    """Yield a process's share of each batch.

    A last batch with fewer than two samples per process is left out, since batch norm needs two. The weight makes the
    mean over processes of weighted mean losses the mean over all samples, also when their shares are unequal.

    Args:
        dataset: where the samples are.
        order: ``[N]`` int64, all processes' samples; they may repeat.
        batch_size: samples per batch, over all processes.
        share: this process's part.
        kept: ``[N, M]``, handed on with the samples.
    """
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        if len(rows) < 2 * share.world:
            return
        mine = slice(begin + share.rank, begin + len(rows), share.world)
        weight = len(order[mine]) * share.world / len(rows)
        yield _batch(dataset, order[mine], weight, share.device, None if kept is None else kept[mine])


def ordered_batches(dataset: MultimodalDataset, batch_size: int, share: Share) -> Iterator[Batch]:
    """Yield every sample of a process's share once, in order: for statistics and evaluation."""
    mine = torch.arange(len(dataset))[share.rank :: share.world]
    for rows in mine.split(batch_size):
        if len(rows):
            yield _batch(dataset, rows, 1.0, share.device)


def _batch(
    dataset: MultimodalDataset, rows: Tensor, weight: float, device: torch.device, kept: Tensor | None = None
) -> Batch:
    inputs, labels = dataset.__getitems__(rows)
    moved = {name: samples.to(device, non_blocking=True) for name, samples in inputs.items()}
    kept = None if kept is None else kept.to(device, non_blocking=True)
    return Batch(moved, labels.to(device, non_blocking=True), weight, rows, kept)
