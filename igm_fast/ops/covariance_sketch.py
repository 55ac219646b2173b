"""Operators of the sketched activation covariance: Σ u (uᵀΩ), Σ u and Σ|u|², never a d×d matrix.

What the operators of igm_fast/ops/covariance.py promise about inputs and outputs holds here too. On a CPU, convolutions
give the same bits for any number of threads, as Σ u and Σ|u|² always do; 1×1 kernels and linear layers are BLAS.

On a GPU both products are of the patches in the dtype of the sums, float32 as in igm_fast/ops/covariance.py; float16
and bfloat16 inputs need two products of TF32 instead of three. Z = uᵀΩ is made for so many positions at a time (16 MB)
that it stays in L2 until u Z is added up, and with it their inputs, which are brought into channels-last order first
unless they are float32 and lie so. Workspace: both, a copy of Ω, 16 MB of partial sums, and 16 MB for Σ u and Σ|u|².
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.library import define
from igm_fast.ops.patches import Patches, check_devices, check_written, conv_patches, linear_patches
from igm_fast.ops.update_checks import refuse

# Rows that BLAS multiplies at a time where it reads the input in place: 2 MB of products for 64 columns.
_BLAS_ROWS = 8192


def _check_sketch(
    op: str, sketch: Tensor, total: Tensor, trace: Tensor, omega: Tensor, leading: tuple[int, ...], dim: int
) -> None:
    columns = omega.shape[-1] if omega.dim() else 0
    if tuple(omega.shape) != (*leading, dim, columns):
        given = f"omega has shape {tuple(omega.shape)}"
        raise refuse(op, given, f"{(*leading, dim, 'k')} for this input", "Draw it for the layer's own d and groups.")
    check_written(op, "sketch", sketch, (*leading, dim, columns), None)
    check_written(op, "total", total, (*leading, dim), sketch.dtype)
    check_written(op, "trace", trace, leading, sketch.dtype)
    if omega.dtype != sketch.dtype:
        way_out = "Keep all sums and omega in one dtype."
        raise refuse(op, f"omega is {omega.dtype}", f"{sketch.dtype} as sketch", way_out)


def _geometry(patches: Patches) -> tuple[Any, ...]:
    """The input and how the kernel moves over it, as the native functions take them."""
    x, window = patches.input, patches.window
    kernel = (window.kernel_size, window.stride, window.padding, window.dilation)
    return (x.data_ptr(), native.DTYPE_CODES[x.dtype], x.shape, x.stride(), *kernel, patches.groups)


Form = Literal["blas", "direct", "winograd"]

# Fewer do not pay for the transforms of Z, which all channels share.
_WINOGRAD_CHANNELS = 16
# A row or column that is left over costs as much as two: at least this share of the tiles' positions has to exist.
_WINOGRAD_FILLED = 0.8


def sketch_form(patches: Patches) -> Form:
    """How the two products uᵀΩ and Σ u (uᵀΩ) are made fastest.

    - ``"blas"``: one after the other by BLAS. With one tap a patch is a plain vector, which BLAS reads as it lies.
    - ``"direct"``: by the fused kernel, which reads overlapping patches once and leaves out where Ω is zero.
    - ``"winograd"``: the same with 2.25 times fewer flops in the second product, for 3×3 kernels that move by one.
    """
    window, (_, height, width) = patches.window, patches.output_size
    if max(window.kernel_size) == 1:
        return "blas"
    fits = window.kernel_size == (1, 3, 3) and window.stride[1:] == window.dilation[1:] == (1, 1)
    filled = height * width / (4 * math.ceil(height / 2) * math.ceil(width / 2))
    channels = patches.input.shape[1] // patches.groups
    return "winograd" if fits and channels >= _WINOGRAD_CHANNELS and filled >= _WINOGRAD_FILLED else "direct"


def _matrices(patches: Patches, columns: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The patches as matrices [groups, d, m]: views of the input where BLAS can read it in place, else packed tiles."""
    samples = _in_place(patches, dtype)
    if samples is None:
        yield from patches.tiles(patches.tile_patches(columns, dtype), dtype)
        return
    for sample in samples:
        yield from sample[None].split(_BLAS_ROWS, dim=2)


def _in_place(patches: Patches, dtype: torch.dtype) -> Tensor | None:
    """The input [N, C, D, H, W] as [N, C, D·H·W], if that holds the patches and BLAS takes its strides."""
    x, window = patches.input, patches.window
    plain = patches.dim == x.shape[1] and window.stride == (1, 1, 1) and not any(window.padding)
    if not plain or x.dtype != dtype:
        return None
    try:
        flat = x.view(*x.shape[:2], -1)
    except RuntimeError:  # the strides of its positions do not merge
        return None
    (_, channels, positions), (_, across, along) = flat.shape, flat.stride()
    return flat if (across == 1 and along >= channels) or (along == 1 and across >= positions) else None


@torch.no_grad()
def _add_by_blas(sketch: Tensor, patches: Patches, omega: Tensor, alpha: float) -> None:
    groups, _, columns = omega.shape
    for matrix in _matrices(patches, columns, sketch.dtype):
        products = torch.empty(groups, matrix.shape[2], columns, dtype=sketch.dtype)
        torch.bmm(matrix.mT, omega, out=products)  # out= also keeps autocast away from the operands
        sketch.baddbmm_(matrix, products, alpha=alpha)


