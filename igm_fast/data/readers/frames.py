"""A few frames of a clip that lies on disk as a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from igm_fast.data.readers.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    decode_image,
    normalize,
    random_flip,
    random_resized_crop,
    resize,
)

SUFFIXES = (".jpg", ".jpeg", ".png")


def frame_names(folder: Path) -> list[str]:
    """Return the names of a folder's images in their order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


@dataclass(frozen=True)
class FramesReader:
    """Frames of a clip; source: the paths of its images, relative to the root, in their order.

    In training each frame is cropped and flipped at random by itself: a box of 8 to 100 % of the area, resized to
    the size asked for (bilinear), ImageNet's mean and standard deviation. In evaluation it is resized as a whole.

    Args:
        root: folder of the data set.
        count: frames of a sample. The clip is cut into as many equal segments: their centres in evaluation, a random
            place in each in training.
        first: take the first ``count`` frames instead, as the official code does.
        size: height and width, pixels.
    """

    root: Path
    count: int
    first: bool = False
    size: int = 224

    @property
    def parameters(self) -> str:
        """What decides a decoded frame."""
        return "frame RGB"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(3, size, size)`` of a single frame, ``(count, 3, size, size)`` of several."""
        return (3, self.size, self.size) if self.count == 1 else (self.count, 3, self.size, self.size)

    def choose(self, count: int, generator: torch.Generator | None) -> list[int]:
        """Return ``self.count`` ascending places out of ``count``; they repeat where a clip is shorter."""
        if self.first:
            return [min(place, count - 1) for place in range(self.count)]
        within = torch.full((self.count,), 0.5, dtype=torch.float64)
        if generator is not None:
            within = torch.rand(self.count, generator=generator, dtype=torch.float64)
        return [int((segment + share) * count / self.count) for segment, share in enumerate(within.tolist())]

    def load(self, source: str) -> Tensor:
        """Return one frame, uint8 ``[3, H, W]``."""
        return decode_image(self.root / source)

    def present(self, decoded: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
        """Return float32 ``[3, size, size]``, with ``[count]`` in front for several frames."""
        frames = torch.stack([self._sized(frame, generator) for frame in decoded])
        return normalize(frames, IMAGENET_MEAN, IMAGENET_STD).view(self.shape)

    def _sized(self, frame: Tensor, generator: torch.Generator | None) -> Tensor:
        size = (self.size, self.size)
        if generator is None:
            return resize(frame, size)
        return random_flip(random_resized_crop(frame, size, (0.08, 1.0), "bilinear", generator), generator)
