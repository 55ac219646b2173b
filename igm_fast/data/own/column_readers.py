"""Readers of one's own files: arrays, numbers, images and videos of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from igm_fast.data.problems import BadFile
from igm_fast.data.readers.arrays import open_array, read_archive
from igm_fast.data.readers.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    decode_image,
    normalize,
    random_flip,
    random_resized_crop,
    resize,
)
from igm_fast.data.readers.video import sample_frames


@dataclass(frozen=True)
class NumbersReader:
    """A list of numbers as float32 ``[D]``; source: the list."""

    statistics: tuple[Tensor, Tensor] | None = None

    @property
    def parameters(self) -> str:
        """What decides the decoded numbers."""
        return "numbers"

    def load(self, source: Sequence[float]) -> Tensor:
        """Return float32 ``[D]``."""
        return torch.tensor(source, dtype=torch.float32)

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 - a Reader
        """Return the numbers, standardised."""
        return _standardized(decoded, self.statistics)


@dataclass(frozen=True)
class ArrayReader:
    """An array as float32; source: ``{"path"}``, with ``"key"`` and ``"row"`` where there are some."""

    root: Path
    statistics: tuple[Tensor, Tensor] | None = None
    cached: ClassVar[bool] = False

    @property
    def parameters(self) -> str:
        """What decides the decoded array."""
        return "array float32"

    def load(self, source: Any) -> Tensor:
        """Return float32 of the array's shape."""
        values = torch.from_numpy(np.array(read_source(self.root, source), dtype=np.float32))
        if not torch.isfinite(values).all():
            raise BadFile(self.root / source["path"], "holds NaN or infinite values", "Repair it, or delete the line")
        return values

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 - a Reader
        """Return the array, standardised."""
        return _standardized(decoded, self.statistics)


@dataclass(frozen=True)
class ImageReader:
    """An image under ImageNet's mean and standard deviation; source: its path.

    Args:
        root: folder of the table.
        size: height and width in pixels; the aspect is not kept.
        augment: in training a random box of 50 to 100 % of the area, flipped at random.
    """

    root: Path
    size: int
    augment: bool

    @property
    def parameters(self) -> str:
        """What decides the decoded image."""
        return f"image {self.size}"

    def load(self, source: str) -> Tensor:
        """Return uint8 ``[3, size, size]``."""
        return resize(decode_image(self.root / source), (self.size, self.size))

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return float32 ``[3, size, size]``."""
        if self.augment and generator is not None:
            box = random_resized_crop(decoded, (self.size, self.size), (0.5, 1.0), "bilinear", generator)
            decoded = random_flip(box, generator)
        return normalize(decoded, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class VideoReader:
    """Frames from the middles of equal segments, under ImageNet's mean and standard deviation; source: the path."""

    root: Path
    size: int
    frames: int

    @property
    def parameters(self) -> str:
        """What decides the decoded frames."""
        return f"video {self.frames} frames {self.size}"

    def load(self, source: str) -> Tensor:
        """Return uint8 ``[frames, 3, size, size]``."""
        return sample_frames(self.root / source, self.frames, (self.size, self.size))

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 - a Reader
        """Return float32 ``[frames, 3, size, size]``."""
        return normalize(decoded, IMAGENET_MEAN, IMAGENET_STD)


def read_source(root: Path, source: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the array that path, key and row name."""
    path = root / source["path"]
    array = read_archive(path, source["key"]) if "key" in source else open_array(path)
    if "row" not in source:
        return array
    if array.ndim == 0 or source["row"] >= len(array):
        what = f"has no row {source['row']}, its shape is {array.shape}"
        raise BadFile(path, what, "Correct the number in brackets; rows count from 0")
    row: np.ndarray[Any, Any] = np.asarray(array[source["row"]])
    return row


def _standardized(values: Tensor, statistics_of: tuple[Tensor, Tensor] | None) -> Tensor:
    if statistics_of is None:
        return values
    mean, scale = statistics_of
    return (values - mean) / scale
