"""Frames of one sample through a network for single pictures."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def mean_over_frames(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``network(x)`` for ``[B, C, H, W]``; frames ``[B, T, C, H, W]`` go one by one, features are averaged.

    Raises:
        ValueError: another number of dimensions.
    """
    if x.ndim == 5:
        features = network(x.flatten(0, 1))
        return features.reshape(x.shape[0], x.shape[1], features.shape[1]).mean(dim=1)
    if x.ndim != 4:
        raise ValueError(f"input has shape {tuple(x.shape)}, expected [B, C, H, W] or frames [B, T, C, H, W]")
    return network(x)
