"""The sketch operators against float64 oracles, with bounds from a rounding analysis."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import oracles
import pytest
import torch
from bounds import UNIT, assert_within, gamma
from covariance_cases import draw_conv, laid_out
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import covariance_sketch, native
from igm_fast.ops import patches as patching
from igm_fast.ops.covariance_sketch import sketch_form

ops = torch.ops.igm_fast
INPUTS = list(UNIT)
SUMS = [torch.float32, torch.float64]
GUARD = 7.0
SAME = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
POINTWISE = ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def snapshot(tensor: torch.Tensor) -> bytes:
    return tensor.double().numpy().tobytes()  # NaN equals itself


class Outputs:
    """Sums that begin at 1, 2 and 3, with guard values before and behind each."""

    def __init__(self, dtype: torch.dtype, *shapes: tuple[int, ...]) -> None:
        self._stores = [torch.full((math.prod(shape) + 6,), GUARD, dtype=dtype) for shape in shapes]
        self.views = [
            store[3:-3].view(shape).fill_(start)
            for store, shape, start in zip(self._stores, shapes, (1, 2, 3), strict=True)
        ]

    def checked(self) -> list[np.ndarray]:
        for store in self._stores:
            assert (store[:3] == GUARD).all()
            assert (store[-3:] == GUARD).all()
        return [view.double().numpy() for view in self.views]


# ---- cases and bounds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Input and Ω of a convolution; the form that has to be taken, None: the operator's choice."""

    input: torch.Tensor
    geometry: tuple  # kernel size, stride, padding, dilation, groups: as the operators and the oracle take them
    omega: torch.Tensor  # [groups, d, k], of the dtype of the sums
    form: str | None = None

    @property
    def summed(self) -> np.ndarray:
        """What the sums see: rounding to the dtype of the outputs comes before any product."""
        return self.input.detach().to(self.omega.dtype).double().numpy()

    @property
    def axes(self) -> int:
        return self.input.dim() - 2


def conv_case(shape: tuple, geometry: tuple, columns: int = 5, *, form=None, dtype=torch.float32, seed=0) -> Case:
    groups = geometry[-1]
    dim = shape[1] // groups * math.prod(geometry[0])
    return Case(randn(*shape, seed=seed, dtype=dtype), geometry, randn(groups, dim, columns, seed=1, dtype=dtype), form)


def run(case: Case, alpha: float = 1.0) -> list[np.ndarray]:
    before = snapshot(case.input), snapshot(case.omega)
    groups, dim, _ = case.omega.shape
    outputs = Outputs(case.omega.dtype, tuple(case.omega.shape), (groups, dim), (groups,))
    op = getattr(ops, f"conv{case.axes}d_covariance_sketch")
    with mock.patch.object(covariance_sketch, "sketch_form", return_value=case.form) if case.form else mock.MagicMock():
        op(*outputs.views, case.input, case.omega, *case.geometry, alpha=alpha)
    assert (snapshot(case.input), snapshot(case.omega)) == before
    return outputs.checked()


def assert_moments(total: np.ndarray, trace: np.ndarray, patches: np.ndarray, alpha: float, dtype: torch.dtype) -> None:
    """Σu and Σ|u|² of patches [rows, groups, d]: float64 sums like the oracle's, then one rounding."""
    rows, _, dim = patches.shape
    sums, squares = 2 + alpha * patches.sum(0), 3 + alpha * (patches**2).sum((0, 2))
    magnitudes = 2 + abs(alpha) * np.abs(patches).sum(0), 3 + abs(alpha) * (patches**2).sum((0, 2))
    for actual, expected, magnitude, terms in zip(
        (total, trace), (sums, squares), magnitudes, (rows, rows * dim), strict=True
    ):
        bound = 1.01 * UNIT[dtype] * np.abs(expected) + 2 * gamma(terms + 5, torch.float64) * magnitude
        assert_within(actual, expected, bound)


