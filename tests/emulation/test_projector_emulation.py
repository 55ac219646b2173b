"""The projector's operators for a GPU, host code and kernels, executed on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import UNIT, assert_within, gamma
from projector_cases import (
    DTYPES,
    assert_directions,
    assert_facts,
    assert_pairs,
    bits,
    orthonormal,
    randn,
    spectra,
    symmetric,
)

from igm_fast.ops import projector as ops
from igm_fast.projector import flat_projectors


@pytest.fixture(autouse=True)
def _one_thread_for_lapack() -> None:
    torch.set_num_threads(1)


# ---- inspect_symmetric -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 63, 64, 65, 130])
def test_inspect(emulated, size, dtype):
    matrices = randn(2, size, size, dtype=dtype)
    matrices[1] = matrices[1] + matrices[1].mT
    facts = ops._inspect_symmetric_cuda(matrices)
    assert_facts(matrices, facts)
    assert facts[1, 1] == 0
    emulated.seed = 1
    assert bits(ops._inspect_symmetric_cuda(matrices)) == bits(facts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inspect_counts_what_is_not_finite(emulated, dtype):  # noqa: ARG001
    matrices = randn(3, 70, 70, dtype=dtype)
    for place, value in {(0, 0): np.nan, (69, 1): np.inf, (1, 69): -np.inf, (66, 66): np.nan, (68, 65): np.inf}.items():
        matrices[1][place] = value
    with np.errstate(invalid="ignore"):
        assert_facts(matrices, ops._inspect_symmetric_cuda(matrices))


def test_inspect_sees_every_entry(emulated):  # noqa: ARG001
    """One entry of a symmetric matrix differs: found wherever it stands, and counted in the norm."""
    size = 67
    C = randn(size, size)
    C = C + C.mT
    places = [0, 5, 63, 64, 66, 64 * size + 3, 3 * size + 64, 65 * size + 66, 66 * size + 65, size * size - 1]
    matrices = C.repeat(len(places), 1, 1)
    for matrix, place in zip(matrices, places, strict=True):
        matrix.view(-1)[place] = 64
    assert_facts(matrices, ops._inspect_symmetric_cuda(matrices))


def test_inspect_of_extremes_and_of_nothing(emulated):  # noqa: ARG001
    huge = torch.full((1, 3, 3), 1e200, dtype=torch.float64)
    assert ops._inspect_symmetric_cuda(huge).tolist() == [[0, 0, np.inf, 3e200, 1e200]]
    assert ops._inspect_symmetric_cuda(torch.empty(0, 3, 3)).shape == (0, 5)
    assert ops._inspect_symmetric_cuda(torch.empty(2, 0, 0)).tolist() == [[0.0] * 5] * 2


# ---- krylov_block ----------------------------------------------------------------------------------------------------


SHAPES = [(1, 0, 1), (2, 1, 1), (5, 0, 5), (9, 4, 5), (40, 0, 16), (70, 23, 17), (129, 3, 16), (129, 128, 1)]
SHAPES += [(200, 48, 64)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_krylov_block(emulated, shape, dtype):
    dim, known, columns = shape
    basis = orthonormal(dim, known, 1, dtype, count=2)
    block, C = randn(2, dim, columns, seed=2, dtype=dtype), randn(2, dim, dim, seed=3, dtype=dtype)
    before = bits(block, basis, C)
    Q, image = ops._krylov_block_cuda(C, basis, block)
    assert Q.dtype == dtype
    assert bits(block, basis, C) == before
    assert_directions(basis, block, Q)
    left, right = C.double().numpy(), Q.double().numpy()
    assert_within(image.double().numpy(), left @ right, 2 * gamma(dim, dtype) * (np.abs(left) @ np.abs(right)))
    emulated.seed = 5
    assert bits(*ops._krylov_block_cuda(C, basis, block)) == bits(Q, image)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("known", [0, 20])
@pytest.mark.parametrize("kind", ["zero", "one zero", "copies", "in the basis", "partly in the basis", "graded"])
def test_columns_that_bring_nothing_new_are_replaced(emulated, kind, known, dtype):  # noqa: ARG001
    dim, columns = 90, 12
    basis = orthonormal(dim, known, 1, dtype)
    block = randn(1, dim, columns, seed=2, dtype=dtype)
    if kind == "zero":
        block.zero_()
    elif kind == "one zero":
        block[:, :, 3] = 0
    elif kind == "copies":
        block[:, :, 5:] = block[:, :, :1] * 3
    elif kind == "in the basis" and known:
        block = basis @ randn(1, known, columns, seed=4, dtype=dtype)
    elif kind == "partly in the basis" and known:
        block[:, :, :6] = basis[:, :, :6]
    elif kind == "graded":
        block *= torch.logspace(0, -18, columns, dtype=torch.float64).to(dtype)
    Q, _ = ops._krylov_block_cuda(torch.eye(dim, dtype=dtype)[None], basis, block)
    assert_directions(basis, block, Q)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_that_never_leaves_the_basis(emulated, dtype):  # noqa: ARG001
    """The basis holds all of some coordinates and the block has no others: projection leaves noise inside of it."""
    dim, alive = 60, 24
    basis = torch.zeros(1, dim, alive, dtype=dtype)
    basis[:, :alive] = orthonormal(alive, alive, 1, dtype)
    block = torch.zeros(1, dim, 16, dtype=dtype)
    block[:, :alive] = randn(1, alive, 16, seed=2, dtype=dtype)
    Q, _ = ops._krylov_block_cuda(torch.eye(dim, dtype=dtype)[None], basis, block)
    assert_directions(basis, block, Q)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 2.0**-140),
        (torch.float32, 2.0**126),
        (torch.float64, 2.0**-1060),
        (torch.float64, 2.0**-600),
        (torch.float64, 2.0**1020),
    ],
)
def test_scales_at_the_ends_of_a_dtype(emulated, dtype, scale):  # noqa: ARG001
    """Also of subnormal numbers, which have few digits: small integers times the scale."""
    small = torch.randint(-3, 4, (1, 50, 6), generator=torch.Generator().manual_seed(0)).double()
    block = (small * scale).to(dtype)
    Q, _ = ops._krylov_block_cuda(torch.eye(50, dtype=dtype)[None], block[:, :, :0], block)
    assert_directions(block[:, :, :0], small, Q)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_blocks_go_in_parts(emulated, dtype):  # noqa: ARG001
    basis, block = orthonormal(150, 7, 1, dtype), randn(1, 150, 140, seed=2, dtype=dtype)
    block[:, :, 100] = block[:, :, 3]
    Q, _ = ops._krylov_block_cuda(torch.eye(150, dtype=dtype)[None], basis, block)
    assert_directions(basis, block, Q)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("known", [0, 3])
def test_nan_stays_in_its_matrix_and_is_not_lost(emulated, value, known):  # noqa: ARG001
    basis, block = orthonormal(30, known, 1, torch.float32, count=2), randn(2, 30, 5, dtype=torch.float32)
    block[1, 4, 2] = value
    Q, _ = ops._krylov_block_cuda(torch.eye(30)[None].repeat(2, 1, 1), basis, block)
    assert Q[1].isnan().all()
    assert_directions(basis[:1], block[:1], Q[:1])


def test_no_matrices(emulated):  # noqa: ARG001
    nothing = torch.empty(0, 6, 6)
    Q, image = ops._krylov_block_cuda(nothing, nothing[:, :, :2], nothing[:, :, :3])
    assert Q.shape == image.shape == (0, 6, 3)


# ---- ritz_pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 16, 31, 48])
@pytest.mark.parametrize("scale", [1.0, 1e-290, 1e290])
def test_small_eigenproblems(emulated, size, scale):
    matrices = torch.stack([symmetric(values, seed=7) for values in spectra(size).values()])
    eigenvalues, vectors = ops._small_eigh(matrices * scale)
    for A, values, columns in zip(matrices, eigenvalues, vectors, strict=True):
        assert_pairs(A, values / scale, columns)
    emulated.seed = 2
    assert bits(*ops._small_eigh(matrices * scale)) == bits(eigenvalues, vectors)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_the_largest_that_one_block_takes(emulated, capability):
    emulated.capability = capability
    size = 88 if capability < (8, 0) else 112
    A = symmetric(np.logspace(0, -5, size))[None]
    eigenvalues, vectors = ops._small_eigh(A)
    assert_pairs(A[0], eigenvalues[0], vectors[0])
    larger = symmetric(np.logspace(0, -5, size + 1))[None]
    eigenvalues, vectors = ops._small_eigh(larger)  # by torch
    assert_pairs(larger[0], eigenvalues[0], vectors[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(2, 2), (0, 5), (5, 0)])
def test_not_finite_gives_nan_in_that_matrix(emulated, value, place):  # noqa: ARG001
    matrices = torch.stack([symmetric(np.arange(7.0)), symmetric(np.arange(7.0))])
    matrices[0][place] = value
    eigenvalues, vectors = ops._small_eigh(matrices)
    assert eigenvalues[0].isnan().all()
    assert vectors[0].isnan().all()
    assert_pairs(matrices[1], eigenvalues[1], vectors[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(spectra(1)))
@pytest.mark.parametrize(("dim", "rank", "steps"), [(1, 1, 0), (7, 3, 3), (40, 5, 3), (129, 16, 2), (40, 40, 1)])
def test_truncated_eigh(emulated, dim, rank, steps, kind, dtype):
    """U orthonormal, R = CU − UΛ, UᵀR = 0, Λ descending and below λmax: whatever the spectrum, however few steps."""
    C = symmetric(spectra(dim)[kind]).to(dtype)[None].contiguous()
    start = randn(1, dim, rank, seed=1, dtype=dtype)
    eigenvalues, U, R = ops._truncated_eigh_cuda(C, start, steps)
    rank = min(rank * (steps + 1), dim)
    assert eigenvalues.shape == (1, rank)
    assert torch.all(eigenvalues.diff(dim=1) <= 0)
    tolerance = 20 * (dim + rank + 4) * UNIT[dtype]  # products of depth d and m in the working precision; ‖C‖ ≤ 3
    assert eigenvalues.max() <= torch.linalg.eigvalsh(C.double()).max() + tolerance
    identity = torch.eye(rank, dtype=torch.float64)[None]
    torch.testing.assert_close(U.double().mT @ U.double(), identity, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        R.double(), C.double() @ U.double() - U.double() * eigenvalues[:, None], rtol=0, atol=tolerance
    )
    torch.testing.assert_close(U.double().mT @ R.double(), torch.zeros_like(identity), rtol=0, atol=tolerance)
    emulated.seed = 4
    assert bits(*ops._truncated_eigh_cuda(C, start, steps)) == bits(eigenvalues, U, R)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_eigenvalues_however_many_blocks(emulated, dtype):  # noqa: ARG001
    """Each block is in the basis already, and random columns take its place: other ones every time."""
    C = torch.eye(100, dtype=dtype)[None]
    eigenvalues, U, _ = ops._truncated_eigh_cuda(C, randn(1, 100, 8, dtype=dtype), 11)
    torch.testing.assert_close(eigenvalues, torch.ones(1, 96, dtype=torch.float64), rtol=0, atol=400 * UNIT[dtype])
    torch.testing.assert_close(U.mT @ U, torch.eye(96, dtype=dtype)[None], rtol=0, atol=400 * UNIT[dtype])


# ---- what is made of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.4, 4.0])
@pytest.mark.parametrize("kind", ["fast", "slow", "clusters", "dead inputs"])
def test_certificates_hold_with_these_operators(emulated, monkeypatch, kind, tau):  # noqa: ARG001
    for name in ("inspect_symmetric", "tall_product", "krylov_block", "ritz_pairs", "truncated_eigh"):
        monkeypatch.setattr(torch.ops.igm_fast, name, getattr(ops, f"_{name}_cuda"))
    dim = 384
    if kind == "dead inputs":
        C = torch.zeros(dim, dim, dtype=torch.float64)
        C[:40, :40] = symmetric(np.logspace(0, -3, 40))
    else:
        decays = {
            "fast": np.logspace(0, -6, dim),
            "slow": 1 / np.arange(1, dim + 1),
            "clusters": np.repeat([1.0, 0.9, 0.2, 1e-4], [5, 5, 6, dim - 16]),
        }
        C = symmetric(decays[kind])
    C = C.float()
    made = flat_projectors({"layer": C}, tau, "truncated")["layer"]
    values, vectors = torch.linalg.eigh(C.double())
    exact = (vectors * torch.exp(-tau * (values - values[0]) / (values[-1] - values[0]))) @ vectors.mT
    error = torch.linalg.matrix_norm(made.dense().double() - exact, ord=2)
    assert error <= made.error_bound
