"""Operators of the projector: facts about symmetric matrices, and their leading eigenvectors.

All take contiguous float32 or float64, check their arguments first (ValueError), and record no gradient. CPU only so
far: CUDA tensors get a NotImplementedError.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.library import define
from igm_fast.ops.update_checks import refuse

# Panels up to here go to our own product, which reads C once; wider ones are a BLAS's trade (benchmarks/projector.py).
WIDEST_TALL_PANEL = 32
# Of a block off the basis. Random columns, of which the basis holds a share below 1, need two.
MOST_PROJECTIONS = 6


def _check_matrices(op: str, matrices: Tensor) -> None:
    if matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2]:
        given = f"matrices has shape {tuple(matrices.shape)}"
        raise refuse(op, given, "[count, d, d]", "Add the leading dimension with matrices[None].")
    if matrices.dtype not in (torch.float32, torch.float64):
        raise refuse(op, f"matrices is {matrices.dtype}", "float32 or float64", "Convert it with .float().")
    if not matrices.is_contiguous():
        given = f"matrices has strides {matrices.stride()}"
        raise refuse(op, given, "a contiguous tensor", "Use .contiguous().")


def _check_panel(op: str, name: str, panel: Tensor, matrices: Tensor, least: int = 1, most: int | None = None) -> None:
    count, dim, _ = matrices.shape
    most = dim if most is None else most
    if panel.dim() != 3 or panel.shape[:2] != (count, dim) or not least <= panel.shape[2] <= most:
        expected = f"({count}, {dim}, k) with {least} <= k <= {most}"
        raise refuse(op, f"{name} has shape {tuple(panel.shape)}", expected, "Draw it with torch.randn.")
    if panel.dtype != matrices.dtype:
        raise refuse(op, f"{name} is {panel.dtype}", f"{matrices.dtype} as matrices", "Use .to(matrices).")
    if panel.device != matrices.device:
        raise refuse(op, f"{name} is on {panel.device}", f"{matrices.device} as matrices", "Use .to(matrices).")


@torch.no_grad()
def _inspect_symmetric_cpu(matrices: Tensor) -> Tensor:
    """Return [count, 5] float64: number of non-finite entries, ‖C − Cᵀ‖_F, ‖C‖_F, tr C, min cᵢᵢ; one pass over C."""
    _check_matrices("inspect_symmetric", matrices)
    count, dim, _ = matrices.shape
    code = native.DTYPE_CODES[matrices.dtype]
    facts = native.module().inspect_symmetric(matrices.data_ptr(), code, count, dim, torch.get_num_threads())
    return torch.tensor(facts, dtype=torch.float64).reshape(count, 5)


@torch.no_grad()
def _tall_product_cpu(matrices: Tensor, panel: Tensor) -> Tensor:
    """Return C V for C [count, d, d] and V [count, d, k] in one pass over C (csrc/projector/tall_product.hpp)."""
    op = "tall_product"
    _check_matrices(op, matrices)
    _check_panel(op, "panel", panel, matrices, least=0, most=sys.maxsize)
    return _product(matrices, panel.contiguous())


def _product(matrices: Tensor, panel: Tensor) -> Tensor:
    count, dim, columns = panel.shape
    if columns > WIDEST_TALL_PANEL:
        return torch.bmm(matrices, panel)
    product = torch.empty_like(panel)
    code = native.DTYPE_CODES[matrices.dtype]
    native.module().tall_product(
        matrices.data_ptr(), panel.data_ptr(), product.data_ptr(), code, count, dim, columns, torch.get_num_threads()
    )
    return product


@torch.no_grad()
def _krylov_block_cpu(matrices: Tensor, basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q, orthonormal and orthogonal to a basis, with the span of a block beside it, and C Q.

    (I − VVᵀ) and CholeskyQR2 (csrc/projector/panel_qr.hpp), until VᵀQ is rounding: twice if the block has something
    new. Where it adds fewer directions than it has columns, random ones take their places; rounding of what lay in V
    may have to be taken out once or twice more before that is so.

    Args:
        matrices: C [count, d, d]; the numbers must be finite.
        basis: V [count, d, m], orthonormal; m = 0 is none.
        block: [count, d, k], m + k ≤ d.
    """
    op = "krylov_block"
    _check_matrices(op, matrices)
    _check_panel(op, "basis", basis, matrices, least=0)
    _check_panel(op, "block", block, matrices)
    if basis.shape[2] + block.shape[2] > matrices.shape[1]:
        given = f"{basis.shape[2]} columns of basis and {block.shape[2]} of block"
        raise refuse(op, given, f"{matrices.shape[1]} at most", "The space is full: the basis spans all of it.")
    panel = block.clone(memory_format=torch.contiguous_format)
    if basis.shape[2] == 0:
        _orthonormalize(panel)
        return panel, _product(matrices, panel)
    small = torch.finfo(panel.dtype).eps * math.sqrt(panel.shape[1])
    for projections in range(MOST_PROJECTIONS):
        overlap = basis.mT @ panel
        if projections and overlap.abs().max() <= small:
            break
        panel = torch.baddbmm(panel, basis, overlap, alpha=-1)
        _orthonormalize(panel)
    return panel, _product(matrices, panel)