def assert_case(case: Case, actual: list[np.ndarray], oracle_input: np.ndarray, alpha: float = 1.0) -> None:
    """d products and sums for uᵀΩ, and per row of the sum a product, an addition and with short chunks two more."""
    sketch, total, trace = actual
    dtype, omega = case.omega.dtype, case.omega.detach().double().numpy()
    patches = oracles.conv_patches(oracle_input, *case.geometry)
    rows, dim = len(patches), patches.shape[2]
    expected = 1 + alpha * np.einsum("pgi,pgj,gjk->gik", patches, patches, omega, optimize=True)
    if case.form == "winograd":
        magnitude = winograd_magnitude(np.abs(oracle_input), np.abs(omega), case.geometry)
    else:
        magnitude = np.einsum("pgi,pgj,gjk->gik", np.abs(patches), np.abs(patches), np.abs(omega), optimize=True)
    roundings = 4 * (rows + dim) + (20 if case.form == "winograd" else 1)
    bound = (gamma(roundings, dtype) + gamma(rows + dim, torch.float64)) * (1 + abs(alpha) * magnitude)
    assert_within(sketch, expected, bound)
    assert_moments(total, trace, patches, alpha, dtype)


def winograd_magnitude(x: np.ndarray, omega: np.ndarray, geometry: tuple) -> np.ndarray:
    """What the transforms add up to if all their numbers are positive, for non-negative x [N, C, H, W] and Ω."""
    B = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1.0]])  # v = B x
    G = np.array([[1, 0], [1, 1], [1, 1], [0, 1.0]])  # w = G z
    A = np.array([[1, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 1]])
    left, right, top, bottom = geometry[2]
    groups = geometry[-1]
    patches = oracles.conv_patches(x, *geometry)
    height, width = x.shape[2] + top + bottom - 2, x.shape[3] + left + right - 2
    images = np.einsum("pgj,gjk->pgk", patches, omega).reshape(len(x), height, width, groups, -1)
    images = np.pad(images, [(0, 0), (0, height % 2), (0, width % 2), (0, 0), (0, 0)])
    x = np.pad(x, [(0, 0), (0, 0), (top, bottom + height % 2), (left, right + width % 2)])
    x = x.reshape(len(x), groups, -1, *x.shape[2:])
    total = 0.0
    for i, j in itertools.product(range(0, height, 2), range(0, width, 2)):
        v = np.einsum("ay,bx,ngcyx->ngcab", B, B, x[..., i : i + 4, j : j + 4])
        w = np.einsum("ay,bx,nyxgk->ngkab", G, G, images[:, i : i + 2, j : j + 2])
        total = total + np.einsum("ngcab,ngkab->gckab", v, w)
    taps = np.einsum("ia,jb,gckab->gcijk", A, A, total)
    return taps.reshape(groups, -1, taps.shape[-1])


def zeroed(omega: torch.Tensor, taps: int, seed: int) -> torch.Tensor:
    """Ω with random blocks of 8 columns set to zero at random taps."""
    groups, dim, columns = omega.shape
    kept = torch.rand(taps, -(-columns // 8), generator=torch.Generator().manual_seed(seed)) < 0.5
    by_column = kept.repeat_interleave(8, dim=1)[:, :columns]
    return (omega.view(groups, dim // taps, taps, columns) * by_column).view(groups, dim, columns)


@st.composite
def conv_cases(draw: st.DrawFn) -> Case:
    input, geometry = draw_conv(draw)
    groups, taps = geometry[-1], math.prod(geometry[0])
    columns = draw(st.sampled_from([0, 1, 5, 8, 13, 18, 33]))
    omega = randn(groups, input.shape[1] // groups * taps, columns, seed=1, dtype=draw(st.sampled_from(SUMS)))
    if draw(st.booleans()):
        omega = zeroed(omega, taps, seed=draw(st.integers(0, 9)))
    return Case(input, geometry, omega)


@given(case=conv_cases(), alpha=st.sampled_from([1.0, 0.37, -2.0]))
def test_conv_within_rounding(case, alpha):
    assert_case(case, run(case, alpha), case.summed, alpha)


@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 14]), st.integers(1, 9), st.integers(1, 9)),
    groups=st.sampled_from([1, 2]),
    padding=st.tuples(*[st.integers(1, 2)] * 4),
    columns=st.sampled_from([1, 8, 18]),
    dtype=st.sampled_from(SUMS),
    sparse=st.booleans(),
)
def test_winograd_within_rounding(shape, groups, padding, columns, dtype, sparse):
    """Maps of any size, also where the operator would not choose it."""
    geometry = ((3, 3), (1, 1), padding, (1, 1), groups)
    case = conv_case(shape, geometry, columns, form="winograd", dtype=dtype)
    if sparse:
        case = replace(case, omega=zeroed(case.omega, 9, seed=0))
    assert_case(case, run(case, 0.5), case.summed, 0.5)


# More than a chunk (768 positions) along each axis that can be cut, and 33 channels for blocks of 1 to 12 lanes.
LARGE = [
    ((40, 3, 7, 7), SAME),
    ((2, 3, 45, 40), SAME),
    ((1, 33, 2, 1700), ((1, 3), (1, 2), (1, 1, 0, 0), (1, 1), 1)),
    ((2, 6, 33, 30), ((2, 3), (2, 3), (2, 1, 1, 0), (3, 2), 2)),
    ((1, 2, 12, 20, 21), ((3, 2, 3), (1, 2, 1), (1, 1, 1, 0, 1, 2), (2, 1, 1), 1)),
    ((2, 35, 14, 33), ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)),
    ((2, 35, 20, 25), ((1, 1), (2, 2), (1, 0, 0, 1), (1, 1), 5)),
]


