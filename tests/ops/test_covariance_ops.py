"""The exact covariance on packed patches against float64 oracles, with bounds from a rounding analysis.

And what all covariance operators have in common: threads, memory, torch's rules, refusals.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import numpy as np
import oracles
import pytest
import torch
from bounds import UNIT, assert_within, gamma
from covariance_cases import draw_rows
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import covariance, native
from igm_fast.ops import patches as patching

ops = torch.ops.igm_fast
INPUTS = list(UNIT)
SUMS = [torch.float32, torch.float64]
GUARD = 7.0
SAME_3X3 = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
# (_MIN_TILE_PATCHES, _TILE_BYTES, BLOCK_ROWS): as built, and so small that every case has many tiles and row blocks.
TUNINGS = [(256, 4 << 20, 256), (5, 1, 4)]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def as_summed(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """What the sums see: rounding to the dtype of the outputs comes before any product."""
    return tensor.detach().to(dtype).double().numpy()


def snapshot(tensor: torch.Tensor) -> bytes:
    return tensor.double().numpy().tobytes()  # NaN equals itself


class Outputs:
    """Zeroed outputs with guard values before and behind each."""

    def __init__(self, dtype: torch.dtype, *shapes: tuple[int, ...]) -> None:
        self._stores = [torch.full((int(np.prod(shape)) + 6,), GUARD, dtype=dtype) for shape in shapes]
        self.views = [store[3:-3].view(shape).zero_() for store, shape in zip(self._stores, shapes, strict=True)]

    def checked(self) -> list[np.ndarray]:
        for store in self._stores:
            assert (store[:3] == GUARD).all()
            assert (store[-3:] == GUARD).all()
        return [view.double().numpy() for view in self.views]


def tuned(tuning: tuple[int, int, int]):
    stack = ExitStack()
    stack.enter_context(mock.patch.multiple(patching, _MIN_TILE_PATCHES=tuning[0], _TILE_BYTES=tuning[1]))
    stack.enter_context(mock.patch.object(covariance, "BLOCK_ROWS", tuning[2]))
    stack.enter_context(mock.patch.object(covariance, "choose_form", return_value="patches"))
    return stack


# ---- bounds ----------------------------------------------------------------------------------------------------------


def full_bound(magnitude: np.ndarray, rows: int, dtype: torch.dtype) -> np.ndarray:
    """Per row of the sum at most: a product, an addition, and with tiles of one row a factor alpha and an addition."""
    return (gamma(4 * rows + 1, dtype) + gamma(rows + 1, torch.float64)) * magnitude


# ---- convolutions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvCase:
    input: torch.Tensor
    geometry: tuple  # kernel size, stride, padding, dilation, groups: as the operators and the oracle take them
    sums: torch.dtype
    tuning: tuple[int, int, int]

    @property
    def groups(self) -> int:
        return self.geometry[-1]

    @property
    def dim(self) -> int:
        kernel_size = self.geometry[0]
        return self.input.shape[1] // self.groups * kernel_size[0] * kernel_size[1]

    @property
    def summed(self) -> np.ndarray:
        return as_summed(self.input, self.sums)


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values (or, expanded, some of them) with other strides; what lies between them is NaN."""
    batch, channels, height, width = values.shape
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "slice":
        store = torch.full((batch, channels + 2, height + 2, 2 * width), float("nan"), dtype=values.dtype)
        store[:, 1:-1, 1:-1, ::2] = values
        return store[:, 1:-1, 1:-1, ::2]
    if layout == "transposed":
        return values.mT.contiguous().mT
    if layout == "expanded":
        return values[:, :1, :, :1].expand_as(values)
    return values


@st.composite
def conv_cases(draw: st.DrawFn) -> ConvCase:
    kernel_size = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 4)] * 4))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    span = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in (0, 1)]
    least = (max(1, span[0] - padding[2] - padding[3]), max(1, span[1] - padding[0] - padding[1]))
    shape = (
        draw(st.integers(0, 3)),
        groups * draw(st.integers(1, 3)),
        least[0] + draw(st.integers(0, 6)),
        least[1] + draw(st.integers(0, 8)),
    )
    values = randn(*shape, seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(INPUTS)))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "slice", "transposed", "expanded"]))
    geometry = (kernel_size, stride, padding, dilation, groups)
    return ConvCase(laid_out(values, layout), geometry, draw(st.sampled_from(SUMS)), draw(st.sampled_from(TUNINGS)))


