"""The exact covariance of a convolution by its lag plan (lag_plan.py): the products, and the blocks made of them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.lag_plan import LagPlan, Operand, Slice, Term, Triple, gaps, lag_plan, pairs_rows, phase_sizes
from igm_fast.ops.patches import Patches, Window

# Samples are taken in parts that are this large, or one by one; with the sums and differences of row pairs the
# workspace is six times that, about what L3 holds.
_PART_BYTES = 3 << 20


def add_lag_covariance(out: Tensor, patches: Patches, alpha: float, *, mirror: bool = True) -> None:
    """Add alpha·Σ u uᵀ to out [groups, d, d], symmetric on return if ``mirror``, else in the lower triangle alone."""
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
            mirror,
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


# ---- on a GPU --------------------------------------------------------------------------------------------------------

# Dynamic shared memory that a block may have, by compute capability, less one KiB for what is static.
_SHARED_BYTES = {(8, 0): 162 << 10, (8, 7): 162 << 10, (9, 0): 226 << 10, (10, 0): 226 << 10, (10, 3): 226 << 10}
_LEAST_SHARED_BYTES = 98 << 10
# More terms than this are borders of large kernels without padding, each of them a small product of its own.
_MOST_TERMS = 1024
# Products of patches must cost so much more: lags end in tiles and chunks that are not full, and write partial sums.
_MARGIN = 1.3
_TILE = 64  # channels of either side of a block, csrc/covariance/lag_product_params.hpp


def lags_pay_cuda(patches: Patches, dtype: torch.dtype) -> bool:
    """Return whether the lag form is faster on a GPU than products of patches, for sums of this dtype.

    Both are bound by the matrix unit, so multiply-adds are compared: Σ over the plan's terms of positions · channels²,
    channels rounded up to tiles, against patches · d²/2. Never for strides (an implicit product of patches reads no
    more there), float64 (matrix units are not used for it) and compute capabilities below 8.0.
    """
    window, input = patches.window, patches.input
    taps, channels = math.prod(window.kernel_size), input.shape[1] // patches.groups
    possible = (
        window.stride == (1, 1, 1)
        and 1 < taps <= 64
        and input.numel() > 0
        and dtype == torch.float32
        and input.dtype != torch.float64
        and max(patches.sizes) < 1 << 19
        and native.capability(input.device) >= (8, 0)
    )
    if not possible:
        return False
    plan = lag_plan(window, patches.sizes, in_row_pairs=False)
    by_lags = plan.positions * input.shape[0] * (math.ceil(channels / _TILE) * _TILE) ** 2
    by_patches = patches.count * (math.ceil(patches.dim / _TILE) * _TILE) ** 2 / 2
    return len(plan.terms) <= _MOST_TERMS and _MARGIN * by_lags < by_patches


def add_lag_covariance_cuda(out: Tensor, patches: Patches, alpha: float, *, mirror: bool = True) -> None:
    """Add alpha·Σ u uᵀ to float32 out [groups, d, d], symmetric on return if ``mirror``, else in the lower triangle.

    The input is float32, float16 or bfloat16 with stride 1 (see :func:`lags_pay_cuda`); a copy is made of one that is
    not channels-last. The first call for a geometry copies its plan to the device; a CUDA graph needs it before.
    """
    operand, launches = _channels_last(patches)
    window, groups, device = patches.window, patches.groups, patches.input.device
    channels = patches.input.shape[1] // groups
    strides = tuple(0 if size == 1 else step for size, step in zip(operand.shape, operand.stride(), strict=True))
    problem, workspace_floats = _problem(
        window,
        tuple(operand.shape[:4]),
        strides[:4],
        groups,
        strides[4],
        channels,
        operand.dtype,
        operand.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32,
        _multiprocessors(device),
        _SHARED_BYTES.get(native.capability(device), _LEAST_SHARED_BYTES),
    )
    first, sources = _tables(window, patches.sizes, device)
    workspace = torch.empty(workspace_floats, device=device)
    launches += problem.launches(
        operand.data_ptr(),
        workspace.data_ptr(),
        out.data_ptr(),
        first.data_ptr(),
        sources.data_ptr(),
        alpha,
        mirror,
    )
    native.launch("covariance by lags", launches, device)


def _channels_last(patches: Patches) -> tuple[Tensor, list[Any]]:
    """The input as [N, D, H, W, groups, channels] in steps of 16 bytes, channels adjacent; what copies it, if it must.

    A copy has zeros up to the next 16 bytes of channels.
    """
    input, groups = patches.input, patches.groups
    piece = 16 // input.element_size()
    view: Tensor = input.unflatten(1, (groups, -1)).permute(0, 3, 4, 5, 1, 2)
    steps = [step for size, step in zip(view.shape[:5], view.stride()[:5], strict=True) if size > 1]
    adjacent = view.stride(5) == 1 or view.shape[5] == 1
    if adjacent and view.shape[5] % piece == 0 and input.data_ptr() % 16 == 0 and not any(s % piece for s in steps):
        return view, []
    padded = math.ceil(view.shape[5] / piece) * piece
    copy = torch.empty(*view.shape[:5], padded, dtype=input.dtype, device=input.device)
    code = native.DTYPE_CODES[input.dtype]
    launch = native.module().stage_input_launch(
        input.data_ptr(), code, input.shape, input.stride(), groups, padded, copy.data_ptr()
    )
    return copy, [launch]


@lru_cache(maxsize=256)
def _problem(
    window: Window,
    shape: tuple[int, int, int, int],
    strides: tuple[int, int, int, int],
    groups: int,
    group_stride: int,
    channels: int,
    dtype: torch.dtype,
    tf32: bool,
    multiprocessors: int,
    shared_bytes: int,
) -> tuple[Any, int]:
    """Return what the native module plans launches from, and the floats of workspace that they need."""
    samples, *sizes = shape
    plan = lag_plan(window, (sizes[0], sizes[1], sizes[2]), in_row_pairs=False)
    terms = [(_coordinates(term.left), _coordinates(term.right), term.shift) for term in plan.terms]
    problem = native.module().LagProblem(
        terms,
        samples,
        sizes,
        [step * dtype.itemsize for step in strides],
        groups,
        group_stride * dtype.itemsize,
        channels,
        math.prod(window.kernel_size),
        native.DTYPE_CODES[dtype],
        tf32,
        multiprocessors,
        shared_bytes,
    )
    return problem, problem.workspace()


def _coordinates(operand: Operand) -> list[int]:
    assert isinstance(operand, Slice)
    return [-1 if coordinate is None else coordinate for coordinate in operand.held]


@lru_cache(maxsize=256)
def _tables(window: Window, sizes: Triple, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the plan's sources on the device: first and 4·term + 2·transposed + negative, int32."""
    plan = lag_plan(window, sizes, in_row_pairs=False)
    sources = 2 * plan.code + (plan.weight < 0)
    return plan.first.to(device, torch.int32), sources.to(device, torch.int32)


@lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
