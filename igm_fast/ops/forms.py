"""Which of the two exact forms a covariance takes: products of packed patches, or of single positions by lag.

The estimate counts what each form does and weighs it with the rates below. Only their proportions matter for the
choice; ``python -m benchmarks covariance`` compares the choice with the better form, as measured.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch

from igm_fast.ops.lag_plan import lag_plan, pairs_rows
from igm_fast.ops.lags import part_samples
from igm_fast.ops.patches import Patches, Window

Form = Literal["patches", "lags"]

# Rows of the sums that are updated together, up to the diagonal only: the smaller, the fewer products beyond it.
BLOCK_ROWS = 256
# With more taps the plan has too many blocks for its Python; such kernels are rare, and mostly depthwise.
MOST_TAPS = 64

# Nanoseconds on two AVX2 cores at float32.
_FLOP = 1 / 160  # of a large product
_OPERAND = 0.25  # per number that a product reads: what small ones cost
_PACKED = 0.4  # per number of a packed tile, of the spaced input and of sums of its rows
_ADDED = 0.3  # per number of the sums that a product updates
_MIRRORED = 1.2  # per number of C, once a call
_ASSEMBLED = 2.2  # per number of C, once a call in the lag form
_CALL = 30e3  # of a batched product, from Python
_PRODUCT = 3e3  # of each group in it


def choose_form(patches: Patches, dtype: torch.dtype) -> Form:
    """Return the cheaper form."""
    return _choose(tuple(patches.input.shape), patches.window, patches.groups, dtype)


@lru_cache(maxsize=1024)
def _choose(shape: tuple[int, ...], window: Window, groups: int, dtype: torch.dtype) -> Form:
    taps = math.prod(window.kernel_size)
    if taps == 1 or taps > MOST_TAPS:
        return "patches"
    patches = Patches(torch.empty(shape, device="meta"), window, groups)
    return "lags" if estimate_lags(patches, dtype) < estimate_patches(patches, dtype) else "patches"


def estimate_patches(patches: Patches, dtype: torch.dtype) -> float:
    """Return nanoseconds of the form that packs patches."""
    dim, count = patches.dim, patches.count
    rows = [min(BLOCK_ROWS, dim - first) for first in range(0, dim, BLOCK_ROWS)]
    entries = sum(size * (first * BLOCK_ROWS + size) for first, size in enumerate(rows))
    tiles = math.ceil(count / patches.tile_patches(0, dtype))
    calls = tiles * len(rows) * (_CALL / patches.groups + _PRODUCT)
    per_group = (
        2 * entries * count * _FLOP
        + dim * count * (_PACKED + 2 * _OPERAND)
        + tiles * entries * _ADDED
        + calls
        + dim**2 * _MIRRORED
    )
    return patches.groups * per_group


def estimate_lags(patches: Patches, dtype: torch.dtype) -> float:
    """Return nanoseconds of the form that multiplies single positions."""
    samples, channels = patches.input.shape[0], patches.input.shape[1] // patches.groups
    plan = lag_plan(patches.window, patches.sizes)
    parts = math.ceil(samples / part_samples(patches, dtype))
    positions = samples * plan.positions
    copies = 6 if pairs_rows(patches.window) else 1
    per_group = (
        2 * channels**2 * positions * _FLOP
        + 2 * channels * positions * _OPERAND
        + copies * patches.input.numel() / patches.groups * _PACKED
        + parts * len(plan.terms) * (channels**2 * _ADDED + _CALL / patches.groups + _PRODUCT)
        + patches.dim**2 * _ASSEMBLED
    )
    return patches.groups * per_group