def run_conv(case: ConvCase, alpha: float = 1.0) -> np.ndarray:
    before = snapshot(case.input)
    outputs = Outputs(case.sums, (case.groups, case.dim, case.dim))
    with tuned(case.tuning):
        ops.conv2d_covariance(*outputs.views, case.input, *case.geometry, alpha=alpha)
    assert snapshot(case.input) == before
    return outputs.checked()[0]


def assert_conv(case: ConvCase, actual: np.ndarray, oracle_input: np.ndarray, alpha: float = 1.0) -> None:
    assert np.array_equal(actual, actual.swapaxes(1, 2), equal_nan=True)
    expected = oracles.conv_covariance(oracle_input, *case.geometry)
    magnitude = abs(alpha) * oracles.conv_covariance(np.abs(oracle_input), *case.geometry)
    rows = len(oracles.conv_patches(oracle_input, *case.geometry))
    assert_within(actual, alpha * expected, full_bound(magnitude, rows, case.sums))


@given(case=conv_cases(), alpha=st.sampled_from([1.0, 0.37, -2.0]))
def test_conv_within_rounding(case, alpha):
    assert_conv(case, run_conv(case, alpha), case.summed, alpha)


# More channels and positions than a work item of pack_patches takes (16, 256), rows beyond one block (512).
LARGE = [
    ((2, 35, 14, 13), ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)),
    ((1, 17, 5, 300), ((2, 2), (2, 1), (0, 1, 1, 0), (1, 1), 1)),
    ((1, 60, 5, 5), SAME_3X3),
    ((1, 116, 4, 5), ((3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 2)),
    ((2, 40, 9, 9), ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 40)),
]


@pytest.mark.parametrize(("shape", "geometry"), LARGE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_conv_within_rounding(shape, geometry, layout):
    case = ConvCase(laid_out(randn(*shape, seed=3, dtype=torch.float32), layout), geometry, torch.float32, TUNINGS[0])
    assert_conv(case, run_conv(case), case.summed)


BITE = ConvCase(randn(2, 3, 9, 11, seed=0, dtype=torch.float32), SAME_3X3, torch.float32, TUNINGS[0])


def test_bounds_notice_one_missing_border_row():
    without = BITE.summed.copy()
    without[:, :, -1] = 0
    actual = run_conv(BITE)
    assert_conv(BITE, actual, BITE.summed)
    with pytest.raises(AssertionError, match="expected"):
        assert_conv(BITE, actual, without)


def test_bound_notices_nan_and_other_shapes():
    for wrong in (np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.array([1.0, 2.1]), np.array([1.0])):
        with pytest.raises(AssertionError):
            assert_within(wrong, np.array([1.0, 2.0]), 0.05)
    with pytest.raises(AssertionError, match="NaN in other places"):
        assert_within(np.array([1.0, 2.0]), np.array([1.0, np.nan]), 0.05)
    assert_within(np.array([1.04, np.nan]), np.array([1.0, np.nan]), np.array([0.05, np.nan]))


# ---- linear layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearCase:
    input: torch.Tensor
    sums: torch.dtype
    tuning: tuple[int, int, int] = TUNINGS[0]

    @property
    def dim(self) -> int:
        return self.input.shape[-1]

    @property
    def summed(self) -> np.ndarray:
        return as_summed(self.input, self.sums)


@st.composite
def linear_cases(draw: st.DrawFn) -> LinearCase:
    """Inputs of 1 to 5 dimensions: slices, other orders of the dimensions and expanded ones, over NaN."""
    return LinearCase(draw_rows(draw), draw(st.sampled_from(SUMS)), draw(st.sampled_from(TUNINGS)))


def run_linear(case: LinearCase, alpha: float = 1.0) -> np.ndarray:
    before = snapshot(case.input)
    outputs = Outputs(case.sums, (case.dim, case.dim))
    with tuned(case.tuning):
        ops.linear_covariance(*outputs.views, case.input, alpha=alpha)
    assert snapshot(case.input) == before
    return outputs.checked()[0]


def assert_linear(case: LinearCase, actual: np.ndarray, oracle_input: np.ndarray, alpha: float = 1.0) -> None:
    assert np.array_equal(actual, actual.T, equal_nan=True)
    expected = alpha * oracles.linear_covariance(oracle_input)
    magnitude = abs(alpha) * oracles.linear_covariance(np.abs(oracle_input))
    rows = int(np.prod(oracle_input.shape[:-1]))
    assert_within(actual, expected, full_bound(magnitude, rows, case.sums))


@given(case=linear_cases(), alpha=st.sampled_from([1.0, 0.37, -2.0]))
def test_linear_within_rounding(case, alpha):
    assert_linear(case, run_linear(case, alpha), case.summed, alpha)


@given(case=linear_cases())
def test_no_input_is_copied_to_merge_its_dimensions(case):
    views = [part.input for part in patching.linear_patches("linear_covariance", case.input)]
    assert all(view.untyped_storage().data_ptr() == case.input.untyped_storage().data_ptr() for view in views)
    assert sum(view.numel() for view in views) == case.input.numel()


def no_packing(*_arguments: object) -> None:
    raise AssertionError("an input that BLAS reads in place was packed")


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
    case = LinearCase(rows, torch.float64)
    assert_linear(case, run_linear(case), case.summed)
    with pytest.raises(AssertionError, match="was packed"):
        run_linear(LinearCase(rows, torch.float32))


def test_linear_bounds_notice_one_missing_row():
    case = LinearCase(randn(50, 7, 6, seed=0, dtype=torch.float32), torch.float32)
    without = case.summed.copy()
    without[-1, -1] = 0
    with pytest.raises(AssertionError, match="expected"):
        assert_linear(case, run_linear(case), without)


def test_linear_equals_pointwise_convolution():
    x = randn(3, 5, 4, 6, seed=0)
    conv = ConvCase(x, ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), torch.float64, TUNINGS[0])
    case = LinearCase(x.permute(0, 2, 3, 1), torch.float64)
    magnitude = oracles.linear_covariance(np.abs(case.summed))
    assert_within(run_conv(conv)[0], run_linear(case), 2 * full_bound(magnitude, 72, torch.float64))


