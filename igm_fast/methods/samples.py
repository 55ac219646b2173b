"""What methods share that look at each training sample: a value per sample on every process, and random numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.methods.base import Batch, Context


def sample_values(context: Context, function: Callable[[Batch], Tensor]) -> Tensor:
    """Return ``[N, K]`` (float64, CPU): what a function gives for each training sample, the same on every process.

    Args:
        context: where the samples are; the model should be in evaluation mode, without gradients.
        function: ``[B, K]`` for a batch.
    """
    total = torch.zeros(0)
    for batch in context.training_set():
        assert batch.rows is not None
        # The last column counts the devices that hold the sample; it is 1 where sums are means over one device.
        values = functional.pad(function(batch).double(), (0, 1), value=1.0)
        if not len(total):
            total = values.new_zeros(context.samples, values.shape[1])
        total[batch.rows.to(values.device)] = values
    total = context.mean_over_devices(total).cpu()
    return total[:, :-1] / total[:, -1:]


def generator_of(shuffled: Tensor) -> torch.Generator:
    """Return a generator for ``Method.order``: it depends on what ``shuffled`` does, on every process alike."""
    return torch.Generator().manual_seed(zlib.crc32(shuffled.numpy().tobytes()))
