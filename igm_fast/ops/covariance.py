"""Operators of the exact activation covariance Σ u uᵀ.

On a CPU packing is native and the products are torch's BLAS. On a GPU kernels multiply the patches out of the input
(csrc/covariance/patch_product.cuh), those of linear layers too: BLAS would compute both triangles.

All add to their outputs (zero them first), need no copy of an input with odd strides, take float64, float32, float16
and bfloat16 inputs (converted to the dtype of the outputs before anything is multiplied), do nothing for an empty
batch, let NaN through, check every argument before anything is written (ValueError), and record no gradient.

CPU: packing gives the same bits for any number of threads. The products are as reproducible as torch's BLAS: MKL
divides some of them among its threads in another way when their number changes, and then the last bits change (all of
them within the rounding bound of a sum in any order).

GPU: the same bits in every call, no synchronisation, CUDA graphs can record them. Products of float16 and bfloat16 are
exact in float32 sums. float32 is multiplied as three products of TF32 (relative error of each product 3·2⁻²²), or as
one (2⁻¹⁰) where torch's setting for matrix products allows TF32; before compute capability 8.0, and for float64 sums,
without matrix units, which read neighbouring channels: an input that is not channels-last is brought into that order
first, 16 MB at a time. Workspace: those, and 16 MB of partial sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.forms import BLOCK_ROWS, Form, choose_form
from igm_fast.ops.lags import add_lag_covariance, add_lag_covariance_cuda, lags_pay_cuda
from igm_fast.ops.library import define
from igm_fast.ops.patches import Patches, check_devices, check_written, conv_patches, linear_patches
from igm_fast.ops.update_checks import refuse


def _add_products(out: Tensor, left: Tensor, alpha: float) -> None:
    """Add alpha·left·leftᵀ to [groups, d, d], at least up to the diagonal; left [groups, d, m]."""
    dim = out.shape[1]
    if dim <= BLOCK_ROWS:
        out.baddbmm_(left, left.mT, alpha=alpha)
        return
    for sums, rows in zip(out, left, strict=True):
        for first in range(0, dim, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, dim)
            sums[first:last, :last].addmm_(rows[first:last], rows[:last].mT, alpha=alpha)


def _mirror(out: Tensor) -> None:
    code = native.DTYPE_CODES[out.dtype]
    native.module().mirror_lower(out.data_ptr(), code, out.shape[0], out.shape[1], torch.get_num_threads())


def add_covariance(out: Tensor, patches: Patches, alpha: float, form: Form, *, mirror: bool = True) -> None:
    """Add alpha·Σ u uᵀ to out [groups, d, d] in one of the two forms; the upper triangle follows if ``mirror``."""
    if form == "lags":
        add_lag_covariance(out, patches, alpha, mirror=mirror)
        return
    for tile in patches.tiles(patches.tile_patches(0, out.dtype), out.dtype):
        _add_products(out, tile, alpha)
    if mirror:
        _mirror(out)


def _blas_operand(rows: Patches, dtype: torch.dtype) -> Tensor | None:
    """Rows of a linear input as a matrix [1, d, M] that BLAS reads in place, if dtype and strides let it."""
    batch, dim, depth, height, count = rows.input.shape
    if rows.input.dtype != dtype or batch * depth * height != 1:
        return None
    along, across = rows.input.stride(1), rows.input.stride(4)
    in_place = (along == 1 and across >= dim) or (across == 1 and along >= count)
    return rows.input.view(1, dim, count) if in_place else None


@torch.no_grad()
def _conv_covariance_cpu(
    axes: int,
    out: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    *,
    alpha: float = 1.0,
    mirror: bool = True,
) -> None:
    """Add alpha·Σ u uᵀ over the patches of input [N, C, (D,) H, W] to out [groups, d, d], d = C/groups·taps.

    The lower triangle of `out` is what counts on entry; on return both agree to the last bit, unless ``mirror`` is
    False: where many batches follow one another, :func:`mirror_lower` after the last one is enough. padding is (left,
    right, top, bottom[, front, back]). The form is that of :func:`igm_fast.ops.forms.choose_form`. Workspace: a tile
    of 4 MB, or of 256 patches if those are longer; or the products of the lag form, about (0.4 d)² numbers for a 3×3
    kernel, and 20 MB, or six padded samples if those are larger.
    """
    op = f"conv{axes}d_covariance"
    patches = conv_patches(op, axes, input, kernel_size, stride, padding, dilation, groups)
    check_written(op, "out", out, (groups, patches.dim, patches.dim), None)
    if patches.count:
        add_covariance(out, patches, alpha, choose_form(patches, out.dtype), mirror=mirror)


@torch.no_grad()
def _linear_covariance_cpu(out: Tensor, input: Tensor, *, alpha: float = 1.0, mirror: bool = True) -> None:
    """Add alpha·Σ u uᵀ over the rows of input [..., d] to out [d, d].

    Symmetric as conv2d_covariance's; rows of out's dtype that lie in memory as BLAS wants them are not copied at all.
    """
    op = "linear_covariance"
    parts = linear_patches(op, input)
    check_written(op, "out", out, (input.shape[-1], input.shape[-1]), None)
    for part in parts:
        matrix = _blas_operand(part, out.dtype)
        if matrix is not None:
            _add_products(out[None], matrix, alpha)
            if mirror:
                _mirror(out[None])
        else:
            add_covariance(out[None], part, alpha, "patches", mirror=mirror)


@torch.no_grad()
def _mirror_lower_cpu(out: Tensor) -> None:
    """Copy the lower triangle of out [groups, d, d] to the upper one, bit for bit."""
    _check_square(out)
    _mirror(out)


def _check_square(out: Tensor) -> None:
    check_written("mirror_lower", "out", out, tuple(out.shape), None)
    if out.dim() != 3 or out.shape[1] != out.shape[2]:
        way_out = "Add the leading dimension with out[None]."
        raise refuse("mirror_lower", f"out has shape {tuple(out.shape)}", "[groups, d, d]", way_out)


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def _add_patch_covariance_cuda(op: str, out: Tensor, patches: Patches, alpha: float, mirror: bool) -> None:
    """Add alpha·Σ u uᵀ to out [groups, d, d], symmetric on return if ``mirror``, else in the lower triangle alone."""
    core, task = native.module(), patches.task(out.dtype, 0)
    workspace = torch.empty(core.patch_workspace(task), dtype=torch.uint8, device=out.device)
    launches = core.patch_covariance_launches(task, out.data_ptr(), alpha, workspace.data_ptr())
    native.launch(op, launches + (_mirror_launches(out) if mirror else []), out.device)


def _mirror_launches(out: Tensor) -> list[Any]:
    launches: list[Any] = native.module().mirror_launches(
        out.data_ptr(), native.DTYPE_CODES[out.dtype], out.shape[0], out.shape[1]
    )
    return launches


@torch.no_grad()
def _conv_covariance_cuda(
    axes: int,
    out: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    *,
    alpha: float = 1.0,
    mirror: bool = True,
) -> None:
    """Do what _conv_covariance_cpu does for CUDA tensors, by lags where :func:`igm_fast.ops.lags.lags_pay_cuda`."""
    op = f"conv{axes}d_covariance"
    patches = conv_patches(op, axes, input, kernel_size, stride, padding, dilation, groups)
    check_written(op, "out", out, (groups, patches.dim, patches.dim), None)
    check_devices(op, input, out=out)
    if patches.count == 0:
        return
    if lags_pay_cuda(patches, out.dtype):
        add_lag_covariance_cuda(out, patches, alpha, mirror=mirror)
    else:
        _add_patch_covariance_cuda(op, out, patches, alpha, mirror)


@torch.no_grad()
def _linear_covariance_cuda(
    out: Tensor,
    input: Tensor,
    *,
    alpha: float = 1.0,
    mirror: bool = True,
) -> None:
    """Do what _linear_covariance_cpu does for CUDA tensors."""
    op = "linear_covariance"
    parts = linear_patches(op, input)
    check_written(op, "out", out, (input.shape[-1], input.shape[-1]), None)
    check_devices(op, input, out=out)
    for part in parts:
        _add_patch_covariance_cuda(op, out[None], part, alpha, mirror)


@torch.no_grad()
def _mirror_lower_cuda(out: Tensor) -> None:
    """Do what _mirror_lower_cpu does for CUDA tensors."""
    _check_square(out)
    native.launch("mirror_lower", _mirror_launches(out), out.device)


_GEOMETRY = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"

for _axes in (2, 3):
    define(
        f"conv{_axes}d_covariance(Tensor(a!) out, Tensor input, {_GEOMETRY}, *, float alpha=1.0, "
        "bool mirror=True) -> ()",
        cpu=partial(_conv_covariance_cpu, _axes),
        cuda=partial(_conv_covariance_cuda, _axes),
    )
define(
    "linear_covariance(Tensor(a!) out, Tensor input, *, float alpha=1.0, bool mirror=True) -> ()",
    cpu=_linear_covariance_cpu,
    cuda=_linear_covariance_cuda,
)
define("mirror_lower(Tensor(a!) out) -> ()", cpu=_mirror_lower_cpu, cuda=_mirror_lower_cuda)