@pytest.mark.parametrize(("shape", "geometry"), LARGE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_chunks_within_rounding(shape, geometry, layout):
    case = conv_case(shape, geometry, 18)
    case = replace(case, input=laid_out(case.input, layout))
    assert_case(case, run(case), case.summed)


@pytest.mark.parametrize("shape", [(12, 17, 9, 11), (1, 16, 30, 61), (2, 16, 3, 8, 8)])
def test_winograd_in_many_chunks_within_rounding(shape):
    if len(shape) == 4:
        case = conv_case(shape, SAME, 18, form="winograd")
        assert_case(case, run(case), case.summed)
        return
    volumes = conv_case(shape, ((1, 3, 3), (1, 1, 1), (1, 1, 1, 1, 0, 0), (1, 1, 1), 1), 18, form="winograd")
    planes = replace(volumes, input=volumes.input.movedim(2, 1).flatten(0, 1), geometry=SAME)
    assert_case(planes, run(volumes), planes.summed)  # a kernel of depth 1 sees each plane as an image


BITE = conv_case((2, 3, 9, 11), SAME)


@pytest.mark.parametrize("form", ["direct", "winograd"])
def test_bounds_notice_one_missing_border_row(form):
    case = replace(BITE, form=form)
    without = case.summed.copy()
    without[:, :, -1] = 0
    right = run(replace(case, input=torch.from_numpy(without).float()))
    assert_case(case, right, without)
    for i, wrong in enumerate(run(case)):  # each of the three results alone must be found out
        with pytest.raises(AssertionError, match="expected"):
            assert_case(case, [*right[:i], wrong, *right[i + 1 :]], without)


# ---- which form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "shape", "changes"),
    [
        ("winograd", (1, 64, 56, 56), {}),
        ("winograd", (1, 16, 9, 9), {}),
        ("winograd", (1, 32, 4, 4), {"groups": 2}),
        ("direct", (1, 32, 4, 4), {"groups": 4}),  # 8 channels per group
        ("direct", (1, 512, 7, 7), {}),  # 49 of 64 positions
        ("direct", (1, 64, 56, 56), {"stride": (2, 1)}),
        ("direct", (1, 64, 56, 56), {"dilation": (1, 2)}),
        ("direct", (1, 64, 56, 56), {"kernel_size": (3, 2)}),
        ("blas", (1, 64, 56, 56), {"kernel_size": (1, 1), "stride": (2, 2)}),
        ("direct", (1, 64, 2, 8, 8), {"kernel_size": (2, 3, 3)}),
        ("winograd", (1, 64, 2, 8, 8), {"kernel_size": (1, 3, 3), "stride": (2, 1, 1)}),
    ],
)
def test_forms_are_a_function_of_the_shapes(form, shape, changes):
    axes = len(shape) - 2
    given_ = {"kernel_size": (3,) * axes, "stride": (1,) * axes, "dilation": (1,) * axes, "groups": 1} | changes
    padding = (1, 1) * axes
    patches = patching.conv_patches(
        "test",
        axes,
        torch.empty(shape, device="cpu"),
        given_["kernel_size"],
        given_["stride"],
        padding,
        given_["dilation"],
        given_["groups"],
    )
    assert sketch_form(patches) == form


def no_packing(*_arguments: object) -> None:
    raise AssertionError("an input that BLAS reads in place was packed")


