"""Operators of the activation covariance: sums over the inputs of a layer, exact or as a sketch.

u is what one output position of the layer sees: the row of a linear layer's input, or the zero-padded patch of a
convolution's, ordered (channel, row, column) as by ``torch.nn.functional.unfold``; d is its length. Patches are packed
tile by tile into a workspace of a few MB (``csrc/covariance/pack_patches.hpp``), and the products are torch's BLAS.

All operators add to their outputs (zero them first), need no copy of an input with odd strides, take float64, float32,
float16 and bfloat16 inputs (converted to the dtype of the outputs before anything is multiplied), do nothing for an
empty batch, let NaN through, check every argument before anything is written (ValueError), and record no gradient.
CPU only so far: CUDA tensors get a NotImplementedError.

Packing, Σ u and Σ|u|² give the same bits for any number of threads. Σ u uᵀ and Σ u (uᵀΩ) are as reproducible as torch's
BLAS: MKL divides some products among its threads in another way when their number changes, and then the last bits
change (all of them within the rounding bound of a sum in any order).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.library import define
from igm_fast.ops.update_checks import refuse

# A tile that stays in L2 or L3 between packing and product. At least 256 patches of any size: with fewer, reading and
# writing the d×d sums would take longer than the products.
_TILE_BYTES = 4 << 20
_MIN_TILE_PATCHES = 256
# Rows of the sums that are updated together, up to the diagonal only: the smaller, the fewer products beyond it.
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class _Patches:
    """The patches of one input: what they are taken from, how many there are and how long (d) per group."""

    input: Tensor  # [N, C, H, W]
    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    dim: int
    count: int

    def tile_patches(self, columns: int, dtype: torch.dtype) -> int:
        """Patches in a tile: as many as fit into the workspace, `columns` further numbers each included."""
        per_patch = self.groups * (self.dim + columns) * dtype.itemsize
        return min(self.count, max(_MIN_TILE_PATCHES, _TILE_BYTES // max(per_patch, 1)))

    def tiles(self, count: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """All patches as tiles [groups, d, ≤ count]; each overwrites the one before."""
        pack = native.module().pack_patches
        workspace = torch.empty(self.groups * self.dim * count, dtype=dtype)
        for first in range(0, self.count, count):
            size = min(count, self.count - first)
            pack(
                self.input.data_ptr(),
                native.DTYPE_CODES[self.input.dtype],
                self.input.shape,
                self.input.stride(),
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                first,
                size,
                workspace.data_ptr(),
                native.DTYPE_CODES[dtype],
                torch.get_num_threads(),
            )
            yield workspace[: self.groups * self.dim * size].view(self.groups, self.dim, size)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check_input(op: str, input: Tensor) -> None:
    if input.dtype not in native.DTYPE_CODES:
        way_out = "Convert it with .float()."
        raise refuse(op, f"input is {input.dtype}", "float64, float32, float16 or bfloat16", way_out)


def _check_written(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    if tuple(tensor.shape) != shape:
        raise refuse(op, f"{name} has shape {tuple(tensor.shape)}", str(shape), f"Allocate it with torch.zeros{shape}.")
    if dtype is None and tensor.dtype not in (torch.float32, torch.float64):
        raise refuse(op, f"{name} is {tensor.dtype}", "float32 or float64", "Sums need a wide type.")
    if dtype is not None and tensor.dtype != dtype:
        raise refuse(op, f"{name} is {tensor.dtype}", str(dtype), "Keep all sums and omega in one dtype.")
    if not tensor.is_contiguous():
        given = f"{name} has strides {tensor.stride()}"
        raise refuse(op, given, "a contiguous tensor, since it is written in place", "Use .contiguous().")


def conv_output_size(
    sizes: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Return output height and width for an input [N, C, H, W]; below 1 where the kernel covers more than there is."""
    before_and_after = (padding[2] + padding[3], padding[0] + padding[1])  # padding: left, right, top, bottom
    height, width = (
        (sizes[2 + axis] + before_and_after[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    return height, width


def _conv_patches(
    op: str,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> _Patches:
    _check_input(op, input)
    if input.dim() != 4:
        way_out = "Unsqueeze a single image, or view a sequence as images of height 1."
        raise refuse(op, f"input has shape {tuple(input.shape)}", "[N, C, H, W]", way_out)
    lengths = {"kernel_size": (kernel_size, 2, 1), "stride": (stride, 2, 1), "dilation": (dilation, 2, 1)}
    lengths["padding"] = (padding, 4, 0)
    for name, (values, length, least) in lengths.items():
        if len(values) != length or any(value < least for value in values):
            order = "(left, right, top, bottom)" if name == "padding" else "(height, width)"
            given = f"{name}={tuple(values)}"
            raise refuse(op, given, f"{length} integers {order} >= {least}", "See igm_fast.layers.conv_geometry.")
    batch, channels, height, width = input.shape
    if groups < 1 or channels % groups:
        given = f"groups={groups} for {channels} channels"
        raise refuse(op, given, "a divisor of the channels", "Use the layer's own groups.")
    padded = (height + padding[2] + padding[3], width + padding[0] + padding[1])
    span = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in (0, 1)]
    if any(padded[axis] < span[axis] for axis in (0, 1)):
        given = f"padded input {padded[0]}×{padded[1]}"
        expected = (
            f"at least {span[0]}×{span[1]}, what kernel {tuple(kernel_size)} covers at dilation {tuple(dilation)}"
        )
        raise refuse(op, given, expected, "The layer itself refuses such an input; feed larger ones.")
    out_height, out_width = conv_output_size(input.shape, kernel_size, stride, padding, dilation)
    dim = channels // groups * kernel_size[0] * kernel_size[1]
    count = batch * out_height * out_width
    return _Patches(input, kernel_size, stride, padding, dilation, groups, dim, count)


def _linear_patches(op: str, input: Tensor) -> list[_Patches]:
    """The rows of [..., d] as 1×1 patches; one part unless more than three leading dimensions cannot be merged."""
    _check_input(op, input)
    if input.dim() == 0:
        raise refuse(op, "input is a scalar", "[..., d]", "Give the layer's input.")
    return list(_rows_as_patches(input)) if input.numel() else []


def _rows_as_patches(rows: Tensor) -> Iterator[_Patches]:
    rows = _merge_leading(rows)
    if rows.dim() > 4:
        for part in rows:
            yield from _rows_as_patches(part)
        return
    rows = rows[(None,) * (4 - rows.dim())]  # [a, b, c, d] → N = a, H = b, W = c, channels d
    dim = rows.shape[3]
    yield _Patches(rows.permute(0, 3, 1, 2), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, dim, rows.numel() // dim)


def _merge_leading(rows: Tensor) -> Tensor:
    """A view with as few leading dimensions as the strides allow."""
    rows = rows.squeeze(tuple(range(rows.dim() - 1)))
    for axis in range(rows.dim() - 2, 0, -1):
        if rows.stride(axis - 1) == rows.shape[axis] * rows.stride(axis):
            rows = rows.flatten(axis - 1, axis)
    return rows


# ---- full ------------------------------------------------------------------------------------------------------------


def _add_products(out: Tensor, left: Tensor, alpha: float) -> None:
    """Add alpha·left·leftᵀ to [groups, d, d], at least up to the diagonal; left [groups, d, m]."""
    dim = out.shape[1]
    if dim <= _BLOCK_ROWS:
        out.baddbmm_(left, left.mT, alpha=alpha)
        return
    for sums, rows in zip(out, left, strict=True):
        for first in range(0, dim, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, dim)
            sums[first:last, :last].addmm_(rows[first:last], rows[:last].mT, alpha=alpha)


def _mirror(out: Tensor) -> None:
    code = native.DTYPE_CODES[out.dtype]
    native.module().mirror_lower(out.data_ptr(), code, out.shape[0], out.shape[1], torch.get_num_threads())


def _add_covariance(out: Tensor, patches: _Patches, alpha: float) -> None:
    for tile in patches.tiles(patches.tile_patches(0, out.dtype), out.dtype):
        _add_products(out, tile, alpha)


def _blas_operand(rows: _Patches, dtype: torch.dtype) -> Tensor | None:
    """Rows of a linear input as a matrix [1, d, M] that BLAS reads in place, if dtype and strides let it."""
    batch, dim, height, count = rows.input.shape
    if rows.input.dtype != dtype or batch != 1 or height != 1:
        return None
    along, across = rows.input.stride(1), rows.input.stride(3)
    in_place = (along == 1 and across >= dim) or (across == 1 and along >= count)
    return rows.input.view(1, dim, count) if in_place else None


@torch.no_grad()
def _conv2d_covariance_cpu(
    out: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    *,
    alpha: float = 1.0,
) -> None:
    """Add alpha·Σ u uᵀ over the patches of input [N, C, H, W] to out [groups, d, d], d = C/groups·kh·kw.

    The lower triangle of `out` is what counts on entry; on return both agree to the last bit. padding is (left, right,
    top, bottom). Cost: 1 to 2 d² flops per patch; workspace: a tile of 4 MB, or of 256 patches if those are longer.
    """
    op = "conv2d_covariance"
    patches = _conv_patches(op, input, kernel_size, stride, padding, dilation, groups)
    _check_written(op, "out", out, (groups, patches.dim, patches.dim), None)
    if patches.count:
        _add_covariance(out, patches, alpha)
        _mirror(out)


@torch.no_grad()
def _linear_covariance_cpu(out: Tensor, input: Tensor, *, alpha: float = 1.0) -> None:
    """Add alpha·Σ u uᵀ over the rows of input [..., d] to out [d, d].

    Symmetric as conv2d_covariance's; rows of out's dtype that lie in memory as BLAS wants them are not copied at all.
    """
    op = "linear_covariance"
    parts = _linear_patches(op, input)
    _check_written(op, "out", out, (input.shape[-1], input.shape[-1]), None)
    for part in parts:
        matrix = _blas_operand(part, out.dtype)
        if matrix is not None:
            _add_products(out[None], matrix, alpha)
        else:
            _add_covariance(out[None], part, alpha)
    if parts:
        _mirror(out[None])


# ---- sketch ----------------------------------------------------------------------------------------------------------


def _check_sketch(
    op: str, sketch: Tensor, total: Tensor, trace: Tensor, omega: Tensor, leading: tuple[int, ...], dim: int
) -> None:
    columns = omega.shape[-1] if omega.dim() else 0
    if tuple(omega.shape) != (*leading, dim, columns):
        given = f"omega has shape {tuple(omega.shape)}"
        raise refuse(op, given, f"{(*leading, dim, 'k')} for this input", "Draw it for the layer's own d and groups.")
    _check_written(op, "sketch", sketch, (*leading, dim, columns), None)
    _check_written(op, "total", total, (*leading, dim), sketch.dtype)
    _check_written(op, "trace", trace, leading, sketch.dtype)
    if omega.dtype != sketch.dtype:
        way_out = "Keep all sums and omega in one dtype."
        raise refuse(op, f"omega is {omega.dtype}", f"{sketch.dtype} as sketch", way_out)


def _add_sketch(
    sketch: Tensor, total: Tensor, trace: Tensor, parts: list[_Patches], omega: Tensor, alpha: float
) -> None:
    """Add to sketch [groups, d, k], total [groups, d] and trace [groups]; omega [groups, d, k]."""
    groups, dim, columns = sketch.shape
    moments = torch.zeros(2, groups, dim, dtype=torch.float64)
    for part in parts:
        count = part.tile_patches(columns, sketch.dtype)
        workspace = torch.empty(groups * count * columns, dtype=sketch.dtype)
        for tile in part.tiles(count, sketch.dtype):
            size = tile.shape[2]
            native.module().add_row_moments(
                tile.data_ptr(),
                native.DTYPE_CODES[tile.dtype],
                groups * dim,
                size,
                moments[0].data_ptr(),
                moments[1].data_ptr(),
                torch.get_num_threads(),
            )
            products = workspace[: groups * size * columns].view(groups, size, columns)
            torch.bmm(tile.mT, omega, out=products)  # out= also keeps autocast away from the operands
            sketch.baddbmm_(tile, products, alpha=alpha)
    total.add_(moments[0], alpha=alpha)
    trace.add_(moments[1].sum(1), alpha=alpha)


@torch.no_grad()
def _conv2d_covariance_sketch_cpu(
    sketch: Tensor,
    total: Tensor,
    trace: Tensor,
    input: Tensor,
    omega: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    *,
    alpha: float = 1.0,
) -> None:
    """Add alpha·Σ u (uᵀΩ), alpha·Σ u and alpha·Σ|u|² to sketch [groups, d, k], total [groups, d] and trace [groups].

    Ω is omega [groups, d, k]. Cost: 4dk flops per patch, never a d×d matrix. The two plain sums are taken in float64
    within a call.
    """
    op = "conv2d_covariance_sketch"
    patches = _conv_patches(op, input, kernel_size, stride, padding, dilation, groups)
    _check_sketch(op, sketch, total, trace, omega, (groups,), patches.dim)
    if patches.count:
        _add_sketch(sketch, total, trace, [patches], omega, alpha)


@torch.no_grad()
def _linear_covariance_sketch_cpu(
    sketch: Tensor, total: Tensor, trace: Tensor, input: Tensor, omega: Tensor, *, alpha: float = 1.0
) -> None:
    """The same over the rows of input [..., d]: sketch and omega [d, k], total [d], trace []."""
    op = "linear_covariance_sketch"
    parts = _linear_patches(op, input)
    _check_sketch(op, sketch, total, trace, omega, (), input.shape[-1])
    if parts:
        _add_sketch(sketch[None], total[None], trace[None], parts, omega[None], alpha)


_GEOMETRY = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_SKETCH = "Tensor(a!) sketch, Tensor(b!) total, Tensor(c!) trace, Tensor input, Tensor omega"

define(
    f"conv2d_covariance(Tensor(a!) out, Tensor input, {_GEOMETRY}, *, float alpha=1.0) -> ()",
    cpu=_conv2d_covariance_cpu,
)
define(
    "linear_covariance(Tensor(a!) out, Tensor input, *, float alpha=1.0) -> ()",
    cpu=_linear_covariance_cpu,
)
define(
    f"conv2d_covariance_sketch({_SKETCH}, {_GEOMETRY}, *, float alpha=1.0) -> ()",
    cpu=_conv2d_covariance_sketch_cpu,
)
define(
    f"linear_covariance_sketch({_SKETCH}, *, float alpha=1.0) -> ()",
    cpu=_linear_covariance_sketch_cpu,
)
