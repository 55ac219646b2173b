"""Which samples make which batch: a function of seed, round and epoch alone, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from igm_fast.data import BadFile, LazyDataset, MultimodalDataset, PartDataset
from igm_fast.data.seeds import derived_seed
from igm_fast.methods.base import Batch

# A batch that is only looked at holds at most this many bytes of a data set that is read from files.
ORDERED_BATCH_BYTES = 2**27

Loaded = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process gets: samples ``rank``, ``rank + world``, …, moved to ``device``."""

    rank: int
    world: int
    device: torch.device


def shuffled(size: int, *seed_parts: object) -> Tensor:
    """Return a permutation of ``range(size)``."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(derived_seed("order", *seed_parts)))


def batches_per_epoch(size: int, batch_size: int, world: int) -> int:
    """Return how many batches :func:`training_batches` yields."""
    full, rest = divmod(size, batch_size)
    return full + (rest >= 2 * world)


def training_batches(
    dataset: PartDataset,
    order: Tensor,
    batch_size: int,
    share: Share,
    kept: Tensor | None = None,
    *,
    key: tuple[object, ...] = (),
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield a process's share of each batch, augmented where the data set augments.

    A last batch with fewer than two samples per process is left out, since batch norm needs two. The weight makes the
    mean over processes of weighted mean losses the mean over all samples, also when their shares are unequal.

    Args:
        dataset: where the samples are.
        order: ``[N]`` int64, all processes' samples; they may repeat.
        batch_size: samples per batch, over all processes.
        share: this process's part.
        kept: ``[N, M]``, handed on with the samples.
        key: decides the augmentation beside the data set's seed: what tells this pass over the data from others.
        workers: processes that read the files; what they read does not depend on their number.

    Raises:
        BadFile: a file cannot be used.
    """
    slices, weights = [], []
    for begin in range(0, len(order), batch_size):
        count = min(batch_size, len(order) - begin)
        if count < 2 * share.world:
            break
        slices.append(slice(begin + share.rank, begin + count, share.world))
        weights.append(len(order[slices[-1]]) * share.world / count)
    if isinstance(dataset, LazyDataset):
        dataset = dataset.augmented(*key)
    rows = [order[mine] for mine in slices]
    for mine, weight, own, loaded in zip(slices, weights, rows, _load(dataset, rows, share, workers), strict=True):
        yield _batch(loaded, own, weight, share.device, None if kept is None else kept[mine])


def ordered_batches(dataset: PartDataset, batch_size: int, share: Share, *, workers: int = 0) -> Iterator[Batch]:
    """Yield every sample of a process's share once, in order, without augmentation: for statistics and evaluation.

    Batches of a data set that is read from files are smaller where ``batch_size`` samples are more than 128 MiB.

    Raises:
        BadFile: a file cannot be used.
    """
    mine = torch.arange(len(dataset))[share.rank :: share.world]
    if len(mine) == 0:
        return
    if not isinstance(dataset, MultimodalDataset):
        sample, _ = dataset[0]
        size = sum(x.numel() * x.element_size() for x in sample.values())
        batch_size = max(1, min(batch_size, ORDERED_BATCH_BYTES // size))
    rows = mine.split(batch_size)
    for own, loaded in zip(rows, _load(dataset, rows, share, workers), strict=True):
        yield _batch(loaded, own, 1.0, share.device)


def _load(dataset: PartDataset, rows: Sequence[Tensor], share: Share, workers: int) -> Iterator[Loaded]:
    """Yield the samples of each set of rows, in their order."""
    if isinstance(dataset, MultimodalDataset):
        yield from map(dataset.__getitems__, rows)
        return
    loader: DataLoader[Loaded | BadFile | OSError] = DataLoader(
        _Fetch(dataset),
        batch_sampler=[own.tolist() for own in rows],
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=share.device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a seed, which must not come from the global generator
    )
    for loaded in loader:
        if isinstance(loaded, Exception):
            raise loaded
        yield loaded


class _Fetch(Dataset["Loaded | BadFile | OSError"]):
    """Hands what goes wrong with a file over as a value: the loader would wrap it in the worker's traceback."""

    def __init__(self, dataset: PartDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, rows: list[int]) -> Loaded | BadFile | OSError:
        try:
            return self.dataset.__getitems__(rows)
        except (BadFile, OSError) as error:
            return error


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _batch(loaded: Loaded, rows: Tensor, weight: float, device: torch.device, kept: Tensor | None = None) -> Batch:
    inputs, labels = loaded
    moved = {name: samples.to(device, non_blocking=True) for name, samples in inputs.items()}
    kept = None if kept is None else kept.to(device, non_blocking=True)
    return Batch(moved, labels.to(device, non_blocking=True), weight, rows, kept)
