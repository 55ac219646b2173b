"""Operators of the projector: facts about symmetric matrices, and their leading eigenvectors.

All take contiguous float32 or float64, check their arguments first (ValueError), and record no gradient. On a GPU
nothing waits for the host (but see ritz_pairs), results are the same bits for the same input, and float32 products are
in full float32.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from igm_fast.ops import native
from igm_fast.ops.library import define
from igm_fast.ops.precision import full_float32
from igm_fast.ops.update_checks import refuse

# Panels up to here go to our own product, which reads C once; wider ones are a BLAS's trade (benchmarks/projector.py).
WIDEST_TALL_PANEL = 32
# Of a block off the basis. Random columns, of which the basis holds a share below 1, need two.
MOST_PROJECTIONS = 6
# The same on a GPU, where no host looks at the overlap: always as many as the hardest block needs. The first meets the
# block, and may leave nothing but rounding of what the basis holds; the second makes that noise orthogonal, or finds
# that it was all in the basis, and puts random columns there; the third takes the basis out of these; the fourth takes
# out what rounding left of it, enlarged where the space left over is so small that little of a random column is in it.
PROJECTIONS_ON_GPU = 4
# Shared memory of a block: what all GPUs from compute capability 8.0 on have, and Turing.
SHARED_BYTES, SHARED_BYTES_TURING = 99 * 1024, 64 * 1024


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
def _inspect_symmetric_cuda(matrices: Tensor) -> Tensor:
    """The same by csrc/projector/inspect_symmetric.cuh."""
    op = "inspect_symmetric"
    _check_matrices(op, matrices)
    count, dim, _ = matrices.shape
    if matrices.numel() == 0:
        return torch.zeros(count, 5, dtype=torch.float64, device=matrices.device)
    core = native.module()
    facts = torch.empty(count, 5, dtype=torch.float64, device=matrices.device)
    workspace = facts.new_empty(core.inspect_symmetric_workspace(count, dim))
    code = native.DTYPE_CODES[matrices.dtype]
    launches = core.inspect_symmetric_launches(
        matrices.data_ptr(), code, count, dim, facts.data_ptr(), workspace.data_ptr()
    )
    native.launch(op, launches, matrices.device)
    return facts


@torch.no_grad()
def _tall_product_cpu(matrices: Tensor, panel: Tensor) -> Tensor:
    """Return C V for C [count, d, d] and V [count, d, k] in one pass over C (csrc/projector/tall_product.hpp)."""
    _check_tall_product(matrices, panel)
    return _product(matrices, panel.contiguous())


@torch.no_grad()
def _tall_product_cuda(matrices: Tensor, panel: Tensor) -> Tensor:
    """The same by cuBLAS, which reads C once for any width."""
    _check_tall_product(matrices, panel)
    with full_float32():
        return torch.bmm(matrices, panel)


def _check_tall_product(matrices: Tensor, panel: Tensor) -> None:
    op = "tall_product"
    _check_matrices(op, matrices)
    _check_panel(op, "panel", panel, matrices, least=0, most=sys.maxsize)


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
    _check_krylov_block(matrices, basis, block)
    panel = _scaled(block).clone(memory_format=torch.contiguous_format)
    if basis.shape[2] == 0:
        _orthonormalize(panel)
        return panel, _product(matrices, panel)
    small = torch.finfo(panel.dtype).eps * math.sqrt(panel.shape[1])
    for projections in range(MOST_PROJECTIONS):
        overlap = basis.mT @ panel
        if projections and overlap.abs().max() <= small:
            break
        lengths = torch.linalg.vector_norm(panel, dim=1, keepdim=True, dtype=torch.float64)
        panel = torch.baddbmm(panel, basis, overlap, alpha=-1)
        # Rounding alone may lie in the basis however often it is projected: random columns take its place, other ones
        # for every basis, since those that an earlier block got are in it.
        left = torch.linalg.vector_norm(panel, dim=1, keepdim=True, dtype=torch.float64)
        noise = left <= _projection_noise(basis) * lengths
        if noise.any():
            generator = torch.Generator().manual_seed(basis.shape[2] * MOST_PROJECTIONS + projections)
            panel = torch.where(noise, torch.randn(panel.shape[1:], generator=generator, dtype=panel.dtype), panel)
        _orthonormalize(panel)
    return panel, _product(matrices, panel)


def _projection_noise(basis: Tensor) -> float:
    """What rounding may leave of a column that lies in the basis: √m units or so in the overlap and in the product."""
    return (4 + 2 * math.sqrt(basis.shape[2])) * torch.finfo(basis.dtype).eps


def _check_krylov_block(matrices: Tensor, basis: Tensor, block: Tensor) -> None:
    op = "krylov_block"
    _check_matrices(op, matrices)
    _check_panel(op, "basis", basis, matrices, least=0)
    _check_panel(op, "block", block, matrices)
    if basis.shape[2] + block.shape[2] > matrices.shape[1]:
        given = f"{basis.shape[2]} columns of basis and {block.shape[2]} of block"
        raise refuse(op, given, f"{matrices.shape[1]} at most", "The space is full: the basis spans all of it.")


@torch.no_grad()
def _krylov_block_cuda(matrices: Tensor, basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a fixed number of projections, each with a round of csrc/projector/panel_qr.cuh.

    A column of which the projection leaves no more than its own rounding counts as dependent. Wide blocks go in parts,
    each kept off those before it. NaN in a block makes its panel NaN: nobody is there to raise an error.
    """
    _check_krylov_block(matrices, basis, block)
    with full_float32():
        parts: list[Tensor] = []
        for part in _scaled(block).split(native.module().panel_widest, dim=2):
            parts.append(_next_directions(torch.cat([basis, *parts], dim=2) if parts else basis, part))
        panel = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return panel, torch.bmm(matrices, panel)


