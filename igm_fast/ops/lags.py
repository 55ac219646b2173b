"""The exact covariance of a convolution by its lag plan (lag_plan.py): the products, and the blocks made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.lag_plan import LagPlan, Operand, Slice, Term, Triple, gaps, lag_plan, pairs_rows, phase_sizes
from igm_fast.ops.patches import Patches, Window

# Samples are taken in parts that are this large, or one by one; with the sums and differences of row pairs the
# workspace is six times that, about what L3 holds.
_PART_BYTES = 3 << 20


def add_lag_covariance(out: Tensor, patches: Patches, alpha: float) -> None:
    """Add alpha·Σ u uᵀ to out [groups, d, d], symmetric on return."""
    groups, dtype, window = patches.groups, out.dtype, patches.window
    channels = patches.input.shape[1] // groups
    plan = lag_plan(window, patches.sizes)
    products = torch.empty(groups, len(plan.terms), channels, channels, dtype=dtype)
    for number, part in enumerate(patches.input.split(part_samples(patches, dtype))):
        _add_products(products, plan, _Operands(part, window, groups, dtype), beta=float(number > 0))
    for sums, terms in zip(out, products, strict=True):
        native.module().add_lag_blocks(
            sums.data_ptr(),
            terms.data_ptr(),
            native.DTYPE_CODES[dtype],
            channels,
            math.prod(window.kernel_size),
            len(plan.terms),
            plan.first.data_ptr(),
            plan.code.data_ptr(),
            plan.weight.data_ptr(),
            alpha,
            torch.get_num_threads(),
        )


def _add_products(products: Tensor, plan: LagPlan, operands: _Operands, beta: float) -> None:
    """Products [groups, terms, C, C] ← beta·products + those of one part of the samples."""
    for index, term in enumerate(plan.terms):
        left, right = operands.aligned(term)
        torch.baddbmm(products[:, index], left, right.mT, beta=beta, out=products[:, index])


def part_samples(patches: Patches, dtype: torch.dtype) -> int:
    """Return how many samples are taken at once."""
    return max(1, _PART_BYTES // max(patches.input[:1].numel() * dtype.itemsize, 1))


class _Operands:
    """The sides of all products of one part of the samples, each made once: [groups, C, D, H, N, W], contiguous."""

    def __init__(self, input: Tensor, window: Window, groups: int, dtype: torch.dtype) -> None:
        self._input = input
        self._window = window
        self._groups = groups
        self._dtype = dtype
        self._made: dict[Operand, Tensor] = {}
        if pairs_rows(window):
            self._made.update(_row_pairs(self[Slice((0, 0, 0))]))

    def __getitem__(self, key: Operand) -> Tensor:
        if key not in self._made:
            assert isinstance(key, Slice)
            self._made[key] = self._spaced(key.phase) if key.held == (None, None, None) else self._held(key)
        return self._made[key]

    def aligned(self, term: Term) -> tuple[Tensor, Tensor]:
        """Return left and right [groups, C, positions], cut so that the shift is applied."""
        left, right = self[term.left], self[term.right]
        _, _, _, height, samples, width = left.shape
        step_z, step_y, step_x = term.shift
        shift = (step_z * height + step_y) * samples * width + step_x
        left, right = left.flatten(2)[:, :, max(-shift, 0) :], right.flatten(2)[:, :, max(shift, 0) :]
        length = min(left.shape[2], right.shape[2])  # what one of them has more meets zeros
        return left[:, :, :length], right[:, :, :length]

    def _spaced(self, phase: Triple) -> Tensor:
        """A phase of the input with zeros in the gaps.

        In this order of the dimensions a lag is one shift of all positions: what crosses the end of a row or plane
        meets the zeros.
        """
        (z, y, x), (by_z, by_y, by_x) = phase, self._window.stride
        part = self._input[:, :, z::by_z, y::by_y, x::by_x]
        samples, channels, *sizes = part.shape
        largest = phase_sizes(self._window, self._input.shape[2:])
        behind = [
            whole - size + gap for whole, size, gap in zip(largest, sizes, gaps(self._window, largest[0]), strict=True)
        ]
        if pairs_rows(self._window):
            behind[1] = 2 + sizes[1] % 2
        # Depth for samples, height for depth, samples for height: kernels of one entry, and zeros behind.
        moved = part.permute(2, 1, 3, 0, 4)
        spacing = Window((1, 1, 1), (1, 1, 1), (0, behind[2], 0, 0, 0, behind[1]), (1, 1, 1))
        positions = Patches(moved, spacing, self._groups)
        (tile,) = positions.tiles(positions.count, self._dtype)
        return tile.view(
            self._groups, channels // self._groups, sizes[0], sizes[1] + behind[1], samples, sizes[2] + behind[2]
        )

    def _held(self, key: Slice) -> Tensor:
        z, y, x = (slice(None) if q is None else slice(q, q + 1) for q in key.held)
        return self[Slice(key.phase)][:, :, z, y, :, x].contiguous()  # a copy where x is held


def _row_pairs(x: Tensor) -> dict[Operand, Tensor]:
    """Sums and differences of the rows of pairs, [groups, C, D, pairs, N, W]; x ends in a pair of zero rows."""
    a0, a1 = x[:, :, :, :-2:2], x[:, :, :, 1:-2:2]  # b0 and b1, too
    b2, b3 = x[:, :, :, 2::2], x[:, :, :, 3::2]
    return {
        "a0": a0.contiguous(),
        "a1": a1.contiguous(),
        "a0+a1": a0 + a1,
        "a0-a1": a0 - a1,
        "b2": b2.contiguous(),
        "b0-b2": a0 - b2,
        "b1+b2": a1 + b2,
        "b2-b1": b2 - a1,
        "b1-b3": a1 - b3,
        "b2-b3": b2 - b3,
    }