# ---- sums over calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SUMS)
def test_two_half_batches_are_the_whole_batch(dtype):
    x = randn(4, 6, 7, 5, seed=0, dtype=dtype)
    geometry = (*SAME_3X3[:-1], 2)
    outputs = Outputs(dtype, (2, 27, 27))
    for half in (x[:2], x[2:]):
        ops.conv2d_covariance(*outputs.views, half, *geometry, alpha=0.5)
    case = ConvCase(x, geometry, dtype, TUNINGS[0])
    assert_conv(case, outputs.checked()[0], case.summed, 0.5)


@pytest.mark.parametrize("channels", [3, 40])  # packed patches; lags
@pytest.mark.parametrize("dtype", SUMS)
def test_mirrored_once_is_mirrored_each_time(channels, dtype):
    batches = [randn(3, channels, 9, 8, seed=seed, dtype=dtype) for seed in range(3)]
    each, once = (torch.zeros(1, channels * 9, channels * 9, dtype=dtype) for _ in range(2))
    for x in batches:
        ops.conv2d_covariance(each, x, *SAME_3X3)
        ops.conv2d_covariance(once, x, *SAME_3X3, mirror=False)
    assert torch.equal(once.tril(), each.tril())
    ops.mirror_lower(once)
    assert torch.equal(once, each)
    rows = randn(50, 300, seed=9, dtype=dtype)
    each, once = torch.zeros(300, 300, dtype=dtype), torch.zeros(1, 300, 300, dtype=dtype)
    ops.linear_covariance(each, rows)
    ops.linear_covariance(once[0], rows, mirror=False)
    assert not torch.equal(once[0], each)  # what it saves is left out
    ops.mirror_lower(once)
    assert torch.equal(once[0], each)


def test_mirror_lower_names_what_it_wants():
    with pytest.raises(ValueError, match=r"mirror_lower: out has shape \(2, 3, 4\), expected \[groups, d, d\]"):
        ops.mirror_lower(torch.zeros(2, 3, 4))
    torch.library.opcheck(ops.mirror_lower.default, (torch.randn(2, 5, 5),))


