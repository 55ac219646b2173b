"""The covariance operators for a GPU, host code and kernels, executed on a CPU."""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
import torch
from covariance_cases import (
    INPUTS,
    LARGE,
    POINTWISE,
    SAME,
    SUMS,
    Case,
    as_conv,
    assert_covariance,
    assert_sketch,
    bits,
    conv_cases,
    laid_out,
    randn,
    rows_cases,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igm_fast.ops import covariance, covariance_sketch
from igm_fast.ops import patches as patching

# (_PARTIAL_BYTES, _IMAGE_BYTES, _RUN_POSITIONS): as built; many rounds and runs; some splits of some runs.
TUNINGS = [(16 << 20, 16 << 20, 1 << 30), (1, 1, 37), (1 << 18, 1 << 12, 300)]
CAPABILITIES = [(8, 0), (9, 0), (7, 5)]
GUARD = 7.0
many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def tuned(tuning: tuple[int, int, int], tf32: bool = False) -> ExitStack:
    stack = ExitStack()
    names = ("_PARTIAL_BYTES", "_IMAGE_BYTES", "_RUN_POSITIONS")
    stack.enter_context(mock.patch.multiple(patching, **dict(zip(names, tuning, strict=True))))
    stack.enter_context(mock.patch.object(patching, "tf32_allowed", return_value=tf32))
    stack.enter_context(mock.patch.object(covariance, "lags_pay_cuda", return_value=False))
    return stack


class Outputs:
    """Outputs with guard values before and behind each."""

    def __init__(self, dtype: torch.dtype, *shapes: tuple[int, ...], starts: tuple[float, ...]) -> None:
        self._stores = [torch.full((math.prod(shape) + 6,), GUARD, dtype=dtype) for shape in shapes]
        self.views = [
            store[3:-3].view(shape).fill_(start)
            for store, shape, start in zip(self._stores, shapes, starts, strict=True)
        ]

    def checked(self) -> list[torch.Tensor]:
        for store in self._stores:
            assert (store[:3] == GUARD).all()
            assert (store[-3:] == GUARD).all()
        return self.views


def run_covariance(case: Case, alpha: float = 1.0) -> torch.Tensor:
    before = bits(case.input)
    outputs = Outputs(case.sums, (case.groups, case.dim, case.dim), starts=(5.0,))
    covariance._conv_covariance_cuda(case.axes, *outputs.views, case.input, *case.arguments, alpha=alpha)
    assert bits(case.input) == before
    return outputs.checked()[0]


def run_sketch(case: Case, omega: torch.Tensor, alpha: float = 1.0) -> list[torch.Tensor]:
    before = bits(case.input, omega)
    shapes = (tuple(omega.shape), (case.groups, case.dim), (case.groups,))
    outputs = Outputs(case.sums, *shapes, starts=(1.0, 2.0, 3.0))
    covariance_sketch._conv_covariance_sketch_cuda(
        case.axes, *outputs.views, case.input, omega, *case.arguments, alpha=alpha
    )
    assert bits(case.input, omega) == before
    return outputs.checked()


# ---- convolutions ----------------------------------------------------------------------------------------------------


@many
@given(
    case=conv_cases(),
    alpha=st.sampled_from([1.0, 0.37, -2.0]),
    tuning=st.sampled_from(TUNINGS),
    capability=st.sampled_from(CAPABILITIES),
)
def test_covariance_within_rounding(emulated, case, alpha, tuning, capability):
    emulated.capability = capability
    with tuned(tuning):
        actual = run_covariance(case, alpha)
    if case.patches.size:
        assert_covariance(case, actual, alpha, 5.0)
    assert actual.numel() == 0 or case.patches.size or (actual == 5.0).all()


@many
@given(
    case=conv_cases(),
    alpha=st.sampled_from([1.0, 0.37, -2.0]),
    columns=st.sampled_from([0, 1, 5, 8, 18, 81]),
    tuning=st.sampled_from(TUNINGS),
    capability=st.sampled_from(CAPABILITIES),
    sparse=st.booleans(),
)
def test_sketch_within_rounding(emulated, case, alpha, columns, tuning, capability, sparse):
    emulated.capability = capability
    omega = randn(case.groups, case.dim, columns, seed=1, dtype=case.sums)
    if sparse:
        omega.unflatten(1, (-1, math.prod(case.geometry[0])))[:, :, ::2, :16] = 0
    with tuned(tuning):
        assert_sketch(case, run_sketch(case, omega, alpha), omega, alpha)


@pytest.mark.sanitized
@pytest.mark.parametrize(("shape", "geometry"), LARGE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_tiles_within_rounding(emulated, shape, geometry, layout):
    """Every dtype of the input, sum and arithmetic with several tiles and splits, the tunings in turn."""
    tunings = itertools.cycle(TUNINGS)
    for dtype, sums, capability, tf32 in [
        (torch.float32, torch.float32, (8, 0), False),
        (torch.float32, torch.float32, (8, 0), True),
        (torch.float32, torch.float32, (7, 5), False),
        (torch.bfloat16, torch.float32, (8, 0), False),
        (torch.float16, torch.float64, (8, 0), False),
    ]:
        emulated.capability = capability
        case = Case(laid_out(randn(*shape, seed=3, dtype=dtype), layout), geometry, sums)
        omega = randn(case.groups, case.dim, 18, seed=4, dtype=sums)
        with tuned(next(tunings), tf32):
            assert_covariance(case, run_covariance(case, 0.5), 0.5, 5.0, tf32)
            assert_sketch(case, run_sketch(case, omega, 0.5), omega, 0.5, tf32)


@pytest.mark.parametrize("dtype", INPUTS)
def test_order_of_blocks_and_threads_changes_no_bit(emulated, dtype):
    case = Case(randn(3, 24, 9, 8, dtype=dtype), SAME)
    omega = randn(1, case.dim, 81, seed=1)
    found = set()
    for seed in (0, 1, 2):
        emulated.seed = seed
        with tuned((1 << 20, 1 << 15, 300)):
            found.add(tuple(bits(run_covariance(case), *run_sketch(case, omega))))
    assert len(found) == 1


def test_runs_and_rounds_change_nothing_but_rounding(emulated):  # noqa: ARG001
    """Numbers whose sums are exact give the same bits, however the work is cut."""
    x = torch.randint(-4, 5, (2, 20, 7, 6), generator=torch.Generator().manual_seed(0)).float()
    omega = torch.randint(-4, 5, (1, 180, 83), generator=torch.Generator().manual_seed(1)).float()
    found = set()
    for tuning in TUNINGS:
        with tuned(tuning):
            found.add(tuple(bits(run_covariance(Case(x, SAME)), *run_sketch(Case(x, SAME), omega))))
    assert len(found) == 1


def test_bounds_notice_one_missing_border_row(emulated):  # noqa: ARG001
    case = Case(randn(2, 3, 9, 11), SAME)
    without = case.input.clone()
    without[:, :, -1] = 0
    omega = randn(1, 27, 5, seed=1)
    with tuned(TUNINGS[0]):
        wrong, wrong_sketch = run_covariance(case), run_sketch(case, omega)
        right = run_sketch(Case(without, SAME), omega)
    with pytest.raises(AssertionError, match="expected"):
        assert_covariance(Case(without, SAME), wrong, 1.0, 5.0)
    for i, result in enumerate(wrong_sketch):  # each of the three results alone must be found out
        with pytest.raises(AssertionError, match="expected"):
            assert_sketch(Case(without, SAME), [*right[:i], result, *right[i + 1 :]], omega, 1.0)


@pytest.mark.parametrize("capability", [(8, 0), (7, 5)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_passes_through(emulated, bad, capability):
    """A bad pixel spoils the rows and columns of the taps that see it and nothing else, and all of the sketch."""
    emulated.capability = capability
    for dtype in (torch.float32, torch.bfloat16):
        x = randn(2, 3, 5, 5, dtype=dtype)
        x[1, 2, 0, 0] = bad  # the corner: only 4 of 9 taps ever see it
        case = Case(x, SAME)
        with np.errstate(invalid="ignore"):
            clean = np.isfinite(np.einsum("pgi,pgj->gij", case.patches, case.patches))
        with tuned(TUNINGS[0]):
            actual = run_covariance(case)
            sketch, total, trace = run_sketch(case, torch.ones(1, 27, 2))
        assert 0 < clean.sum() < clean.size
        assert np.array_equal(np.isfinite(actual.numpy()), clean)
        assert not sketch.isfinite().any()
        seen = torch.zeros(3, 3, 3, dtype=torch.bool)
        seen[2, :2, :2] = True
        assert torch.equal(total[0].isfinite(), ~seen.ravel())
        assert not trace.isfinite().any()


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 4, 0), (2, 0, 4, 4)])
def test_padding_of_empty_images_is_zero(emulated, shape):  # noqa: ARG001
    case = Case(torch.empty(shape), ((3, 3), (1, 1), (1, 2, 2, 1), (1, 1), 1))
    assert (run_covariance(case) == 5.0).all()  # in the form that is chosen
    with tuned(TUNINGS[0]):
        assert (run_covariance(case) == 5.0).all()
        for result, start in zip(run_sketch(case, torch.ones(1, case.dim, 2)), (1.0, 2.0, 3.0), strict=True):
            assert (result == start).all()


def test_what_counts_on_entry_is_the_lower_triangle(emulated):  # noqa: ARG001
    """For rows numbered by tap inside of the kernel, too."""
    for layout in ("contiguous", "channels_last"):
        x = laid_out(torch.randint(-4, 5, (1, 9, 4, 5)).float(), layout)
        start = torch.randint(-4, 5, (1, 81, 81)).float()
        out = start.tril() + torch.full((81, 81), float("nan")).triu(1)
        with tuned(TUNINGS[0]):
            covariance._conv_covariance_cuda(2, out, x, *Case(x, SAME).arguments)
        patches = torch.from_numpy(Case(x, SAME).patches[:, 0]).float()
        assert torch.equal(out[0], start[0].tril() + start[0].tril(-1).T + patches.T @ patches)


def test_the_upper_triangle_can_wait(emulated):  # noqa: ARG001
    """Without `mirror` it stays what it was, and mirror_lower makes it of the lower one."""
    x = torch.randint(-4, 5, (2, 9, 4, 5)).float()
    case, out = Case(x, SAME), torch.zeros(1, 81, 81)
    with tuned(TUNINGS[0]):
        covariance._conv_covariance_cuda(2, out, x, *case.arguments, mirror=False)
        lower = out.clone()
        covariance._mirror_lower_cuda(out)
    patches = torch.from_numpy(case.patches[:, 0]).float()
    assert torch.equal(lower[0], (patches.T @ patches).tril())
    assert torch.equal(out[0], patches.T @ patches)


@pytest.mark.parametrize("dtype", SUMS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 33), (3, 64, 64), (0, 5, 5), (2, 0, 0)])
def test_mirror_copies_the_lower_triangle(emulated, shape, dtype):  # noqa: ARG001
    out = randn(*shape, dtype=dtype)
    expected = out.tril() + out.tril(-1).mT
    covariance._mirror_lower_cuda(out)
    assert torch.equal(out, expected)