def _add_sketch(sketch: Tensor, total: Tensor, trace: Tensor, patches: Patches, omega: Tensor, alpha: float) -> None:
    """Add to sketch [groups, d, k], total [groups, d] and trace [groups]; omega [groups, d, k]."""
    core, geometry, threads = native.module(), _geometry(patches), torch.get_num_threads()
    code = native.DTYPE_CODES[sketch.dtype]
    core.add_window_moments(*geometry, total.data_ptr(), trace.data_ptr(), code, alpha, threads)
    if not omega.numel():
        return
    form = sketch_form(patches)
    if form == "blas":
        _add_by_blas(sketch, patches, omega, alpha)
        return
    omega = omega.detach().contiguous()
    columns, winograd = omega.shape[2], form == "winograd"
    core.add_conv_sketch(*geometry, omega.data_ptr(), sketch.data_ptr(), code, columns, winograd, alpha, threads)


def _conv_covariance_sketch_cpu(
    axes: int,
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

    Ω is omega [groups, d, k]. Cost: 4dk flops per patch, never a d×d matrix; where 8 columns of Ω (the first, second …
    eight) are zero at a tap of the kernel for all channels, 2 flops instead of 4. The two plain sums are taken in
    float64 within a call. Workspace: see csrc/covariance/sketch.hpp; a tile of 4 MB for 1×1 kernels.
    """
    op = f"conv{axes}d_covariance_sketch"
    patches = conv_patches(op, axes, input, kernel_size, stride, padding, dilation, groups)
    _check_sketch(op, sketch, total, trace, omega, (groups,), patches.dim)
    if patches.count:
        _add_sketch(sketch, total, trace, patches, omega, alpha)


def _linear_covariance_sketch_cpu(
    sketch: Tensor, total: Tensor, trace: Tensor, input: Tensor, omega: Tensor, *, alpha: float = 1.0
) -> None:
    """The same over the rows of input [..., d]: sketch and omega [d, k], total [d], trace []."""
    op = "linear_covariance_sketch"
    parts = linear_patches(op, input)
    _check_sketch(op, sketch, total, trace, omega, (), input.shape[-1])
    for part in parts:
        _add_sketch(sketch[None], total[None], trace[None], part, omega[None], alpha)


# ---- on a GPU --------------------------------------------------------------------------------------------------------


def _add_sketch_cuda(
    op: str, sketch: Tensor, total: Tensor, trace: Tensor, patches: Patches, omega: Tensor, alpha: float
) -> None:
    """Do what _add_sketch does for CUDA tensors."""
    core, task, device = native.module(), patches.task(sketch.dtype, omega.shape[2]), sketch.device
    sums = torch.empty(core.moments_workspace(task), dtype=torch.float64, device=device)
    launches = core.moments_launches(task, total.data_ptr(), trace.data_ptr(), alpha, sums.data_ptr())
    if omega.numel():
        omega = omega.detach().contiguous()
        workspace = torch.empty(core.patch_workspace(task), dtype=torch.uint8, device=device)
        launches += core.patch_sketch_launches(task, omega.data_ptr(), sketch.data_ptr(), alpha, workspace.data_ptr())
    native.launch(op, launches, device)


def _conv_covariance_sketch_cuda(
    axes: int,
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
    """Do what _conv_covariance_sketch_cpu does for CUDA tensors, with zeros of Ω left out in the first product only."""
    op = f"conv{axes}d_covariance_sketch"
    patches = conv_patches(op, axes, input, kernel_size, stride, padding, dilation, groups)
    _check_sketch(op, sketch, total, trace, omega, (groups,), patches.dim)
    check_devices(op, input, sketch=sketch, total=total, trace=trace, omega=omega)
    if patches.count:
        _add_sketch_cuda(op, sketch, total, trace, patches, omega, alpha)


def _linear_covariance_sketch_cuda(
    sketch: Tensor, total: Tensor, trace: Tensor, input: Tensor, omega: Tensor, *, alpha: float = 1.0
) -> None:
    """Do what _linear_covariance_sketch_cpu does for CUDA tensors."""
    op = "linear_covariance_sketch"
    parts = linear_patches(op, input)
    _check_sketch(op, sketch, total, trace, omega, (), input.shape[-1])
    check_devices(op, input, sketch=sketch, total=total, trace=trace, omega=omega)
    for part in parts:
        _add_sketch_cuda(op, sketch[None], total[None], trace[None], part, omega[None], alpha)


_GEOMETRY = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_SKETCH = "Tensor(a!) sketch, Tensor(b!) total, Tensor(c!) trace, Tensor input, Tensor omega"

for _axes in (2, 3):
    define(
        f"conv{_axes}d_covariance_sketch({_SKETCH}, {_GEOMETRY}, *, float alpha=1.0) -> ()",
        cpu=partial(_conv_covariance_sketch_cpu, _axes),
        cuda=partial(_conv_covariance_sketch_cuda, _axes),
    )
define(
    f"linear_covariance_sketch({_SKETCH}, *, float alpha=1.0) -> ()",
    cpu=_linear_covariance_sketch_cpu,
    cuda=_linear_covariance_sketch_cuda,
)