def test_what_counts_on_entry_is_the_lower_triangle():
    """The sum goes on from the lower triangle; what the upper one held is overwritten."""
    x = randn(5, 3, seed=0)
    start = randn(3, 3, seed=1)
    out = start.tril() + torch.full((3, 3), float("nan"), dtype=torch.float64).triu(1)
    ops.linear_covariance(out, x)
    symmetric = (start.tril() + start.tril(-1).T).numpy()
    expected = symmetric + oracles.linear_covariance(x.numpy())
    magnitude = np.abs(symmetric) + oracles.linear_covariance(np.abs(x.numpy()))
    assert_within(out.numpy(), expected, full_bound(magnitude, 6, torch.float64))


EMPTY_INPUTS = [(0, 6), (0, 3, 6), (3, 0, 6), (2, 0, 2, 2, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_empty_batch_leaves_every_bit(dtype):
    """Not even the upper triangle is touched, and NaN stays what it was."""
    start = randn(1, 6, 6, seed=0, dtype=torch.float32)
    start[0, 0, 1] = float("nan")
    out = start.clone()
    ops.conv2d_covariance(out, torch.empty(0, 6, 4, 4, dtype=dtype), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    for shape in EMPTY_INPUTS:
        ops.linear_covariance(out[0], torch.empty(shape, dtype=dtype))
    assert out.numpy().tobytes() == start.numpy().tobytes()


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 4, 0), (2, 0, 4, 4)])
def test_padding_of_empty_images_is_zero(shape):
    """Patches made of padding alone, and no channels at all, add nothing."""
    geometry = ((3, 3), (1, 1), (1, 2, 2, 1), (1, 1), 1)
    case = ConvCase(torch.empty(shape), geometry, torch.float32, TUNINGS[0])
    assert not np.any(run_conv(case))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_passes_through(bad):
    """A bad pixel spoils the rows and columns of the taps that see it, and nothing else."""
    x = randn(2, 3, 5, 5, seed=0, dtype=torch.float32)
    x[1, 2, 0, 0] = bad  # the corner: only 4 of 9 taps ever see it
    case = ConvCase(x, SAME_3X3, torch.float32, TUNINGS[0])
    with np.errstate(invalid="ignore"):
        expected = oracles.conv_covariance(case.summed, *SAME_3X3)
    actual = run_conv(case)
    clean = np.isfinite(expected)
    assert 0 < clean.sum() < clean.size
    assert np.array_equal(np.isfinite(actual), clean)
    magnitude = oracles.conv_covariance(np.abs(np.where(np.isfinite(case.summed), case.summed, 0)), *SAME_3X3)
    assert_within(actual[clean], expected[clean], full_bound(magnitude, 50, torch.float32)[clean])
    rows = LinearCase(x[1, :, 0], torch.float32)  # [3, 5], the pixel in the first column
    assert np.array_equal(np.isfinite(run_linear(rows)), np.outer(range(5), range(5)) > 0)


# ---- threads and instruction sets ------------------------------------------------------------------------------------


def pack(x: torch.Tensor, geometry: tuple, dtype: torch.dtype, threads: int) -> torch.Tensor:
    """All patches in one tile."""
    torch.set_num_threads(threads)
    all_patches = patching.conv_patches("pack", 2, x, *geometry[:4], 1)
    return next(all_patches.tiles(all_patches.count, dtype))[0]


@pytest.mark.parametrize(("shape", "geometry"), LARGE)
@pytest.mark.parametrize("dtype", SUMS)
def test_threads_do_not_change_bits_of_the_core(shape, geometry, dtype):
    x = randn(*shape, seed=0, dtype=torch.float32)
    first = pack(x, geometry, dtype, 1)
    expected = oracles.conv_patches(x.double().numpy(), *geometry[:4], 1)[:, 0].T
    assert np.array_equal(first.double().numpy(), expected)  # packing moves and widens: no rounding at all
    for threads in (2, 3):
        assert torch.equal(pack(x, geometry, dtype, threads), first)


def test_threads_change_products_within_rounding_only():
    """MKL may divide a product otherwise among more threads (the first one here)."""
    cases = [
        ConvCase(randn(2, 3, 8, 8, seed=0), SAME_3X3, torch.float64, TUNINGS[0]),
        ConvCase(randn(2, 64, 9, 9, seed=0, dtype=torch.float32), SAME_3X3, torch.float32, TUNINGS[0]),
    ]
    for case in cases:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_conv(case, run_conv(case), case.summed)


