"""The exact covariance by lags against the float64 oracle, with a bound from a rounding analysis; and its choice.

With X_c the root of Σ_q x_c[q]², every product of the plan is at most 2·X_c·X_e by Cauchy-Schwarz (sides are sums of at
most two rows of pairs), four such make R(δ), and inclusion and exclusion over the border adds at most 7·X_c·X_e: 11 in
all. Each passes as many roundings as there are positions, and a few for sums of rows, weights and sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from unittest import mock

import numpy as np
import oracles
import pytest
import torch
from bounds import assert_within, gamma
from hypothesis import example, given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import covariance, forms, lags, native
from igm_fast.ops.lag_plan import lag_plan, pairs_rows
from igm_fast.ops.patches import conv_patches

ops = torch.ops.igm_fast
SAME = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)


@dataclass(frozen=True)
class Case:
    input: torch.Tensor
    geometry: tuple  # kernel size, stride, padding, dilation, groups
    sums: torch.dtype

    @property
    def axes(self) -> int:
        return self.input.dim() - 2


def made(shape: tuple, geometry: tuple, sums: torch.dtype = torch.float64, dtype=torch.float64, seed=0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    return Case(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), geometry, sums)


def by_lags(case: Case, alpha: float = 1.0, before: float = 0.0) -> np.ndarray:
    groups = case.geometry[-1]
    dim = case.input.shape[1] // groups * math.prod(case.geometry[0])
    out = torch.full((groups, dim, dim), before, dtype=case.sums)
    with mock.patch.object(covariance, "choose_form", return_value="lags"):
        getattr(ops, f"conv{case.axes}d_covariance")(out, case.input, *case.geometry, alpha=alpha)
    assert np.array_equal(out.numpy(), out.mT.numpy(), equal_nan=True)
    return out.numpy().astype(np.float64)


def check(case: Case, actual: np.ndarray, x: np.ndarray, alpha: float = 1.0) -> None:
    groups = case.geometry[-1]
    norms = np.sqrt((x**2).sum(axis=(0, *range(2, x.ndim)))).reshape(groups, -1).repeat(math.prod(case.geometry[0]), 1)
    roundings = len(x) * math.prod(x.shape[2:]) + 100
    bound = gamma(roundings, case.sums) * 11 * abs(alpha) * norms[:, :, None] * norms[:, None, :]
    assert_within(actual, alpha * oracles.conv_covariance(x, *case.geometry), bound)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = draw(st.sampled_from([2, 2, 3]))

    def per_axis(low: int, high: int, count: int = axes) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * count))

    kernel_size = draw(st.sampled_from([(3,) * axes, (1,) * (axes - 2) + (3, 3), per_axis(1, 4)]))
    stride = draw(st.sampled_from([(1,) * axes, per_axis(1, 3)]))
    dilation = draw(st.sampled_from([(1,) * axes, per_axis(1, 2)]))
    padding = draw(st.sampled_from([(1,) * (2 * axes), per_axis(0, 3, 2 * axes)]))
    groups = draw(st.sampled_from([1, 1, 2]))
    around = [padding[i] + padding[i + 1] for i in range(0, 2 * axes, 2)][::-1]
    least = [max(1, dilation[i] * (kernel_size[i] - 1) + 1 - around[i]) for i in range(axes)]
    sizes = [low + draw(st.integers(0, 6 if axes == 2 else 3)) for low in least]
    shape = (draw(st.integers(1, 3)), groups * draw(st.sampled_from([1, 2, 3, 17])), *sizes)
    geometry = (kernel_size, stride, padding, dilation, groups)
    sums = draw(st.sampled_from([torch.float32, torch.float64]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    case = made(shape, geometry, sums, dtype, seed=draw(st.integers(0, 99)))
    if axes == 2 and draw(st.booleans()):
        return Case(case.input.to(memory_format=torch.channels_last), geometry, sums)
    return case


@given(case=cases(), alpha=st.sampled_from([1.0, 0.37, -2.0]), part_bytes=st.sampled_from([1, 4 << 20]))
@example(case=made((2, 3, 5, 6), SAME), alpha=1.0, part_bytes=1)
@example(case=made((3, 2, 1, 1), SAME), alpha=1.0, part_bytes=4 << 20)
@example(case=made((2, 2, 2, 3, 4), ((2, 3, 3), (1, 1, 1), (1,) * 6, (1, 1, 1), 1)), alpha=1.0, part_bytes=1)
@example(case=made((1, 2, 3, 5, 5), ((1, 3, 3), (1, 1, 1), (1, 1, 1, 1, 0, 0), (1, 1, 1), 2)), alpha=1.0, part_bytes=1)
def test_within_rounding(case, alpha, part_bytes):
    with mock.patch.object(lags, "_PART_BYTES", part_bytes):
        check(case, by_lags(case, alpha), case.input.to(case.sums).double().numpy(), alpha)


# Several blocks of 16 channels, and an incomplete one.
@pytest.mark.parametrize("channels", [16, 40])
@pytest.mark.parametrize("stride", [1, 2])
def test_within_rounding_with_many_channels(channels, stride):
    case = made((2, channels, 7, 8), ((3, 3), (stride, stride), (1, 1, 1, 1), (1, 1), 1), torch.float32, torch.float32)
    check(case, by_lags(case), case.input.double().numpy())


@given(case=cases())
def test_the_bound_notices_one_missing_pixel(case):
    x = case.input.to(case.sums).double().numpy().copy()
    actual = by_lags(case)
    seen = np.argwhere(oracles.conv_patches(np.abs(x) > 0.3, *case.geometry).any(axis=(0, 1)))
    if not len(seen):  # no patch holds a pixel of that size
        return
    x[np.abs(x) > 0.3] *= 1.5
    with pytest.raises(AssertionError, match="expected"):
        check(case, actual, x)


def test_it_adds_to_the_lower_triangle_and_copies_it_to_the_upper_one():
    case = made((2, 18, 6, 6), SAME)
    zeros, ones = by_lags(case), by_lags(case, before=1.0)
    np.testing.assert_allclose(ones, zeros + 1.0, rtol=1e-13)
    out = torch.full((1, 162, 162), float("nan"), dtype=torch.float64).triu(1)
    with mock.patch.object(covariance, "choose_form", return_value="lags"):
        ops.conv2d_covariance(out, case.input, *SAME)
    assert np.array_equal(out.numpy(), zeros)


def test_a_bad_pixel_shows_and_stays_in_its_channel():
    case = made((2, 4, 6, 6), SAME)
    case.input[1, 2, 3, 3] = float("inf")
    with np.errstate(invalid="ignore"):
        expected = oracles.conv_covariance(case.input.numpy(), *SAME)
    actual = by_lags(case)
    clean = np.repeat(np.arange(4) != 2, 9)
    assert not np.isfinite(actual[~np.isfinite(expected)]).any()
    assert np.isfinite(actual[:, clean][:, :, clean]).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_threads_do_not_change_bits_of_the_assembly(stride):
    window = conv_patches("t", 2, torch.zeros(1, 40, 7, 7), (3, 3), (stride,) * 2, (1,) * 4, (1, 1), 1).window
    plan = lag_plan(window, (1, 7, 7))
    products = torch.randn(len(plan.terms), 40, 40)
    results = []
    for threads in (1, 2, 3):
        out = torch.zeros(360, 360)
        native.module().add_lag_blocks(
            out.data_ptr(), products.data_ptr(), 0, 40, 9, len(plan.terms), plan.first.data_ptr(),
            plan.code.data_ptr(), plan.weight.data_ptr(), 1.0, True, threads,
        )  # fmt: skip
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# ---- plan and choice -------------------------------------------------------------------------------------------------


def patches_of(shape: tuple, kernel: int, stride: int = 1, padding: int = 1, groups: int = 1):
    return conv_patches("t", 2, torch.zeros(shape), (kernel,) * 2, (stride,) * 2, (padding,) * 4, (1, 1), groups)


def test_a_3x3_kernel_takes_nine_products_over_the_input():
    """18 of half the input each, and thin ones: two edges for three lags on both axes, and four corners."""
    case = patches_of((8, 64, 56, 56), 3)
    plan = lag_plan(case.window, case.sizes)
    assert pairs_rows(case.window)
    assert len(plan.terms) == 18 + 2 * 3 + 2 * 3 + 4
    assert 9 <= plan.positions / 56**2 <= 10
    dilated = conv_patches("t", 2, torch.zeros(8, 64, 56, 56), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1)
    assert not pairs_rows(dilated.window)
    assert 13 <= lag_plan(dilated.window, dilated.sizes).positions / 56**2 <= 14.5


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (patches_of((8, 64, 56, 56), 3), "lags"),
        (patches_of((8, 128, 28, 28), 3), "lags"),
        (patches_of((8, 256, 14, 14), 3), "lags"),
        (patches_of((8, 512, 7, 7), 3), "lags"),
        (patches_of((2, 512, 3, 3), 3), "patches"),
        (patches_of((8, 64, 56, 56), 1, padding=0), "patches"),
        (patches_of((8, 3, 224, 224), 7, 2, 3), "patches"),
        (patches_of((8, 64, 28, 28), 3, groups=64), "patches"),
        (patches_of((1, 4, 64, 64), 31, padding=15, groups=4), "patches"),
    ],
)
def test_the_form_is_the_cheaper_one(case, form):
    assert forms.choose_form(case, torch.float32) == form
    if math.prod(case.window.kernel_size) <= forms.MOST_TAPS and form == "lags":
        assert forms.estimate_lags(case, torch.float32) < forms.estimate_patches(case, torch.float32)