@pytest.mark.parametrize(
    "images",
    [randn(3, 20, 4, 5, seed=0), randn(3, 4, 5, 20, seed=0).movedim(3, 1), randn(3, 30, 4, 5, seed=0)[:, 5:25]],
    ids=["contiguous", "channels last", "some of the channels"],
)
def test_images_as_blas_wants_them_are_not_copied(images, monkeypatch):
    monkeypatch.setattr(native.module(), "pack_patches", no_packing)
    case = Case(images, POINTWISE, randn(1, 20, 9, seed=1))
    assert_case(case, run(case), case.summed)
    strided = Case(images, ((1, 1), (2, 1), (0, 0, 0, 0), (1, 1), 1), case.omega)
    for other in (strided, replace(case, omega=case.omega.float())):
        with pytest.raises(AssertionError, match="was packed"):
            run(other)


# ---- linear layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearCase:
    input: torch.Tensor
    omega: torch.Tensor  # [d, k]

    @property
    def as_images(self) -> Case:
        """The same rows as one image of height 1, for the oracle."""
        rows = self.input.reshape(math.prod(self.input.shape[:-1]), self.input.shape[-1])
        return Case(rows.T[None, :, None], POINTWISE, self.omega[None])


@st.composite
def linear_cases(draw: st.DrawFn) -> LinearCase:
    """Inputs of 1 to 6 dimensions: slices, other orders of the dimensions and expanded ones, over NaN."""
    shape = draw(st.lists(st.integers(0, 3) | st.integers(1, 3), min_size=1, max_size=6))
    shape[-1] = draw(st.integers(0, 12))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 2])] * len(shape)))
    order = draw(st.permutations(range(len(shape))) | st.just(range(len(shape))))
    dtype = draw(st.sampled_from(INPUTS))
    window = tuple(slice(None, size * step, step) for size, step in zip(shape, steps, strict=True))
    stored = [shape[axis] * steps[axis] + 1 for axis in order]
    view = torch.full(stored, float("nan"), dtype=dtype).permute(list(np.argsort(list(order))))[window]
    view.copy_(randn(*shape, seed=draw(st.integers(0, 99)), dtype=dtype))
    expanded = draw(st.sampled_from([None, None, *range(len(shape))]))
    if expanded is not None and shape[expanded] > 1:
        view = view.narrow(expanded, 0, 1).expand(shape)
    omega = randn(shape[-1], draw(st.sampled_from([0, 1, 5, 18])), seed=1, dtype=draw(st.sampled_from(SUMS)))
    return LinearCase(view, omega)


def run_linear(case: LinearCase, alpha: float = 1.0) -> list[np.ndarray]:
    before = snapshot(case.input)
    outputs = Outputs(case.omega.dtype, tuple(case.omega.shape), (case.omega.shape[0],), ())
    ops.linear_covariance_sketch(*outputs.views, case.input, case.omega, alpha=alpha)
    assert snapshot(case.input) == before
    return [result[None] for result in outputs.checked()]


@given(case=linear_cases(), alpha=st.sampled_from([1.0, 0.37, -2.0]))
def test_linear_within_rounding(case, alpha):
    sketch, total, trace = run_linear(case, alpha)
    images = case.as_images
    assert_case(images, [sketch, *as_one_part(case, total, trace, alpha)], images.summed, alpha)


def as_one_part(case: LinearCase, total: np.ndarray, trace: np.ndarray, alpha: float) -> list[np.ndarray]:
    """Σu and Σ|u|² pass as they are where the rows are one part; each further part is one more rounding."""
    if len(patching.linear_patches("test", case.input)) <= 1:
        return [total, trace]
    rows = case.as_images.summed[0, :, 0].T
    exact = 2 + alpha * rows.sum(0)[None], 3 + alpha * (rows**2).sum()[None]
    sizes = 2 + abs(alpha) * np.abs(rows).sum(0)[None], 3 + abs(alpha) * (rows**2).sum()[None]
    for actual, expected, size in zip((total, trace), exact, sizes, strict=True):
        assert_within(actual, expected, gamma(rows.size + 5, case.omega.dtype) * size)
    return list(exact)