def test_one_thread_gives_the_same_bits_again():
    torch.set_num_threads(1)
    case = ConvCase(randn(2, 16, 9, 9, seed=0, dtype=torch.float32), SAME_3X3, torch.float32, TUNINGS[0])
    assert np.array_equal(run_conv(case), run_conv(case))


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", SUMS)
def test_every_narrow_number_is_widened_exactly(narrow, wide):
    """All 65536 of them: subnormal, infinite and NaN too."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(narrow).view(1, 1, 256, 256)
    tile = pack(values, ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), wide, 1)
    assert np.array_equal(tile.numpy().ravel(), values.to(wide).numpy().ravel(), equal_nan=True)


def check_core() -> None:
    """What must hold for any instruction set; runs in an interpreter of its own for each."""
    for shape, geometry in LARGE:
        for dtype in SUMS:
            x = randn(*shape, seed=0, dtype=dtype)
            tile = pack(x, geometry, dtype, 2)
            patches = oracles.conv_patches(x.double().numpy(), *geometry[:4], 1)[:, 0]
            assert np.array_equal(tile.double().numpy(), patches.T)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_core_for_other_instruction_sets(isa, run_python, request):
    folder = request.path.parent
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]\n"
        "import test_covariance_ops as tests; tests.check_core(); print(tests.native.module().isa())"
    )
    assert run_python(code, IGM_FAST_ISA=isa).strip() in {isa, native.module().isa()}


# ---- memory ----------------------------------------------------------------------------------------------------------

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

def full(channels, size):
    out, x = torch.ones(1, 9 * channels, 9 * channels), torch.ones(8, channels, size, size)
    return growth(lambda: ops.conv2d_covariance(out, x, *geometry))

rows, linear = torch.ones(8192, 2048, dtype=torch.bfloat16), torch.ones(2048, 2048)
print(growth(lambda: torch.ones(4608, 4608)), full(64, 56), full(128, 28), full(16, 100),
      growth(lambda: ops.linear_covariance(linear, rows)))
"""


def test_memory_stays_at_a_few_tiles(run_python):
    """A tile, or the workspace of the lag form, and what BLAS takes for itself, since resident memory is looked at.

    The alternatives are far above: the unfolded inputs take 55, 28 and 44 MiB, the converted rows 64 MiB.
    """
    meter, *extra = (int(word) for word in run_python(MEASURE).split())
    assert meter >= 80 << 20  # the meter sees a d×d matrix
    assert max(extra) <= 28 << 20, extra


# ---- torch -----------------------------------------------------------------------------------------------------------


NAMES = ["conv2d_covariance", "linear_covariance", "conv2d_covariance_sketch", "linear_covariance_sketch"]
OUTPUTS = ("out", "sketch", "total", "trace")


def arguments(name: str, **changes: object) -> dict[str, object]:
    """One call by name of argument, in the order of the schema; outputs hold numbers, so that a write is seen."""
    groups, d = ((2,), 18) if name.startswith("conv2d") else ((), 6)
    shapes = {"sketch": (*groups, d, 3), "total": (*groups, d), "trace": groups}
    shapes = shapes if name.endswith("sketch") else {"out": (*groups, d, d)}
    result: dict[str, object] = {key: randn(*shape, seed=9, dtype=torch.float32) for key, shape in shapes.items()}
    result["input"] = randn(2, 6, 5, 5, seed=0, dtype=torch.float32) if groups else randn(4, 6, seed=0).float()
    if name.endswith("sketch"):
        result["omega"] = randn(*groups, d, 3, seed=1, dtype=torch.float32)
    if groups:
        result |= {"kernel_size": [3, 2], "stride": [1, 2], "padding": [1, 0, 1, 2], "dilation": [1, 1], "groups": 2}
    assert set(changes) <= {*result, "alpha"}
    return result | changes