def _scaled(block: Tensor) -> Tensor:
    """Columns brought near 1, so that no square of a float64 overflows or vanishes; those of a float32 cannot."""
    if block.dtype != torch.float64:
        return block
    _, exponents = torch.frexp(block.abs().amax(dim=1, keepdim=True))
    half = (exponents / 2).floor().double()  # 2^−1074 has no reciprocal, and two factors do
    return block * torch.exp2(-half) * torch.exp2(half - exponents)


def _next_directions(basis: Tensor, block: Tensor) -> Tensor:
    """As many orthonormal columns off the basis as the block has, with its span as far as that is new."""
    core = native.module()
    count, dim, columns = block.shape
    known = basis.shape[2]
    code = native.DTYPE_CODES[block.dtype]
    workspace = block.new_empty(core.panel_qr_workspace(count, dim, columns), dtype=torch.float64)
    panel = block.clone(memory_format=torch.contiguous_format)
    for number in range(PROJECTIONS_ON_GPU):
        overlap = torch.bmm(basis.mT, panel)
        if known:
            panel = torch.baddbmm(panel, basis, overlap, alpha=-1)
        launches = core.panel_qr_launches(
            panel.data_ptr(),
            overlap.data_ptr(),
            code,
            count,
            dim,
            columns,
            known,
            known * PROJECTIONS_ON_GPU + number,  # an earlier block's random columns are in the basis
            _projection_noise(basis) ** 2,
            workspace.data_ptr(),
        )
        native.launch("krylov_block", launches, panel.device)
    return panel


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
    _check_ritz_pairs(basis, image)
    eigenvalues, rotation = _eigh((basis.mT @ image).double())
    return _rotated(basis, image, eigenvalues, rotation)


