"""panel_qr, jacobi_eigh, inspect_symmetric and mirror_lower of the native core, against numpy and derived bounds."""

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


# ---- jacobi_eigh -----------------------------------------------------------------------------------------------------

SIZES = [1, 2, 3, 8, 17, 40]
SPECTRA = ["gaussian", "flat", "repeated", "gap", "rank 1", "zero", "negative", "nearly diagonal"]


def spectrum(kind: str, size: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(size)
    return {
        "gaussian": values,
        "flat": np.full(size, 3.0),
        "repeated": np.round(values),
        "gap": np.where(np.arange(size) < size // 2, 1.0, 1e-9),
        "rank 1": np.eye(1, size)[0] * 5,
        "zero": np.zeros(size),
        "negative": -np.exp(3 * values),
        "nearly diagonal": values,
    }[kind]


def symmetric(kind: str, size: int, seed: int) -> np.ndarray:
    """V diag(spectrum) Vᵀ, symmetric to the last bit; V close to I if it is to be nearly diagonal."""
    mixed = np.random.default_rng(seed + 1).standard_normal((size, size))
    V = np.linalg.qr(np.eye(size) + 1e-5 * mixed if kind == "nearly diagonal" else mixed)[0]
    H = V * spectrum(kind, size, seed) @ V.T
    return (H + H.T) / 2


def jacobi_eigh(matrices: np.ndarray, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [count, size] and eigenvectors [count, size, size] of matrices [count, size, size]."""
    count, size = matrices.shape[:2]
    given = Guarded(torch.from_numpy(matrices))
    values = Guarded(torch.full((count, size), float("nan"), dtype=torch.float64))
    vectors = Guarded(torch.full((count, size, size), float("nan"), dtype=torch.float64))
    core.jacobi_eigh(given.view.data_ptr(), values.view.data_ptr(), vectors.view.data_ptr(), count, size, threads)
    given.checked()
    return values.checked().numpy(), vectors.checked().numpy()


def assert_eigh(H: np.ndarray, values: np.ndarray, vectors: np.ndarray) -> None:
    """Normwise backward stable (Higham §19.6): a sweep consists of 2n − 3 sets of rotations of different pairs.

    Each set adds at most 6u‖H‖_F on either side; 12 sweeps are more than any of these matrices needs. Entries that are
    left alone are below another u·n. Eigenvalues move by no more than the matrix does (Weyl); so do numpy's.
    """
    size = len(H)
    relative = 2 * 12 * (2 * size) * gamma(6, torch.float64) + 2 * size * UNIT[torch.float64]
    scale = np.linalg.norm(H)
    assert np.all(np.diff(values) <= 0)
    expected = np.linalg.eigvalsh(H)[::-1]
    assert_within(values, expected, 1.5 * relative * scale)
    assert_within(H @ vectors, vectors * values, 2 * relative * scale)
    assert_within(vectors.T @ vectors, np.eye(size), relative * size**0.5)


@given(
    kinds=st.lists(st.sampled_from(SPECTRA), min_size=1, max_size=3),
    size=st.sampled_from(SIZES),
    scale=st.sampled_from([1e-140, 1.0, 1e140]),  # numpy squares them
    seed=seeds,
)
def test_eigh_equals_numpy(kinds, size, scale, seed):
    matrices = np.stack([symmetric(kind, size, seed + i) for i, kind in enumerate(kinds)]) * scale
    for H, values, vectors in zip(matrices, *jacobi_eigh(matrices), strict=True):
        assert_eigh(H, values, vectors)


@pytest.mark.parametrize("size", [40, 129, 200])
def test_eigh_of_equal_eigenvalues_comes_to_an_end(size):
    """What stands beside the diagonal of QQᵀ is rounding, and so is what rotating it would do."""
    Q = np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0]
    H = Q @ Q.T
    H = (H + H.T) / 2
    values, vectors = jacobi_eigh(H[None])
    assert_eigh(H, values[0], vectors[0])


def test_eigh_of_a_diagonal_is_exact():
    """Nothing is rotated: eigenvalues and unit vectors, equal ones in their order."""
    diagonal = np.array([2.0, -1.0, 5.0, 2.0, 0.0])
    values, vectors = jacobi_eigh(np.diag(diagonal)[None])
    order = [2, 0, 3, 4, 1]
    assert np.array_equal(values[0], diagonal[order])
    assert np.array_equal(vectors[0], np.eye(5)[:, order])


@pytest.mark.parametrize("scale", [1e-280, 1e290])
def test_eigh_at_the_ends_of_its_range(scale):
    H = symmetric("gaussian", 9, 0)
    values, vectors = jacobi_eigh(H[None] * scale)
    assert_eigh(H, values[0] / scale, vectors[0])


def test_eigh_threads_do_not_change_bits():
    matrices = np.stack([symmetric(kind, 20, i) for i, kind in enumerate(SPECTRA)])
    first = jacobi_eigh(matrices, 1)
    for threads in (2, 3):
        assert all(np.array_equal(a, b) for a, b in zip(jacobi_eigh(matrices, threads), first, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 0)])
def test_eigh_of_nothing_does_nothing(shape):
    values, vectors = jacobi_eigh(np.empty(shape))
    assert values.shape == shape[:2]
    assert vectors.shape == shape


def test_eigh_bounds_notice_small_slips():
    H = symmetric("gaussian", 12, 0)
    (values,), (vectors,) = jacobi_eigh(H[None])
    assert_eigh(H, values, vectors)
    slips = [
        (values + np.eye(1, 12)[0] * 1e-10, vectors),
        (values[::-1], vectors[:, ::-1]),
        (values, vectors * (1 + 1e-10)),
        (values, vectors[:, [1, 0, *range(2, 12)]]),
        (values, np.full_like(vectors, np.nan)),
    ]
    for slip in slips:
        with pytest.raises(AssertionError):
            assert_eigh(H, *slip)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_eigh_refuses_what_is_not_finite(bad):
    matrices = np.stack([np.eye(3), np.eye(3)])
    matrices[1, 0, 2] = matrices[1, 2, 0] = bad
    given, values, vectors = (
        Guarded(torch.from_numpy(tensor)) for tensor in (matrices, np.ones((2, 3)), np.ones((2, 3, 3)))
    )
    with pytest.raises(
        ValueError, match=r"jacobi_eigh: 2 entries are NaN or infinite, expected finite ones. See inspect"
    ):
        core.jacobi_eigh(given.view.data_ptr(), values.view.data_ptr(), vectors.view.data_ptr(), 2, 3, 2)
    assert np.array_equal(given.checked().numpy(), matrices, equal_nan=True)
    assert (values.checked() == 1).all()
    assert (vectors.checked() == 1).all()


# ---- inspect_symmetric -----------------------------------------------------------------------------------------------

SQUARES = [0, 1, 2, 31, 32, 33, 65, 100]


def inspect(matrices: torch.Tensor, threads: int = 2) -> list[tuple[int, float, float]]:
    """(entries that are not finite, largest finite magnitude, ‖C − Cᵀ‖_F) of each of [count, size, size]."""
    before = matrices.clone()
    facts = core.inspect_symmetric(
        matrices.data_ptr(), native.DTYPE_CODES[matrices.dtype], *matrices.shape[:2], threads
    )
    assert torch.equal(matrices.nan_to_num(), before.nan_to_num())
    return facts


def assert_facts(matrices: torch.Tensor, facts: list[tuple[int, float, float]]) -> None:
    assert len(facts) == len(matrices)
    for C, (non_finite, largest, asymmetry) in zip(matrices.double().numpy(), facts, strict=True):
        finite = np.isfinite(C)
        assert non_finite == np.sum(~finite)
        assert largest == np.max(np.abs(C[finite]), initial=0)
        expected = np.linalg.norm(C - C.T) if finite.all() else np.nan
        # All terms are positive: half of a sum's relative error, and a rounding each for difference and root; twice.
        assert_within(np.array(asymmetry), np.array(expected), gamma(C.size + 6, torch.float64) * expected)


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
    """One entry of a symmetric matrix differs, or is the largest: found wherever it stands."""
    C = randn(size, size, seed=0, dtype=dtype)
    C = C + C.T
    assert inspect(C[None])[0] == (0, C.abs().max().item(), 0.0)
    places = range(0, size * size, 7) if size > 40 else range(size * size)
    matrices = C.repeat(len(places), 1, 1)
    for matrix, place in zip(matrices, places, strict=True):
        matrix.view(-1)[place] = 64
    for matrix, place, (_, largest, asymmetry) in zip(matrices, places, inspect(matrices), strict=True):
        assert largest == 64
        row, column = divmod(place, size)
        difference = 64 - matrix[column, row].item()
        assert asymmetry == pytest.approx(2**0.5 * abs(difference), rel=4 * UNIT[torch.float64])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inspect_threads_do_not_change_bits(dtype):
    matrices = randn(3, 100, 100, seed=0, dtype=dtype)
    assert inspect(matrices, 1) == inspect(matrices, 2) == inspect(matrices, 3)


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
    for size in SIZES:
        matrices = np.stack([symmetric(kind, size, 0) for kind in SPECTRA])
        for H, values, vectors in zip(matrices, *jacobi_eigh(matrices), strict=True):
            assert_eigh(H, values, vectors)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_core_for_other_instruction_sets(isa, run_python, request):
    folder = request.path.parent
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]\n"
        "import test_projector_core as tests; tests.check_core(); print(tests.core.isa())"
    )
    assert run_python(code, IGM_FAST_ISA=isa).strip() in {isa, core.isa()}
