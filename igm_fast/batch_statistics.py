"""Running statistics of batch norm: when they are used, and that they see the first pass of SAM only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_flags(module: nn.Module) -> Iterator[None]:
    """Put a module and all its parts into evaluation mode, gradients as they are; afterwards each part is as before."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


@contextmanager
def frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norm in training mode normalises with the batch as always, but what it records is thrown away.

    The second pass of SAM is made at ω + ε, weights that are never kept. The buffers ``running_mean``, ``running_var``
    and ``num_batches_tracked`` of every layer in training mode (batch and instance norm of any kind, and whatever uses
    these names) are exchanged for copies, and put back at the end, also after an exception. Nothing is written to the
    originals, so that backward may come later.
    """
    kept = [
        (layer, name, buffer)
        for layer in module.modules()
        if layer.training
        for name, buffer in layer.named_buffers(recurse=False)
        if name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    try:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer.clone())
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
