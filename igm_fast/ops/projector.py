"""Operators of the projector: facts about symmetric matrices, and their leading eigenvectors.

Both take contiguous float32 or float64, check their arguments first (ValueError), and record no gradient. CPU only so
far: CUDA tensors get a NotImplementedError.
"""

from __future__ import annotations

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.library import define
from igm_fast.ops.update_checks import refuse


def _check_matrices(op: str, matrices: Tensor) -> None:
    if matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2]:
        given = f"matrices has shape {tuple(matrices.shape)}"
        raise refuse(op, given, "[count, d, d]", "Add the leading dimension with matrices[None].")
    if matrices.dtype not in (torch.float32, torch.float64):
        raise refuse(op, f"matrices is {matrices.dtype}", "float32 or float64", "Convert it with .float().")
    if not matrices.is_contiguous():
        given = f"matrices has strides {matrices.stride()}"
        raise refuse(op, given, "a contiguous tensor", "Use .contiguous().")


@torch.no_grad()
def _inspect_symmetric_cpu(matrices: Tensor) -> Tensor:
    """Return [count, 3] float64: number of non-finite entries, largest |entry|, ‖C − Cᵀ‖_F, in one pass over C."""
    _check_matrices("inspect_symmetric", matrices)
    count, dim, _ = matrices.shape
    code = native.DTYPE_CODES[matrices.dtype]
    facts = native.module().inspect_symmetric(matrices.data_ptr(), code, count, dim, torch.get_num_threads())
    return torch.tensor(facts, dtype=torch.float64).reshape(count, 3)


@torch.no_grad()
def _truncated_eigh_cpu(matrices: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return leading eigenpairs of symmetric C [count, d, d] by subspace iteration and a Rayleigh–Ritz step.

        V ← orth(start);   steps times: V ← orth(C V);   VᵀCV = QΛQᵀ;   U = VQ,  R = CU − UΛ

    (Halko, Martinsson, Tropp 2011.) orth is CholeskyQR2 (csrc/projector/panel_qr.hpp), the k×k problem is solved by
    Jacobi rotations in float64. 2d²k(steps + 1) flops; workspace: three d×k panels.

    Args:
        matrices: C; the numbers must be finite.
        start: [count, d, k], 1 ≤ k ≤ d, dtype of C.
        steps: ≥ 0.

    Returns:
        Λ [count, k] float64, descending; U [count, d, k]; R [count, d, k], in the dtype of C.
    """
    op = "truncated_eigh"
    _check_matrices(op, matrices)
    count, dim, _ = matrices.shape
    if start.dim() != 3 or start.shape[:2] != (count, dim) or not 1 <= start.shape[2] <= dim:
        expected = f"({count}, {dim}, k) with 1 <= k <= {dim}"
        raise refuse(op, f"start has shape {tuple(start.shape)}", expected, "Draw it with torch.randn.")
    if start.dtype != matrices.dtype:
        raise refuse(op, f"start is {start.dtype}", f"{matrices.dtype} as matrices", "Use .to(matrices).")
    if steps < 0:
        raise refuse(op, f"steps={steps}", "0 or more", "Two do for most spectra.")
    rank = start.shape[2]
    panel = start.clone(memory_format=torch.contiguous_format)
    _orthonormalize(panel)
    image = torch.empty_like(panel)
    for _ in range(steps):
        torch.bmm(matrices, panel, out=image)
        panel, image = image, panel
        _orthonormalize(panel)
    torch.bmm(matrices, panel, out=image)
    small = panel.double().mT @ image.double()
    small = ((small + small.mT) / 2).contiguous()
    eigenvalues = torch.empty(count, rank, dtype=torch.float64)
    rotation = torch.empty_like(small)
    native.module().jacobi_eigh(
        small.data_ptr(), eigenvalues.data_ptr(), rotation.data_ptr(), count, rank, torch.get_num_threads()
    )
    rotation = rotation.to(matrices.dtype)
    vectors = panel @ rotation
    residuals = image @ rotation - vectors * eigenvalues[:, None, :].to(matrices.dtype)
    return eigenvalues, vectors, residuals


def _orthonormalize(panel: Tensor) -> None:
    count, rows, columns = panel.shape
    code = native.DTYPE_CODES[panel.dtype]
    native.module().panel_qr(panel.data_ptr(), code, count, rows, columns, torch.get_num_threads())


def _inspect_symmetric_fake(matrices: Tensor) -> Tensor:
    return matrices.new_empty(matrices.shape[0], 3, dtype=torch.float64)


def _truncated_eigh_fake(matrices: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    eigenvalues = start.new_empty(start.shape[0], start.shape[2], dtype=torch.float64)
    return eigenvalues, start.new_empty(start.shape), start.new_empty(start.shape)


define("inspect_symmetric(Tensor matrices) -> Tensor", cpu=_inspect_symmetric_cpu, fake=_inspect_symmetric_fake)
define(
    "truncated_eigh(Tensor matrices, Tensor start, int steps) -> (Tensor, Tensor, Tensor)",
    cpu=_truncated_eigh_cpu,
    fake=_truncated_eigh_fake,
)
