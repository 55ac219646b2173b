"""Mean and standard deviation of each channel over samples that come one after the other."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from igm_fast.data.dataset import Kind


def streamed_statistics(samples: Iterable[Tensor], kind: Kind) -> tuple[Tensor, Tensor]:
    """Return mean and scale, float32, shaped to broadcast over a sample.

    The scale is the standard deviation, or 1 for a channel that is constant. Sums are float64, merged sample by sample
    (Chan, Golub and LeVeque 1983), so that a large mean cancels nothing and memory holds one sample.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for sample in samples:
        values = sample.numpy()
        channel = values.ndim - 3 if kind == "image" else 0
        others = tuple(axis for axis in range(values.ndim) if axis != channel)
        own = values.mean(axis=others, dtype=np.float64, keepdims=True)
        added = ((values - own) ** 2).sum(axis=others, keepdims=True)
        size = values.size // own.size
        total = count + size
        squares = squares + added + (own - mean) ** 2 * (count * size / total)
        mean = mean + (own - mean) * (size / total)
        count = total
    deviation = np.sqrt(squares / max(count, 1))
    scale = np.where(deviation <= np.finfo(np.float32).eps * np.abs(mean), 1.0, deviation)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))
