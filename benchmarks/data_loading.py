"""How fast does a worker load samples? The five data sets on disk beside the plain loader of the authors' description.

Trees with files of realistic sizes (``benchmarks/data_trees.py``) are made in a temporary folder. A call loads a few
training samples, augmented anew, from files that the system has in memory: the processor's work is what is compared.
Ours in three ways: without a cache; into an empty cache (its files go before each call, outside of the time); out of a
full one. The peer (``benchmarks/plain_loading.py``) reads and decodes the same files with Pillow, soundfile and OpenCV.
All follow the authors' choice of frames, so that without augmentation their samples must agree; that is checked first.

Everyone has one thread, as a DataLoader's worker has. ``samples/s`` is per worker.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import DisagreementError, Facts, relative_error, require
from benchmarks.timing import OURS, Effort, Function, Record, compare
from igm_fast.data import DataOptions, LazyDataset, load_dataset

QUESTION = "training samples per second and worker from files, with and without cache, against a plain loader"

WAYS = {"data-loading": "no cache", "data-loading cold": "cold", "data-loading warm": "warm"}
PLAIN = "plain loader"
SAMPLES = {"crema-d": 4, "ksounds": 4, "twitter2015": 4, "sarcasm": 4, "nvgesture": 2}
NEEDED = {"soundfile": "media", "soxr": "media", "av": "media", "PIL": "media", "cv2": "flow"}
# Rounding of two libraries' Fourier transforms. Pictures differ by a grey level here and there: Pillow, OpenCV and
# torch each resize in fixed point of their own, and FFmpeg's builds differ where they turn YUV into RGB.
TOLERANCES = {"audio": 1e-5, "video": 1e-2, "image": 1e-2, "flow": 0.0, "depth": 2e-2, "rgb": 2e-2}


@dataclass(frozen=True)
class Ours:
    """Loads the same rows of a training part; each call is another epoch's augmentation."""

    data: LazyDataset
    rows: list[int]
    epochs: Iterator[int]
    cache: Path | None = None  # to be emptied before each call

    def __call__(self) -> dict[str, Tensor]:
        """Return the batch."""
        return self.data.augmented(next(self.epochs)).__getitems__(self.rows)[0]

    def prepare(self) -> None:
        """Take all files out of the cache, where the way asks for it; its 256 folders are made once in a data set."""
        if self.cache is not None:
            for path in self.cache.rglob("*"):
                if path.is_file():
                    path.unlink()


def run(effort: Effort) -> Iterator[Record]:
    """Measure the sets in turn.

    Raises:
        ImportError: a decoder is not installed.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        extras = ",".join(sorted({NEEDED[name] for name in missing}))
        raise ImportError(f"{', '.join(missing)} not installed: pip install 'igm_fast[{extras}]'")
    with _one_thread():
        for name in SAMPLES:
            with tempfile.TemporaryDirectory() as folder:
                yield from _measure(name, Path(folder), effort)


def ours(name: str, folder: Path, way: str, rows: list[int]) -> Ours:
    """Return our loader of a data set whose tree is in ``folder``; ``way`` is one of those in :data:`WAYS`."""
    cache = None if way == "no cache" else folder / way
    # The small encoder's tokenizer needs no vocabulary from elsewhere.
    encoders = {"text": "small"} if name in ("twitter2015", "sarcasm") else {}
    data = load_dataset(name, 0, DataOptions(folder / "tree", "official", cache=cache, encoders=encoders)).train
    assert isinstance(data, LazyDataset)
    return Ours(data, rows, count(), cache if way == "cold" else None)


def _measure(name: str, folder: Path, effort: Effort) -> Iterator[Record]:
    from benchmarks import data_trees, plain_loading

    root, rows = folder / "tree", list(range(SAMPLES[name]))
    data_trees.TREES[name](root, data_trees.SMALL if effort.scale == "quick" else data_trees.Sizes())
    load = plain_loading.LOADERS[name]
    ways = {record: ours(name, folder, way, rows) for record, way in WAYS.items()}
    data = ways["data-loading"].data
    sources = [data.samples[row] for row in rows]
    _check(name, data.__getitems__(rows)[0], plain_loading.batch(load, root, sources, augment=False))
    random.seed(0)
    records = compare(
        f"{name}, {len(rows)} samples",
        ours=ways,
        peers={PLAIN: lambda: plain_loading.batch(load, root, sources, augment=True)},
        agree=_same_shapes,
        effort=effort,
        timer=_timer,
    )
    for record in records:
        times = {OURS: record["ours_ms"], **record["peers"]}
        facts = {who: {**record["facts"][who], "samples_per_s": 1e3 * len(rows) / ms} for who, ms in times.items()}
        yield Record(**{**record, "facts": facts})


def _check(name: str, ours: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> None:
    for modality, theirs in plain.items():
        mine = ours[modality]
        if modality == "audio":  # where nothing sounds, the logarithm shows rounding only
            mine, theirs = mine.exp(), theirs.exp()
        error = relative_error(mine, theirs)
        require(f"{name}, {modality}", error, TOLERANCES[modality], "relative error of samples without augmentation")


def _same_shapes(results: Mapping[str, Any]) -> dict[str, Facts]:
    shapes = {name: tuple(x.shape) for name, x in results[PLAIN].items()}
    for who, batch in results.items():
        found = {name: tuple(batch[name].shape) for name in shapes}
        if found != shapes:
            raise DisagreementError(f"{who}: samples have shapes {found}, expected {shapes}")
    return {who: {} for who in results}


def _timer(function: Function, calls: int) -> float:
    """Milliseconds of one call, after its preparation; every sample is one call."""
    assert calls == 1
    if isinstance(function, Ours):
        function.prepare()
    began = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - began) / 1e6


@contextmanager
def _one_thread() -> Iterator[None]:
    import cv2

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