@torch.no_grad()
def _ritz_pairs_cpu(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Ritz pairs of C on the span of V, of which V and C V are given: Λ, U, R = CU − UΛ.

        VᵀCV = QΛQᵀ;   U = VQ,  R = (CV)Q − UΛ

    Args:
        basis: V [count, d, m], orthonormal, float32 or float64.
        image: C V.

    Returns:
        Λ [count, m] float64, descending; U [count, d, m]; R [count, d, m], in the dtype of the basis.
    """
    if basis.shape != image.shape or basis.dtype != image.dtype or basis.dim() != 3:
        given = f"basis {basis.dtype} {tuple(basis.shape)} and image {image.dtype} {tuple(image.shape)}"
        raise refuse("ritz_pairs", given, "[count, d, m] twice", "See krylov_block, which returns both.")
    small = (basis.mT @ image).double()
    eigenvalues, rotation = torch.linalg.eigh((small + small.mT) / 2)
    eigenvalues, rotation = eigenvalues.flip(1), rotation.flip(2).to(basis.dtype)
    vectors, residuals = basis @ rotation, image @ rotation
    residuals.addcmul_(vectors, eigenvalues[:, None, :].to(basis.dtype), value=-1)
    return eigenvalues, vectors, residuals


@torch.no_grad()
def _truncated_eigh_cpu(matrices: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return leading eigenpairs of symmetric C [count, d, d]: Rayleigh–Ritz on a block Krylov space.

    The space is that of V, CV, …, C^steps V (Musco and Musco, *Randomized block Krylov methods for stronger and faster
    approximate singular value decomposition*, 2015), orthonormal throughout. 2d²k(steps + 1) flops.

    Args:
        matrices: C; the numbers must be finite.
        start: V [count, d, k], 1 ≤ k ≤ d, dtype of C.
        steps: ≥ 0.

    Returns:
        Λ [count, m] float64, descending, m = min(k(steps + 1), d); U [count, d, m]; R = CU − UΛ [count, d, m], in the
        dtype of C.
    """
    op = "truncated_eigh"
    _check_matrices(op, matrices)
    _check_panel(op, "start", start, matrices)
    if steps < 0:
        raise refuse(op, f"steps={steps}", "0 or more", "Two do for most spectra.")
    dim = matrices.shape[1]
    basis, block = start[:, :, :0], start
    image = basis
    for _ in range(steps + 1):
        block, block_image = _krylov_block_cpu(matrices, basis, block[:, :, : dim - basis.shape[2]])
        basis, image = torch.cat([basis, block], dim=2), torch.cat([image, block_image], dim=2)
        block = block_image
        if basis.shape[2] == dim:
            break
    return _ritz_pairs_cpu(basis, image)


def _orthonormalize(panel: Tensor) -> None:
    count, rows, columns = panel.shape
    code = native.DTYPE_CODES[panel.dtype]
    native.module().panel_qr(panel.data_ptr(), code, count, rows, columns, torch.get_num_threads())


def _inspect_symmetric_fake(matrices: Tensor) -> Tensor:
    return matrices.new_empty(matrices.shape[0], 5, dtype=torch.float64)


def _tall_product_fake(matrices: Tensor, panel: Tensor) -> Tensor:  # noqa: ARG001
    return panel.new_empty(panel.shape)


def _krylov_block_fake(matrices: Tensor, basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return block.new_empty(block.shape), block.new_empty(block.shape)


def _ritz_pairs_fake(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    eigenvalues = basis.new_empty(basis.shape[0], basis.shape[2], dtype=torch.float64)
    return eigenvalues, basis.new_empty(basis.shape), basis.new_empty(basis.shape)


def _truncated_eigh_fake(matrices: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    count, dim, columns = start.shape
    basis = start.new_empty(count, dim, min(columns * (steps + 1), matrices.shape[1]))
    return _ritz_pairs_fake(basis, basis)


define("inspect_symmetric(Tensor matrices) -> Tensor", cpu=_inspect_symmetric_cpu, fake=_inspect_symmetric_fake)
define("tall_product(Tensor matrices, Tensor panel) -> Tensor", cpu=_tall_product_cpu, fake=_tall_product_fake)
define(
    "krylov_block(Tensor matrices, Tensor basis, Tensor block) -> (Tensor, Tensor)",
    cpu=_krylov_block_cpu,
    fake=_krylov_block_fake,
)
define("ritz_pairs(Tensor basis, Tensor image) -> (Tensor, Tensor, Tensor)", cpu=_ritz_pairs_cpu, fake=_ritz_pairs_fake)
define(
    "truncated_eigh(Tensor matrices, Tensor start, int steps) -> (Tensor, Tensor, Tensor)",
    cpu=_truncated_eigh_cpu,
    fake=_truncated_eigh_fake,
)