@torch.no_grad()
def _ritz_pairs_cuda(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same; VᵀCV up to 112 × 112 (88 on Turing) by csrc/projector/jacobi.cuh.

    Larger ones go to torch.linalg.eigh, which waits for the GPU: they cannot be captured in a CUDA graph.
    """
    _check_ritz_pairs(basis, image)
    with full_float32():
        eigenvalues, rotation = _small_eigh(torch.bmm(basis.mT, image).double())
        return _rotated(basis, image, eigenvalues, rotation)


def _check_ritz_pairs(basis: Tensor, image: Tensor) -> None:
    if basis.shape != image.shape or basis.dtype != image.dtype or basis.dim() != 3:
        given = f"basis {basis.dtype} {tuple(basis.shape)} and image {image.dtype} {tuple(image.shape)}"
        raise refuse("ritz_pairs", given, "[count, d, m] twice", "See krylov_block, which returns both.")


def _eigh(small: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors of float64 matrices that are symmetric but for rounding."""
    eigenvalues, rotation = torch.linalg.eigh((small + small.mT) / 2)
    return eigenvalues.flip(1), rotation.flip(2)


def _small_eigh(small: Tensor) -> tuple[Tensor, Tensor]:
    core, device = native.module(), small.device
    count, size, _ = small.shape
    shared_bytes = SHARED_BYTES if native.capability(device) >= (8, 0) else SHARED_BYTES_TURING
    if size > core.jacobi_most(shared_bytes):
        return _eigh(small)
    eigenvalues, vectors = small.new_empty(count, size), small.new_empty(count, size, size)
    launches = core.jacobi_launches(
        small.data_ptr(), eigenvalues.data_ptr(), vectors.data_ptr(), count, size, shared_bytes
    )
    native.launch("ritz_pairs", launches, device)
    return eigenvalues, vectors.mT


def _rotated(basis: Tensor, image: Tensor, eigenvalues: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rotation = rotation.to(basis.dtype)
    vectors, residuals = basis @ rotation, image @ rotation
    residuals.addcmul_(vectors, eigenvalues[:, None, :].to(basis.dtype), value=-1)
    return eigenvalues, vectors, residuals


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
    return _truncated_eigh(matrices, start, steps, _krylov_block_cpu, _ritz_pairs_cpu)


def _truncated_eigh_cuda(matrices: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the functions above."""
    return _truncated_eigh(matrices, start, steps, _krylov_block_cuda, _ritz_pairs_cuda)


@torch.no_grad()
def _truncated_eigh(
    matrices: Tensor,
    start: Tensor,
    steps: int,
    krylov_block: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ritz_pairs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    op = "truncated_eigh"
    _check_matrices(op, matrices)
    _check_panel(op, "start", start, matrices)
    if steps < 0:
        raise refuse(op, f"steps={steps}", "0 or more", "Two do for most spectra.")
    dim = matrices.shape[1]
    basis, block = start[:, :, :0], start
    image = basis
    for _ in range(steps + 1):
        block, block_image = krylov_block(matrices, basis, block[:, :, : dim - basis.shape[2]])
        basis, image = torch.cat([basis, block], dim=2), torch.cat([image, block_image], dim=2)
        block = block_image
        if basis.shape[2] == dim:
            break
    return ritz_pairs(basis, image)


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


define(
    "inspect_symmetric(Tensor matrices) -> Tensor",
    cpu=_inspect_symmetric_cpu,
    cuda=_inspect_symmetric_cuda,
    fake=_inspect_symmetric_fake,
)
define(
    "tall_product(Tensor matrices, Tensor panel) -> Tensor",
    cpu=_tall_product_cpu,
    cuda=_tall_product_cuda,
    fake=_tall_product_fake,
)
define(
    "krylov_block(Tensor matrices, Tensor basis, Tensor block) -> (Tensor, Tensor)",
    cpu=_krylov_block_cpu,
    cuda=_krylov_block_cuda,
    fake=_krylov_block_fake,
)
define(
    "ritz_pairs(Tensor basis, Tensor image) -> (Tensor, Tensor, Tensor)",
    cpu=_ritz_pairs_cpu,
    cuda=_ritz_pairs_cuda,
    fake=_ritz_pairs_fake,
)
define(
    "truncated_eigh(Tensor matrices, Tensor start, int steps) -> (Tensor, Tensor, Tensor)",
    cpu=_truncated_eigh_cpu,
    cuda=_truncated_eigh_cuda,
    fake=_truncated_eigh_fake,
)