# ---- linear layers ---------------------------------------------------------------------------------------------------


@many
@given(rows=rows_cases(), alpha=st.sampled_from([1.0, -2.0]), tuning=st.sampled_from(TUNINGS))
def test_linear_within_rounding(emulated, rows, alpha, tuning):  # noqa: ARG001
    x, sums = rows
    case = as_conv(x, sums)
    omega = randn(x.shape[-1], 3, seed=1, dtype=sums)
    starts = (5.0, 1.0, 2.0, 3.0)
    shapes = ((case.dim, case.dim), tuple(omega.shape), (case.dim,), ())
    outputs = Outputs(sums, *shapes, starts=starts)
    with tuned(tuning):
        covariance._linear_covariance_cuda(outputs.views[0], x, alpha=alpha)
        covariance_sketch._linear_covariance_sketch_cuda(*outputs.views[1:], x, omega, alpha=alpha)
    out, *sketch = outputs.checked()
    if x.numel() == 0:
        assert all((result == start).all() for result, start in zip([out, *sketch], starts, strict=True))
        return
    assert_covariance(case, out[None], alpha, 5.0)
    assert_sketch(case, [result[None] for result in sketch], omega[None], alpha)


@pytest.mark.parametrize("dtype", INPUTS)
def test_wide_linear_within_rounding(emulated, dtype):  # noqa: ARG001
    """More rows than a run of the moments takes, wider than a tile, one of six dimensions."""
    for x in (randn(300, 152, dtype=dtype), randn(2, 2, 2, 2, 2, 70, dtype=dtype).transpose(0, 2)):
        case = as_conv(x, torch.float32)
        omega = randn(case.dim, 16, seed=1)
        outputs = Outputs(case.sums, (case.dim,) * 2, (case.dim, 16), (case.dim,), (), starts=(5.0, 1.0, 2.0, 3.0))
        with tuned(TUNINGS[0]):
            covariance._linear_covariance_cuda(outputs.views[0], x)
            covariance_sketch._linear_covariance_sketch_cuda(*outputs.views[1:], x, omega)
        out, *sketch = outputs.checked()
        assert_covariance(case, out[None], 1.0, 5.0)
        assert_sketch(case, [result[None] for result in sketch], omega[None], 1.0)


@pytest.mark.parametrize("dtype", SUMS)
def test_empty_batch_launches_nothing(emulated, dtype):  # noqa: ARG001
    """Not even the upper triangle is touched, and NaN stays what it was."""
    out = randn(1, 6, 6, dtype=dtype)
    out[0, 0, 1] = float("nan")
    before = bits(out)
    covariance._conv_covariance_cuda(2, out, torch.empty(0, 6, 4, 4), *Case(out, POINTWISE).arguments)
    for shape in [(0, 6), (0, 3, 6), (3, 0, 6), (2, 0, 2, 2, 6)]:
        covariance._linear_covariance_cuda(out[0], torch.empty(shape, dtype=torch.float16))
    assert bits(out) == before
