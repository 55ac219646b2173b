"""The patches of a layer's input: what is checked about them, how many there are, and how they are packed.

u is what one output position of the layer sees: the row of a linear layer's input, or the zero-padded patch of a
convolution's, ordered (channel, depth, row, column) as by ``torch.nn.functional.unfold``; d is its length. Inside,
every input is a volume [N, C, D, H, W]: images have depth 1, linear layers a 1×1×1 kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.precision import tf32_allowed
from igm_fast.ops.update_checks import refuse

# A tile that stays in L2 or L3 between packing and product. At least 256 patches of any size: with fewer, reading and
# writing the d×d sums would take longer than the products.
_TILE_BYTES = 4 << 20
_MIN_TILE_PATCHES = 256
# On a GPU. Partial sums of as many blocks as the largest ones keep busy, twice: 1024 tiles of 64×64, 409 of 128×80.
_PARTIAL_BYTES = 16 << 20
# Z of a run of positions: with the samples that it is made of it stays in the L2 of data-centre GPUs (40 MB and more).
_IMAGE_BYTES = 16 << 20
# Positions are 32-bit numbers on the device.
_RUN_POSITIONS = 1 << 30
_AXES = {2: "H, W", 3: "D, H, W"}


@dataclass(frozen=True)
class Window:
    """How a convolution's kernel moves over a volume; one entry per axis (depth, height, width)."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]  # left, right, top, bottom, front, back
    dilation: tuple[int, ...]

    def around(self, axis: int) -> tuple[int, int]:
        """Return the padding before and after an axis."""
        last_first = 2 * (2 - axis)
        return self.padding[last_first], self.padding[last_first + 1]

    def span(self, axis: int) -> int:
        """Return how many entries of an axis the kernel covers."""
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1


@dataclass(frozen=True)
class Patches:
    """The patches of one input: what they are taken from, how many there are and how long (d) per group."""

    input: Tensor  # [N, C, D, H, W]
    window: Window
    groups: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Depth, height and width of the input."""
        _, _, depth, height, width = self.input.shape
        return depth, height, width

    @property
    def output_size(self) -> tuple[int, ...]:
        """Output depth, height and width."""
        window, sizes = self.window, self.input.shape[2:]
        return tuple(
            (sizes[axis] + sum(window.around(axis)) - window.span(axis)) // window.stride[axis] + 1 for axis in range(3)
        )

    @property
    def count(self) -> int:
        """Samples times output positions."""
        return self.input.shape[0] * math.prod(self.output_size)

    @property
    def dim(self) -> int:
        """d, per group."""
        return self.input.shape[1] // self.groups * math.prod(self.window.kernel_size)

    def task(self, sums: torch.dtype, columns: int) -> Any:
        """Return what native functions for GPUs are told: the patches, the dtype of the sums, columns of Ω (or 0)."""
        x, window = self.input, self.window
        major, minor = native.capability(x.device)
        return native.module().PatchTask(
            x.data_ptr(),
            native.DTYPE_CODES[x.dtype],
            x.shape,
            x.stride(),
            window.kernel_size,
            window.stride,
            window.padding,
            window.dilation,
            self.groups,
            native.DTYPE_CODES[sums],
            columns,
            10 * major + minor,
            tf32_allowed(),
            (_PARTIAL_BYTES, _IMAGE_BYTES, _RUN_POSITIONS),
        )

    def tile_patches(self, columns: int, dtype: torch.dtype) -> int:
        """Patches in a tile: as many as fit into the workspace, `columns` further numbers each included."""
        per_patch = self.groups * (self.dim + columns) * dtype.itemsize
        return min(self.count, max(_MIN_TILE_PATCHES, _TILE_BYTES // max(per_patch, 1)))

    def tiles(self, count: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """All patches as tiles [groups, d, ≤ count]; each overwrites the one before."""
        pack, dim, patches = native.module().pack_patches, self.dim, self.count
        workspace = torch.empty(self.groups * dim * count, dtype=dtype)
        for first in range(0, patches, count):
            size = min(count, patches - first)
            pack(
                self.input.data_ptr(),
                native.DTYPE_CODES[self.input.dtype],
                self.input.shape,
                self.input.stride(),
                self.window.kernel_size,
                self.window.stride,
                self.window.padding,
                self.window.dilation,
                first,
                size,
                workspace.data_ptr(),
                native.DTYPE_CODES[dtype],
                torch.get_num_threads(),
            )
            yield workspace[: self.groups * dim * size].view(self.groups, dim, size)


def check_input(op: str, input: Tensor) -> None:
    """Refuse an input whose dtype has no kernel."""
    if input.dtype not in native.DTYPE_CODES:
        way_out = "Convert it with .float()."
        raise refuse(op, f"input is {input.dtype}", "float64, float32, float16 or bfloat16", way_out)


def check_written(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    """Refuse a tensor that sums cannot be written to."""
    if tuple(tensor.shape) != shape:
        raise refuse(op, f"{name} has shape {tuple(tensor.shape)}", str(shape), f"Allocate it with torch.zeros{shape}.")
    if dtype is None and tensor.dtype not in (torch.float32, torch.float64):
        raise refuse(op, f"{name} is {tensor.dtype}", "float32 or float64", "Sums need a wide type.")
    if dtype is not None and tensor.dtype != dtype:
        raise refuse(op, f"{name} is {tensor.dtype}", str(dtype), "Keep all sums and omega in one dtype.")
    if not tensor.is_contiguous():
        given = f"{name} has strides {tensor.stride()}"
        raise refuse(op, given, "a contiguous tensor, since it is written in place", "Use .contiguous().")


def check_devices(op: str, input: Tensor, **others: Tensor) -> None:
    """Refuse tensors that are not on the input's device; only CUDA tensors can be mixed with those of another."""
    for name, tensor in others.items():
        if tensor.device != input.device:
            given = f"{name} is on {tensor.device}"
            raise refuse(op, given, f"{input.device} as input", "Move one of them with .to(device).")