@pytest.mark.parametrize(
    "rows",
    [
        randn(40, 700, seed=0),
        randn(40, 900, seed=0)[:, 100:800],
        randn(700, 40, seed=0).T,
        randn(1, 5, 8, 1, 700, seed=0),
        randn(5, 3, 8, 700, seed=0)[2:3],
    ],
    ids=["contiguous", "columns of a wider matrix", "transposed", "dimensions of size 1", "one of five"],
)
def test_rows_as_blas_wants_them_are_not_copied(rows, monkeypatch):
    monkeypatch.setattr(native.module(), "pack_patches", no_packing)
    monkeypatch.setattr(covariance_sketch, "_BLAS_ROWS", 7)  # several products
    case = LinearCase(rows, randn(700, 9, seed=1))
    assert_case(case.as_images, run_linear(case), case.as_images.summed)
    with pytest.raises(AssertionError, match="was packed"):
        run_linear(LinearCase(rows, case.omega.float()))


def test_linear_bounds_notice_one_missing_row():
    case = LinearCase(randn(50, 7, 6, seed=0, dtype=torch.float32), randn(6, 3, seed=1, dtype=torch.float32))
    without = case.as_images.summed.copy()
    without[..., -1] = 0
    right = run_linear(replace(case, input=torch.from_numpy(without[0, :, 0].T).float()))
    for i, wrong in enumerate(run_linear(case)):
        with pytest.raises(AssertionError, match="expected"):
            assert_case(case.as_images, [*right[:i], wrong, *right[i + 1 :]], without)


# ---- sums over calls, and what is not a number -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SUMS)
def test_two_half_batches_are_the_whole_batch(dtype):
    case = conv_case((4, 6, 7, 5), (*SAME[:-1], 2), 4, dtype=dtype)
    outputs = Outputs(dtype, (2, 27, 4), (2, 27), (2,))
    for half in (case.input[:2], case.input[2:]):
        ops.conv2d_covariance_sketch(*outputs.views, half, case.omega, *case.geometry, alpha=0.5)
    sketch, total, trace = outputs.checked()
    patches = oracles.conv_patches(case.summed, *case.geometry)
    for actual, start, terms in zip((total, trace), (2, 3), (patches, (patches**2).sum(2)), strict=True):
        # Two sums in float64, each added and rounded once.
        size = start + 0.5 * np.abs(terms).sum(0)
        bound = (gamma(2, dtype) + 2 * gamma(patches.size, torch.float64)) * size
        assert_within(actual, start + 0.5 * terms.sum(0), bound)
    assert_case(case, [sketch, *run(case, 0.5)[1:]], case.summed, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_empty_batch_leaves_every_bit(dtype):
    """NaN stays what it was."""
    start = randn(1, 6, 2, seed=0, dtype=torch.float32)
    start[0, 0, 1] = float("nan")
    outputs = [start.clone(), start[..., 1].clone(), start[:, 0, 1].clone()]
    omega = torch.ones(1, 6, 2)
    ops.conv2d_covariance_sketch(*outputs, torch.empty(0, 6, 4, 4, dtype=dtype), omega, *POINTWISE)
    for shape in [(0, 6), (0, 3, 6), (3, 0, 6), (2, 0, 2, 2, 6)]:
        rows = torch.empty(shape, dtype=dtype)
        ops.linear_covariance_sketch(*[output[0] for output in outputs], rows, omega[0])
    for tensor, old in zip(outputs, (start, start[..., 1], start[:, 0, 1]), strict=True):
        assert tensor.numpy().tobytes() == old.contiguous().numpy().tobytes()


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 4, 0), (2, 0, 4, 4)])
@pytest.mark.parametrize("form", ["direct", "winograd"])
def test_padding_of_empty_images_is_zero(shape, form):
    """Patches made of padding alone, and no channels at all, add nothing."""
    case = conv_case(shape, ((3, 3), (1, 1), (1, 2, 2, 1), (1, 1), 1), 2, form=form)
    for result, start in zip(run(case), (1, 2, 3), strict=True):
        assert (result == start).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_passes_through(bad):
    """A bad pixel spoils all of Y, and of Σu what the taps that see it hold."""
    case = conv_case((2, 3, 5, 5), SAME, 2)
    case.input[1, 2, 0, 0] = bad  # the corner: only 4 of 9 taps ever see it
    for form in ("direct", "winograd"):
        sketch, total, trace = run(replace(case, omega=torch.ones(1, 27, 2), form=form))
        assert not np.isfinite(sketch).any()  # every row takes part in uᵀΩ
        seen = np.zeros((3, 3, 3), bool)
        seen[2, :2, :2] = True
        assert np.array_equal(np.isfinite(total[0]), ~seen.ravel())
        assert not np.isfinite(trace[0])
    rows = LinearCase(case.input[1, :, 0], torch.ones(5, 2))  # [3, 5], the pixel in the first column
    assert np.array_equal(np.isfinite(run_linear(rows)[1]), [[False, True, True, True, True]])