def results(called: dict[str, object]) -> list[torch.Tensor]:
    return [called[key].clone() for key in OUTPUTS if key in called]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    called = arguments(name)
    torch.library.opcheck(getattr(ops, name).default, tuple(called.values()))
    torch.library.opcheck(getattr(ops, name).default, tuple(called.values()), {"alpha": 0.5})


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_break(name):
    def call(*values):
        getattr(ops, name)(*values, alpha=0.5)

    torch.set_num_threads(1)
    eager, compiled = arguments(name), arguments(name)
    call(*eager.values())
    torch.compile(call, fullgraph=True, backend="aot_eager")(*compiled.values())
    assert all(torch.equal(a, b) for a, b in zip(results(eager), results(compiled), strict=True))
    assert not torch.equal(results(eager)[0], results(arguments(name))[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [18, 600])
def test_autocast_changes_nothing(name, d):
    """Neither batched products (d <= 512) nor row blocks (d > 512) are cast."""
    torch.set_num_threads(1)
    groups = (1,) if name.startswith("conv2d") else ()
    x = randn(3, d // 2, 5, 5, seed=0, dtype=torch.float32) if groups else randn(40, d, seed=0, dtype=torch.float32)
    inputs, shapes = [x], [(*groups, d, d)]
    if name.endswith("sketch"):
        inputs = [x, randn(*groups, d, 3, seed=1, dtype=torch.float32)]
        shapes = [(*groups, d, 3), (*groups, d), groups]
    geometry = [[2, 1], [1, 1], [1, 1, 1, 1], [1, 1], 1] if groups else []
    plain, cast = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    getattr(ops, name)(*plain, *inputs, *geometry)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.mT).dtype == torch.bfloat16  # autocast is on
        getattr(ops, name)(*cast, *inputs, *geometry)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_is_recorded(name):
    called = arguments(name)
    for key in {"input", "omega"} & set(called):
        called[key].requires_grad_()
    getattr(ops, name)(**called)
    for key in set(OUTPUTS) & set(called):
        assert not called[key].requires_grad
        assert called[key].grad_fn is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn], ids=["sparse", "mkldnn"])
def test_other_kinds_of_tensors_are_refused(name, other):
    called = arguments(name)
    called["input"] = other(called["input"])
    before = results(called)
    with pytest.raises(NotImplementedError, match=rf"{name}: .*torch\._?\w+.* expected dense tensors on cpu or cuda"):
        getattr(ops, name)(**called)
    assert all(torch.equal(a, b) for a, b in zip(results(called), before, strict=True))


# ---- slips -----------------------------------------------------------------------------------------------------------