def conv_patches(
    op: str,
    axes: int,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Patches:
    """Check the geometry of a convolution with 2 or 3 axes and return its patches."""
    check_input(op, input)
    if input.dim() != 2 + axes:
        way_out = "Unsqueeze a single sample, or view a sequence as images of height 1."
        raise refuse(op, f"input has shape {tuple(input.shape)}", f"[N, C, {_AXES[axes]}]", way_out)
    lengths = {"kernel_size": (kernel_size, axes, 1), "stride": (stride, axes, 1), "dilation": (dilation, axes, 1)}
    lengths["padding"] = (padding, 2 * axes, 0)
    for name, (values, length, least) in lengths.items():
        if len(values) != length or any(value < least for value in values):
            order = ("(left, right, top, bottom", "(height, width)") if axes == 2 else ("(left, … back", "(depth, …)")
            given = f"{name}={tuple(values)}"
            expected = f"{length} integers {order[0] + ')' if name == 'padding' else order[1]} >= {least}"
            raise refuse(op, given, expected, "See igm_fast.layers.conv_geometry.")
    channels = input.shape[1]
    if groups < 1 or channels % groups:
        given = f"groups={groups} for {channels} channels"
        raise refuse(op, given, "a divisor of the channels", "Use the layer's own groups.")
    flat = (1,) * (3 - axes)
    window = Window((*flat, *kernel_size), (*flat, *stride), (*padding, 0, 0)[:6], (*flat, *dilation))
    patches = Patches(input if axes == 3 else input.unsqueeze(2), window, groups)
    padded = [patches.input.shape[2 + axis] + sum(window.around(axis)) for axis in range(3)]
    span = [window.span(axis) for axis in range(3)]
    if any(padded[axis] < span[axis] for axis in range(3)):
        given = f"padded input {'×'.join(map(str, padded[3 - axes :]))}"
        covered = f"what kernel {tuple(kernel_size)} covers at dilation {tuple(dilation)}"
        expected = f"at least {'×'.join(map(str, span[3 - axes :]))}, {covered}"
        raise refuse(op, given, expected, "The layer itself refuses such an input; feed larger ones.")
    return patches


def linear_patches(op: str, input: Tensor) -> list[Patches]:
    """The rows of [..., d] as 1×1 patches; one part unless more than four leading dimensions cannot be merged."""
    check_input(op, input)
    if input.dim() == 0:
        raise refuse(op, "input is a scalar", "[..., d]", "Give the layer's input.")
    return list(_rows_as_patches(input)) if input.numel() else []


_ROWS = Window((1, 1, 1), (1, 1, 1), (0,) * 6, (1, 1, 1))


def _rows_as_patches(rows: Tensor) -> Iterator[Patches]:
    rows = _merge_leading(rows)
    if rows.dim() > 5:
        for part in rows:
            yield from _rows_as_patches(part)
        return
    rows = rows[(None,) * (5 - rows.dim())]  # [n, a, b, c, d] → N = n, D = a, H = b, W = c, channels d
    yield Patches(rows.movedim(4, 1), _ROWS, 1)


def _merge_leading(rows: Tensor) -> Tensor:
    """A view with as few leading dimensions as the strides allow."""
    rows = rows.squeeze(tuple(range(rows.dim() - 1)))
    for axis in range(rows.dim() - 2, 0, -1):
        if rows.stride(axis - 1) == rows.shape[axis] * rows.stride(axis):
            rows = rows.flatten(axis - 1, axis)
    return rows
