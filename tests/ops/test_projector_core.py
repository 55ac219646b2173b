"""panel_qr, inspect_symmetric, tall_product and mirror_lower of the native core, against numpy and derived bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import UNIT, assert_within, gamma
from hypothesis import given
from hypothesis import strategies as st

from igm_fast.ops import native

core = native.module()
DTYPES = [torch.float32, torch.float64]
GUARD = 7.0
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 99)


@pytest.fixture(autouse=True)
def _one_thread_for_lapack() -> None:
    """For matrices this small a second one costs more than it brings; the core is told its threads by each call."""
    torch.set_num_threads(1)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Guarded:
    """A contiguous copy with guard values before and behind it."""

    def __init__(self, values: torch.Tensor) -> None:
        self._store = torch.full((values.numel() + 6,), GUARD, dtype=values.dtype)
        self.view = self._store[3:-3].view(values.shape).copy_(values)

    def checked(self) -> torch.Tensor:
        assert (self._store[:3] == GUARD).all()
        assert (self._store[-3:] == GUARD).all()
        return self.view


# ---- panel_qr --------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1), (5, 5), (64, 64), (9, 1), (1500, 1), (17, 9), (513, 7), (512, 40), (1100, 33)]


def panel_qr(panels: torch.Tensor, threads: int = 2) -> torch.Tensor:
    """Panels [count, rows, columns]."""
    guarded = Guarded(panels)
    core.panel_qr(guarded.view.data_ptr(), native.DTYPE_CODES[panels.dtype], *panels.shape, threads)
    return guarded.checked()


def orthonormality_bound(rows: int, k: int, dtype: torch.dtype) -> float:
    """Of ‖QᵀQ − I‖_F after the last round, which begins with ‖AᵀA − I‖ ≤ ½: ‖A‖², ‖R‖² ≤ 3/2, ‖R⁻¹‖² ≤ 2.

    Gram sums take 8 rows at a time, 512 to a chunk; their error and Cholesky's are relative to |A|ᵀ|A| and |R|ᵀ|R|,
    which R⁻¹ enlarges twice; those of the inverse and of the product enter twice (QᵀE + EᵀQ), as does the rounding to
    the panel's dtype.
    """
    additions = 64 + 4 + rows // 512 + 1
    gram = 2 * 1.5 * k * (gamma(additions, torch.float64) + gamma(k + 1, torch.float64))
    product = 2 * (3 * k**1.5 + 1.75 * k) * gamma(k + 2, torch.float64)
    return 1.1 * (gram + product + 2 * UNIT[dtype] * k**0.5)


def assert_orthonormal(Q: torch.Tensor, dtype: torch.dtype) -> None:
    rows, k = Q.shape
    error = torch.linalg.norm(Q.mT @ Q - torch.eye(k, dtype=Q.dtype)).item()
    assert error <= orthonormality_bound(rows, k, dtype)


def assert_spanned(Q: torch.Tensor, A: torch.Tensor, dtype: torch.dtype) -> None:
    """Every column of A, independent ones, lies in the span of Q up to rounding.

    A ← A R⁻¹ keeps the span whatever R⁻¹ is; only the rounding E of the product leaves it, |E| ≤ γ(k)|A||R⁻¹| + u|Q|,
    and ‖E R e_j‖ is what of a_j is lost. In later rounds R⁻¹ is close to I, so that their E are as small as |Q| itself.
    """
    A = A * 2.0 ** -A.abs().amax(0).log2().floor()  # exact, and no square overflows
    k = Q.shape[1]
    R = torch.linalg.qr(A, mode="r")[1]
    norms = torch.linalg.vector_norm(A, dim=0)
    spread = torch.linalg.vector_norm(A.abs() @ torch.linalg.inv(R).abs() @ R.abs(), dim=0)
    later = 5 * (UNIT[dtype] * k**0.5 + 3 * k * gamma(k + 2, torch.float64)) * norms
    bound = 1.5 * (gamma(k + 2, torch.float64) * spread + later) + gamma(len(A), torch.float64) * norms
    lost = torch.linalg.vector_norm(A - Q @ (Q.mT @ A), dim=0)
    assert_within(lost.numpy(), np.zeros(len(lost)), bound.numpy())


def assert_bases(panels: torch.Tensor, bases: torch.Tensor, independent: list[int] | slice = slice(None)) -> None:
    for A, Q in zip(panels.double(), bases.double(), strict=True):
        assert_orthonormal(Q, panels.dtype)
        assert_spanned(Q, A[:, independent], panels.dtype)


def ill_conditioned(count: int, rows: int, columns: int, condition: float, seed: int) -> torch.Tensor:
    """Singular values from 1 down to 1/condition."""
    left, right = torch.linalg.qr(randn(count, rows, columns, seed=seed))[0], randn(columns, columns, seed=seed + 1)
    values = condition ** -torch.linspace(0, 1, columns, dtype=torch.float64)
    return left * values @ torch.linalg.qr(right)[0]


@given(
    shape=st.sampled_from(SHAPES),
    count=st.integers(1, 3),
    condition=st.sampled_from([1.0, 1e2, 1e5]),
    dtype=dtypes,
    seed=seeds,
)
def test_qr_is_orthonormal_and_keeps_the_span(shape, count, condition, dtype, seed):
    panels = ill_conditioned(count, *shape, condition, seed).to(dtype)
    assert_bases(panels, panel_qr(panels))


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float32, (-37, 0, 37, -3, 20)), (torch.float64, (-300, 0, 300, 4, -30)), (torch.float64, (250,) * 5)],
)
def test_qr_of_huge_and_tiny_columns(dtype, exponents):
    panels = (randn(2, 60, 5, seed=0) * 10.0 ** torch.tensor(exponents, dtype=torch.float64)).to(dtype)
    assert_bases(panels, panel_qr(panels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_qr_of_subnormal_columns(dtype):
    """Integers times the smallest number: as good as the integers."""
    integers = torch.randint(-9, 10, (1, 40, 4), generator=torch.Generator().manual_seed(0)).to(dtype)
    smallest = np.finfo(np.float32 if dtype == torch.float32 else np.float64).smallest_subnormal
    assert_bases(integers, panel_qr(integers * float(smallest)))


def dependent_panels(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, list[int]]:
    """Panels of 6 columns and which of these are independent."""
    panels = randn(3, 50, 6, seed=0, dtype=dtype)
    if kind == "zero":
        panels[:, :, [0, 3]] = 0
        return panels, [1, 2, 4, 5]
    if kind == "copies":
        panels[:, :, [2, 5]] = panels[:, :, [0, 0]]
        return panels, [0, 1, 3, 4]
    if kind == "scaled copy":
        panels[:, :, 4] = panels[:, :, 1] * 2.0**-40
        return panels, [0, 1, 2, 3, 5]
    if kind == "combination":
        panels[:, :, 5] = panels[:, :, :5] @ torch.arange(1, 6).to(dtype)
        return panels, [0, 1, 2, 3, 4]
    if kind == "all equal":
        return panels[:, :, :1].expand(3, 50, 6), [0]
    return torch.zeros_like(panels), []


@pytest.mark.parametrize("kind", ["zero", "copies", "scaled copy", "combination", "all equal", "all zero"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_qr_replaces_dependent_columns(kind, dtype):
    panels, independent = dependent_panels(kind, dtype)
    bases = panel_qr(panels)
    assert_bases(panels, bases, independent)
    assert torch.equal(bases, panel_qr(panels))  # the replacement is the same every time


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 20])
def test_qr_completes_a_square_panel(dtype, rank):
    """As many columns as rows, most of them dependent: the result is an orthogonal matrix."""
    panels = (randn(1, 40, rank, seed=0) @ randn(1, rank, 40, seed=1)).to(dtype)
    assert_bases(panels, panel_qr(panels), list(range(rank)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 4])  # threads share the rows of one panel, or the panels
def test_qr_threads_do_not_change_bits(dtype, count):
    panels = ill_conditioned(count, 1300, 19, 1e4, seed=0).to(dtype)
    panels[..., 7] = panels[..., 3]
    first = panel_qr(panels, 1)
    for threads in (2, 3):
        assert torch.equal(panel_qr(panels, threads), first)


def test_qr_bounds_notice_a_single_round_and_a_lost_column():
    A = ill_conditioned(1, 300, 12, 1e4, seed=0)[0]
    once = A @ torch.linalg.inv(torch.linalg.cholesky(A.mT @ A).mT)
    with pytest.raises(AssertionError):
        assert_orthonormal(once, torch.float64)
    Q = torch.linalg.qr(A)[0]
    assert_orthonormal(Q, torch.float64)
    assert_spanned(Q, A, torch.float64)
    with pytest.raises(AssertionError, match="expected"):
        assert_spanned(Q[:, :-1], A, torch.float64)


@pytest.mark.parametrize("shape", [(0, 5, 3), (3, 5, 0), (2, 0, 0)])
def test_qr_of_nothing_does_nothing(shape):
    assert panel_qr(torch.empty(shape)).shape == shape


def test_qr_refuses_more_columns_than_rows():
    panels = randn(1, 3, 4, seed=0)
    guarded = Guarded(panels)
    with pytest.raises(ValueError, match=r"panel_qr: panel of 3 rows and 4 columns, expected columns <= rows. No more"):
        core.panel_qr(guarded.view.data_ptr(), native.DTYPE_CODES[torch.float64], 1, 3, 4, 1)
    assert torch.equal(guarded.checked(), panels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (700, 2), (899, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_qr_refuses_what_is_not_finite(bad, place, dtype):
    """The bad panel stays, the others are done."""
    panels = randn(3, 900, 5, seed=0, dtype=dtype)
    panels[1][place] = bad
    guarded = Guarded(panels)
    with pytest.raises(
        ValueError, match=r"panel_qr: 1 of 3 panels hold NaN or infinite entries, expected finite ones. Lo"
    ):
        core.panel_qr(guarded.view.data_ptr(), native.DTYPE_CODES[dtype], 3, 900, 5, 2)
    after = guarded.checked()
    assert torch.equal(after[1].nan_to_num(), panels[1].nan_to_num())
    assert_bases(panels[[0, 2]], after[[0, 2]])


# ---- inspect_symmetric -----------------------------------------------------------------------------------------------

SQUARES = [0, 1, 2, 5, 63, 64, 65, 130]


def inspect(matrices: torch.Tensor, threads: int = 2) -> list[list[float]]:
    """[entries that are not finite, ‖C − Cᵀ‖_F, ‖C‖_F, tr C, min cᵢᵢ] of each of [count, size, size]."""
    before = matrices.clone()
    facts = core.inspect_symmetric(
        matrices.data_ptr(), native.DTYPE_CODES[matrices.dtype], *matrices.shape[:2], threads
    )
    assert torch.equal(matrices.nan_to_num(), before.nan_to_num())
    return [list(fact) for fact in facts]


def assert_facts(matrices: torch.Tensor, facts: list[list[float]]) -> None:
    assert len(facts) == len(matrices)
    for C, (non_finite, *others) in zip(matrices.double().numpy(), facts, strict=True):
        assert non_finite == np.sum(~np.isfinite(C))
        if non_finite:
            assert np.isnan(others).all()
            continue
        diagonal = np.diagonal(C)
        expected = np.array([np.linalg.norm(C - C.T), np.linalg.norm(C), diagonal.sum(), diagonal.min(initial=np.inf)])
        expected[3] = expected[3] if C.size else 0.0
        # All squares are positive: half of a sum's relative error, and a rounding each for difference and root; twice.
        relative = gamma(C.size + 6, torch.float64)
        assert_within(
            np.array(others), expected, relative * np.array([expected[0], expected[1], np.abs(diagonal).sum(), 0])
        )


@given(size=st.sampled_from(SQUARES), count=st.integers(0, 3), dtype=dtypes, seed=seeds)
def test_inspect_equals_numpy(size, count, dtype, seed):
    matrices = randn(count, size, size, seed=seed, dtype=dtype)
    assert_facts(matrices, inspect(matrices))


@given(
    size=st.sampled_from(SQUARES[1:]),
    dtype=dtypes,
    bad=st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 99), st.sampled_from([np.nan, np.inf, -np.inf])), max_size=6
    ),
    seed=seeds,
)
def test_inspect_counts_what_is_not_finite(size, dtype, bad, seed):
    """Anywhere, also infinite opposite finite; the other matrix is not affected."""
    matrices = randn(2, size, size, seed=seed, dtype=dtype)
    for row, column, value in bad:
        matrices[1, row % size, column % size] = value
    with np.errstate(invalid="ignore"):
        assert_facts(matrices, inspect(matrices))


@pytest.mark.parametrize("size", SQUARES[2:])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inspect_sees_every_entry(size, dtype):
    """One entry of a symmetric matrix differs: found wherever it stands, and counted in the norm."""
    C = randn(size, size, seed=0, dtype=dtype)
    C = C + C.T
    assert inspect(C[None])[0][:2] == [0, 0.0]
    places = range(0, size * size, 7) if size > 40 else range(size * size)
    matrices = C.repeat(len(places), 1, 1)
    for matrix, place in zip(matrices, places, strict=True):
        matrix.view(-1)[place] = 64
    for matrix, place, (_, asymmetry, norm, _, _) in zip(matrices, places, inspect(matrices), strict=True):
        row, column = divmod(place, size)
        difference = 64 - matrix[column, row].item()
        assert asymmetry == pytest.approx(2**0.5 * abs(difference), rel=4 * UNIT[torch.float64])
        assert norm == pytest.approx(np.linalg.norm(matrix.double().numpy()), rel=1e-12)


def test_inspect_of_huge_entries_that_are_finite():
    """Squares overflow: nothing is reported as not finite."""
    non_finite, _, norm, trace, least = inspect(torch.full((1, 3, 3), 1e200, dtype=torch.float64))[0]
    assert (non_finite, norm, trace, least) == (0, np.inf, 3e200, 1e200)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inspect_threads_do_not_change_bits(dtype):
    matrices = randn(3, 100, 100, seed=0, dtype=dtype)
    assert inspect(matrices, 1) == inspect(matrices, 2) == inspect(matrices, 3)


# ---- tall_product ----------------------------------------------------------------------------------------------------

TALL = [(0, 3), (1, 1), (5, 0), (6, 16), (7, 3), (95, 17), (97, 33), (1030, 16), (1100, 5)]


def tall_product(matrices: torch.Tensor, panels: torch.Tensor, threads: int = 2) -> torch.Tensor:
    guarded = Guarded(torch.full_like(panels, float("nan")))
    count, size, columns = panels.shape
    code = native.DTYPE_CODES[panels.dtype]
    core.tall_product(
        matrices.data_ptr(), panels.data_ptr(), guarded.view.data_ptr(), code, count, size, columns, threads
    )
    return guarded.checked()


def assert_product(C: torch.Tensor, V: torch.Tensor, product: torch.Tensor) -> None:
    left, right = C.double().numpy(), V.double().numpy()
    # A rounding per term of the sum, one per chunk, and what numpy's own float64 sum may add.
    depth = gamma(C.shape[-1] + 4, V.dtype) + gamma(C.shape[-1], torch.float64)
    assert_within(product.double().numpy(), left @ right, depth * (np.abs(left) @ np.abs(right)))


@pytest.mark.parametrize("size_and_columns", TALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_tall_product_equals_numpy(size_and_columns, dtype, count):
    size, columns = size_and_columns
    C, V = randn(count, size, size, seed=1, dtype=dtype), randn(count, size, columns, seed=2, dtype=dtype)
    product = tall_product(C, V)
    assert_product(C, V, product)
    assert torch.equal(product, tall_product(C, V, threads=1))  # any number of threads gives the same bits


def test_tall_product_bound_notices_a_lost_entry():
    C, V = randn(1, 97, 97, seed=1), randn(1, 97, 5, seed=2)
    product = tall_product(C, V)
    C[0, 96, 96] = 0
    with pytest.raises(AssertionError):
        assert_product(C, V, product)


def test_tall_product_spreads_nan_along_rows_only():
    C, V = randn(1, 20, 20, seed=1), randn(1, 20, 4, seed=2)
    C[0, 3, 7] = float("nan")
    assert torch.equal(tall_product(C, V).isnan().any(dim=2)[0], torch.arange(20) == 3)


# ---- mirror_lower ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SQUARES)
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mirror_copies_the_lower_triangle(size, count, dtype):
    """Bit for bit, whatever stood above the diagonal."""
    matrices = randn(count, size, size, seed=0, dtype=dtype)
    matrices += torch.full((size, size), float("nan"), dtype=dtype).triu(1)
    lower = matrices.nan_to_num().tril()
    for threads in (1, 2):
        guarded = Guarded(matrices)
        core.mirror_lower(guarded.view.data_ptr(), native.DTYPE_CODES[dtype], count, size, threads)
        assert torch.equal(guarded.checked(), lower + lower.tril(-1).mT)


# ---- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [native.DTYPE_CODES[torch.float16], 9])
def test_other_element_types_are_refused(code):
    C = torch.ones(4, 4)
    for call in (
        lambda: core.panel_qr(C.data_ptr(), code, 1, 4, 4, 1),
        lambda: core.inspect_symmetric(C.data_ptr(), code, 1, 4, 1),
        lambda: core.tall_product(C.data_ptr(), C.data_ptr(), C.data_ptr(), code, 1, 4, 4, 1),
        lambda: core.mirror_lower(C.data_ptr(), code, 1, 4, 1),
    ):
        with pytest.raises(
            ValueError, match=f"dtype code {code}, expected float32 or float64. Convert before the call"
        ):
            call()
    assert (C == 1).all()


def check_core() -> None:
    """What must hold for any instruction set; runs in an interpreter of its own for each."""
    torch.set_num_threads(1)
    for dtype in DTYPES:
        for rows, columns in SHAPES:
            panels = ill_conditioned(2, rows, columns, 1e4, seed=0).to(dtype)
            assert_bases(panels, panel_qr(panels))
        for kind in ("zero", "copies", "all zero"):
            panels, independent = dependent_panels(kind, dtype)
            assert_bases(panels, panel_qr(panels), independent)
        for size in SQUARES:
            matrices = randn(2, size, size, seed=0, dtype=dtype)
            assert_facts(matrices, inspect(matrices))
        for size, columns in TALL:
            C, V = randn(2, size, size, seed=1, dtype=dtype), randn(2, size, columns, seed=2, dtype=dtype)
            assert_product(C, V, tall_product(C, V))


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_core_for_other_instruction_sets(isa, run_python, request):
    folder = request.path.parent
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]\n"
        "import test_projector_core as tests; tests.check_core(); print(tests.core.isa())"
    )
    assert run_python(code, IGM_FAST_ISA=isa).strip() in {isa, core.isa()}