CONV, LINEAR, CONV_SKETCH, LINEAR_SKETCH = NAMES
DEPTH = torch.zeros(2, 6, 3, 5, 5)
GEOMETRY = "See igm_fast.layers.conv_geometry"
SLIPS = [
    ([CONV, CONV_SKETCH], {"input": DEPTH}, r"input has shape \(2, 6, 3, 5, 5\), expected \[N, C, H, W\]. Unsqueeze"),
    ([CONV], {"input": torch.zeros(6, 5, 5)}, r"input has shape \(6, 5, 5\), expected \[N, C, H, W\]. Unsqueeze"),
    (NAMES, {"input": torch.zeros(2, 6, 5, 5).long()}, r"input is torch.int64, expected float64, .* Convert it with"),
    (
        NAMES,
        {"input": torch.zeros(4, 6, 5, 5).bool()},
        r"input is torch.bool, expected float64, float32, float16 or bf",
    ),
    ([CONV], {"input": torch.zeros(2, 6, 5, 5).cfloat()}, r"input is torch.complex64, expected float64"),
    (
        [LINEAR, LINEAR_SKETCH],
        {"input": torch.tensor(1.0)},
        r"input is a scalar, expected \[..., d\]. Give the layer's",
    ),
    ([CONV, CONV_SKETCH], {"kernel_size": [3]}, rf"kernel_size=\(3,\), expected 2 integers .* >= 1. {GEOMETRY}"),
    ([CONV, CONV_SKETCH], {"kernel_size": [0, 2]}, r"kernel_size=\(0, 2\), expected 2 integers \(height, width\) >= 1"),
    (
        [CONV, CONV_SKETCH],
        {"stride": [1, 0]},
        rf"stride=\(1, 0\), expected 2 integers \(height, width\) >= 1. {GEOMETRY}",
    ),
    ([CONV, CONV_SKETCH], {"dilation": [0, 1]}, rf"dilation=\(0, 1\), expected 2 integers .* >= 1. {GEOMETRY}"),
    (
        [CONV, CONV_SKETCH],
        {"padding": [1, 1]},
        r"padding=\(1, 1\), expected 4 integers \(left, right, top, bottom\) >= 0",
    ),
    ([CONV], {"padding": [1, 0, -1, 2]}, rf"padding=\(1, 0, -1, 2\), expected 4 integers .* >= 0. {GEOMETRY}"),
    (
        [CONV, CONV_SKETCH],
        {"groups": 4},
        r"groups=4 for 6 channels, expected a divisor of the channels. Use the layer's",
    ),
    ([CONV], {"groups": 0}, r"groups=0 for 6 channels, expected a divisor of the channels"),
    (
        [CONV, CONV_SKETCH],
        {"dilation": [4, 1]},
        r"padded input 8×6, expected at least 9×2, what kernel \(3, 2\) covers at dilation \(4, 1\). The layer itself",
    ),
    ([CONV], {"kernel_size": [3, 7]}, r"padded input 8×6, expected at least 3×7"),
    (
        [CONV],
        {"out": torch.ones(18, 18)},
        r"out has shape \(18, 18\), expected \(2, 18, 18\). Allocate it with torch.zeros",
    ),
    (
        [LINEAR],
        {"out": torch.ones(6, 5)},
        r"out has shape \(6, 5\), expected \(6, 6\). Allocate it with torch.zeros\(6, 6\)",
    ),
    (
        [CONV],
        {"out": torch.ones(2, 18, 18).half()},
        r"out is torch.float16, expected float32 or float64. Sums need a wide",
    ),
    ([LINEAR], {"out": torch.ones(6, 6).bfloat16()}, r"out is torch.bfloat16, expected float32 or float64. Sums need"),
    (
        [CONV],
        {"out": torch.ones(2, 18, 18).mT},
        r"out has strides \(324, 1, 18\), expected a contiguous .* Use .contiguous",
    ),
    ([LINEAR], {"out": torch.ones(6, 1).expand(6, 6)}, r"out has strides \(1, 0\), expected a contiguous tensor"),
    ([CONV_SKETCH], {"omega": torch.ones(18, 3)}, r"omega has shape \(18, 3\), expected \(2, 18, 'k'\) .* Draw it for"),
    (
        [LINEAR_SKETCH],
        {"omega": torch.ones(5, 3)},
        r"omega has shape \(5, 3\), expected \(6, 'k'\) for this input. Draw",
    ),
    (
        [LINEAR_SKETCH],
        {"omega": torch.tensor(1.0)},
        r"omega has shape \(\), expected \(6, 'k'\) for this input. Draw it",
    ),
    (
        [LINEAR_SKETCH],
        {"omega": torch.ones(6, 3).double()},
        r"omega is torch.float64, expected torch.float32 .* Keep all",
    ),
    ([LINEAR_SKETCH], {"omega": torch.ones(6, 4)}, r"sketch has shape \(6, 3\), expected \(6, 4\). Allocate it with"),
    ([CONV_SKETCH], {"total": torch.ones(18)}, r"total has shape \(18,\), expected \(2, 18\). Allocate it with"),
    ([CONV_SKETCH], {"total": torch.ones(2, 18).double()}, r"total is torch.float64, expected torch.float32. Keep all"),
    (
        [LINEAR_SKETCH],
        {"trace": torch.ones(1)},
        r"trace has shape \(1,\), expected \(\). Allocate it with torch.zeros\(\)",
    ),
    ([CONV_SKETCH], {"trace": torch.ones(2).half()}, r"trace is torch.float16, expected torch.float32. Keep all sums"),
    ([CONV_SKETCH], {"sketch": torch.ones(2, 3, 18).mT}, r"sketch has strides \(54, 1, 18\), expected a contiguous"),
    ([CONV_SKETCH], {"total": torch.ones(18, 2).T}, r"total has strides \(1, 2\), expected a contiguous"),
    ([LINEAR_SKETCH], {"sketch": torch.ones(6, 3).half()}, r"sketch is torch.float16, expected float32 or float64"),
]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param(name, changes, message, id=f"{name}-{'-'.join(changes)}-{number}")
        for number, (names, changes, message) in enumerate(SLIPS)
        for name in names
    ],
)
def test_slips_are_named_before_anything_is_written(name, changes, message):
    called = arguments(name, **changes)
    before = results(called)
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        getattr(ops, name)(**called)
    assert all(torch.equal(a, b) for a, b in zip(results(called), before, strict=True))