def test_where_omega_is_zero_nothing_is_multiplied():
    """A pixel that is not a number reaches those columns only that need its tap: 0 · NaN is left out."""
    case = conv_case((1, 1, 1, 8), ((1, 2), (1, 1), (0, 0, 0, 0), (1, 1), 1), 16)
    case.input[0, 0, 0, 0] = float("nan")  # the left tap of the first position, and nobody's right tap
    omega = torch.ones(1, 2, 16)
    omega[0, 0, 8:] = 0  # the second block of columns does without the left tap
    sketch = run(replace(case, omega=omega))[0][0]
    assert np.array_equal(np.isfinite(sketch), [[False] * 16, [False] * 8 + [True] * 8])


# ---- threads, instruction sets, memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        conv_case((2, 3, 30, 30), SAME, 18),
        conv_case((2, 35, 30, 31), (*SAME[:-1], 5), 18, form="winograd"),
        conv_case((2, 64, 13, 9), ((3, 2), (2, 1), (1, 1, 1, 1), (1, 2), 1), 80, dtype=torch.float64),
    ],
    ids=["direct", "winograd", "strided"],
)
def test_threads_do_not_change_bits(case):
    for layout in ("contiguous", "channels_last"):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([result.tobytes() for result in run(replace(case, input=laid_out(case.input, layout)))])
        assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_every_narrow_number_is_widened_exactly(narrow):
    """All finite ones, subnormal ones too: Y of one tap that is 1 and one that is 0 is Σ u²."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(narrow)
    values = values[values.isfinite()][None, None, None]
    case = Case(values, ((1, 2), (1, 1), (0, 1, 0, 0), (1, 1), 1), torch.eye(2, dtype=torch.float64)[None])
    with np.errstate(over="ignore"):
        assert_case(case, run(case), case.summed)


def check_core() -> None:
    """What must hold for any instruction set; runs in an interpreter of its own for each."""
    for shape, geometry in LARGE:
        for dtype in SUMS:
            case = conv_case(shape, geometry, 18, dtype=dtype)
            assert_case(case, run(case), case.summed)
    for dtype in SUMS:
        case = conv_case((1, 16, 30, 31), SAME, 18, form="winograd", dtype=dtype)
        assert_case(case, run(case), case.summed)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_core_for_other_instruction_sets(isa, run_python, request):
    folder = request.path.parent
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]\n"
        "import test_covariance_sketch_ops as tests; tests.check_core(); print(tests.native.module().isa())"
    )
    assert run_python(code, IGM_FAST_ISA=isa).strip() in {isa, native.module().isa()}


MEASURE = """
import torch, igm_fast.ops
ops = torch.ops.igm_fast
geometry = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

def growth(call):  # peak of the resident memory during the call, over what was resident before it
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

def sketch(x, columns=80):
    d = 9 * x.shape[1]
    outputs = torch.ones(1, d, columns), torch.ones(1, d), torch.ones(1)
    omega = torch.ones(1, d, columns)
    return growth(lambda: ops.conv2d_covariance_sketch(*outputs, x, omega, *geometry))

wide, wider, large = torch.ones(2, 512, 7, 7), torch.ones(2, 512, 8, 8), torch.ones(8, 64, 56, 56)
rows = torch.ones(8192, 2048, dtype=torch.bfloat16)
linear = (torch.ones(2048, 80), torch.ones(2048), torch.ones(()), torch.ones(2048, 80))
print(growth(lambda: torch.ones(4608, 4608)), sketch(wide), sketch(wider), sketch(large),
      growth(lambda: ops.linear_covariance_sketch(*linear[:3], rows, linear[3])))
"""


def test_memory_stays_at_a_few_tiles(run_python):
    """Ω once more, a chunk, its products and transforms, and what BLAS takes for itself: resident memory is looked at.

    The alternatives are far above: d×d for C512 3×3 takes 81 MiB, the unfolded input for N8 C64 H56 55 MiB, the
    converted rows 64 MiB.
    """
    meter, *extra = (int(word) for word in run_python(MEASURE).split())
    assert meter >= 80 << 20  # the meter sees a d×d matrix
    assert max(extra) <= 24 << 20, extra
