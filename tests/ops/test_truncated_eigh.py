"""truncated_eigh and inspect_symmetric: against numpy, as operators, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast

ops = torch.ops.igm_fast
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def symmetric(eigenvalues, seed=0, dtype=torch.float64, count=1):
    generator = torch.Generator().manual_seed(seed)
    dim = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64))[0]
    C = (Q * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ Q.mT
    return ((C + C.mT) / 2).to(dtype).contiguous()


def start_block(C, rank, seed=1):
    return torch.randn(*C.shape[:2], rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(C)


@given(
    dim=st.sampled_from([1, 2, 7, 40, 129]),
    share=st.floats(0.0, 1.0),
    count=st.integers(1, 3),
    steps=st.integers(0, 3),
    kind=st.sampled_from(["decay", "flat", "rank 1", "zero", "clusters", "negative"]),
    dtype=st.sampled_from(list(UNIT)),
)
def test_what_is_returned_is_consistent(dim, share, count, steps, kind, dtype):
    """U orthonormal, R = CU − UΛ, UᵀR = 0, Λ descending: whatever the spectrum, however few steps."""
    values = {
        "decay": np.logspace(0, -6, dim),
        "flat": np.ones(dim),
        "rank 1": np.eye(1, dim)[0],
        "zero": np.zeros(dim),
        "clusters": np.repeat([3.0, 1.0, 1e-3], dim)[::3][:dim],
        "negative": np.linspace(-1, 1, dim),
    }[kind]
    C = symmetric(values, dtype=dtype, count=count)
    rank = max(1, round(share * dim))
    eigenvalues, U, R = ops.truncated_eigh(C, start_block(C, rank), steps)
    assert eigenvalues.dtype == torch.float64
    rank = min(rank * (steps + 1), dim)  # of the Krylov space
    assert eigenvalues.shape == (count, rank)
    assert torch.all(eigenvalues.diff(dim=1) <= 1e-12)
    # Products of depth d and k in the working precision; ‖C‖ ≤ 3 here.
    tolerance = 20 * (dim + rank + 4) * UNIT[dtype]
    identity = torch.eye(rank, dtype=torch.float64).expand(count, -1, -1)
    torch.testing.assert_close(U.double().mT @ U.double(), identity, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        R.double(), C.double() @ U.double() - U.double() * eigenvalues[:, None], rtol=0, atol=tolerance
    )
    torch.testing.assert_close(U.double().mT @ R.double(), torch.zeros_like(identity), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", list(UNIT))
def test_leading_pairs_converge(dtype):
    values = np.concatenate([[8.0, 4.0, 2.0, 1.0], np.full(60, 1e-2)])
    C = symmetric(values, dtype=dtype, count=2)
    eigenvalues, U, R = ops.truncated_eigh(C, start_block(C, 8), 4)
    np.testing.assert_allclose(eigenvalues[:, :4].numpy(), [values[:4]] * 2, rtol=1e-6)
    assert R[:, :, :4].abs().max() < 1e-4
    exact = torch.linalg.eigh(C.double())[1].flip(2)[:, :, :4]
    cosines = torch.linalg.matrix_norm(exact.mT @ U[:, :, :4].double(), ord=2)
    torch.testing.assert_close(cosines, torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_too_few_steps_are_seen_in_the_residual():
    C = symmetric(np.linspace(1, 0.5, 50))
    assert ops.truncated_eigh(C, start_block(C, 3), 0)[2].abs().max() > 1e-2


def test_a_good_start_needs_no_step():
    C = symmetric(np.logspace(0, -3, 30))
    exact = torch.linalg.eigh(C)[1].flip(2)[:, :, :5]
    eigenvalues, _, R = ops.truncated_eigh(C, exact, 0)
    np.testing.assert_allclose(eigenvalues[0].numpy(), np.logspace(0, -3, 30)[:5], rtol=1e-10)
    assert R.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize(("dim", "alive"), [(60, 24), (512, 48), (100, 16)])
def test_rounding_that_never_leaves_the_basis(dim, alive, dtype):
    """The basis holds all of some coordinates and the block has no others: projection leaves noise inside of it."""
    basis, block = torch.zeros(1, dim, alive, dtype=dtype), torch.zeros(1, dim, 16, dtype=dtype)
    basis[0, :alive] = torch.linalg.qr(start_block(torch.zeros(1, alive, alive).double(), alive)[0])[0].to(dtype)
    block[:, :alive] = start_block(basis[:, :alive], 16, seed=2)
    Q, _ = ops.krylov_block(torch.eye(dim, dtype=dtype)[None], basis, block)
    tolerance = 4 * dim**0.5 * UNIT[dtype]
    assert (basis.mT @ Q).abs().max() <= tolerance
    torch.testing.assert_close(Q.mT @ Q, torch.eye(16, dtype=dtype)[None], rtol=0, atol=16 * tolerance)


@pytest.mark.parametrize("dtype", list(UNIT))
def test_equal_eigenvalues_however_many_blocks(dtype):
    """Each block is in the basis already, and random columns take its place: other ones every time."""
    C = torch.eye(100, dtype=dtype)[None]
    eigenvalues, U, _ = ops.truncated_eigh(C, start_block(C, 8), 11)
    torch.testing.assert_close(eigenvalues, torch.ones(1, 96, dtype=torch.float64), rtol=0, atol=400 * UNIT[dtype])
    torch.testing.assert_close(U.mT @ U, torch.eye(96, dtype=dtype)[None], rtol=0, atol=400 * UNIT[dtype])


def test_threads_do_not_change_the_answer_beyond_rounding():
    C = symmetric(np.logspace(0, -4, 200), dtype=torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.truncated_eigh(C, start_block(C, 16), 2)[0])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_inputs_stay_and_no_graph_is_recorded():
    C = symmetric(np.linspace(0, 1, 10)).requires_grad_()
    block = start_block(C.detach(), 3)
    before = C.detach().clone(), block.clone()
    results = ops.truncated_eigh(C, block, 2)
    assert not any(result.requires_grad for result in results)
    assert torch.equal(C.detach(), before[0])
    assert torch.equal(block, before[1])


def test_opcheck():
    C = symmetric(np.linspace(0, 1, 10), count=2)
    torch.library.opcheck(ops.truncated_eigh.default, (C, start_block(C, 3), 2))
    torch.library.opcheck(ops.inspect_symmetric.default, (C,))


def test_compiles_without_a_break():
    C = symmetric(np.linspace(0, 1, 10))
    block = start_block(C, 3)
    compiled = torch.compile(lambda c, b: ops.truncated_eigh(c, b, 2)[0].sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(C, block), ops.truncated_eigh(C, block, 2)[0].sum())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"matrices": torch.zeros(3, 3)}, r"matrices has shape \(3, 3\), expected \[count, d, d\]"),
        ({"matrices": torch.zeros(1, 3, 4)}, r"matrices has shape \(1, 3, 4\)"),
        ({"matrices": torch.zeros(1, 3, 3).half()}, "matrices is torch.float16, expected float32 or float64"),
        ({"matrices": torch.zeros(1, 3, 6)[:, :, ::2]}, "matrices has strides"),
        ({"start": torch.zeros(1, 4, 2)}, r"start has shape \(1, 4, 2\), expected \(1, 3, k\) with 1 <= k <= 3"),
        ({"start": torch.zeros(1, 3, 4)}, r"start has shape \(1, 3, 4\)"),
        ({"start": torch.zeros(1, 3, 0)}, r"start has shape \(1, 3, 0\)"),
        ({"start": torch.zeros(1, 3, 2).double()}, "start is torch.float64, expected torch.float32"),
        ({"steps": -1}, "steps=-1, expected 0 or more"),
    ],
)
def test_slips_are_named(changes, said):
    arguments = {"matrices": torch.eye(3)[None], "start": torch.ones(1, 3, 2), "steps": 1} | changes
    with pytest.raises(ValueError, match=said):
        ops.truncated_eigh(**arguments)


def test_inspect_symmetric():
    C = torch.tensor([[[1.0, 2.0], [5.0, -7.0]], [[float("nan"), 0.0], [0.0, float("inf")]]])
    facts = ops.inspect_symmetric(C)
    # Non-finite entries, ‖C − Cᵀ‖, ‖C‖, trace, least diagonal entry.
    assert facts[0].tolist() == pytest.approx([0, np.sqrt(2 * 9), np.sqrt(1 + 4 + 25 + 49), -6, -7])
    assert facts[1, 0] == 2
    assert facts[1, 1:].isnan().all()
    with pytest.raises(ValueError, match=r"expected \[count, d, d\]"):
        ops.inspect_symmetric(torch.zeros(2, 3))
