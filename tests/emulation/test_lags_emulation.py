"""The CUDA path of the covariance by lags, host code and kernels, executed on a CPU.

The bound is that of the CPU's lag form (tests/ops/test_lags.py) with another constant: no sums of rows are multiplied,
so R(δ) is at most X_c·X_e and inclusion and exclusion over the border adds at most seven such. Each product is exact
for 16 bits, off by 3·2⁻²² in three products of TF32 and by 2⁻¹⁰ in one, relative to |x_c||x_e|.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import oracles
import pytest
import torch
from bounds import assert_within, gamma

from igm_fast.ops import lags
from igm_fast.ops.patches import conv_patches

pytestmark = pytest.mark.usefixtures("emulated")

SAME = ((3, 3), (1, 1, 1, 1), (1, 1), 1)  # kernel size, padding, dilation, groups
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_lags(x: torch.Tensor, geometry: Geometry, alpha: float = 1.0, before: float = 0.0) -> np.ndarray:
    kernel_size, padding, dilation, groups = geometry
    axes = x.dim() - 2
    patches = conv_patches("test", axes, x, kernel_size, (1,) * axes, padding, dilation, groups)
    out = torch.full((groups, patches.dim, patches.dim), before)
    lags.add_lag_covariance_cuda(out, patches, alpha)
    assert np.array_equal(out.numpy(), out.mT.numpy(), equal_nan=True)
    return out.numpy()


def check(actual: np.ndarray, x: torch.Tensor, geometry: Geometry, alpha: float = 1.0, product: float = 3 * 2.0**-22):
    kernel_size, padding, dilation, groups = geometry
    values = x.double().numpy()
    norms = np.sqrt((values**2).sum(axis=(0, *range(2, x.dim())))).reshape(groups, -1)
    norms = norms.repeat(math.prod(kernel_size), 1)
    roundings = len(values) * math.prod(values.shape[2:]) + 100
    bound = (gamma(roundings, torch.float32) + product) * 8 * abs(alpha) * norms[:, :, None] * norms[:, None, :]
    expected = oracles.conv_covariance(values, kernel_size, (1,) * len(kernel_size), padding, dilation, groups)
    assert_within(actual, alpha * expected, bound)


def random_cases(seed: int) -> Iterator[tuple[torch.Tensor, Geometry, float]]:
    """Any kernel, padding, dilation and groups, in two and three dimensions, in the layouts that inputs have."""
    pick = np.random.default_rng(seed)
    for _ in range(3):
        axes = int(pick.choice([2, 2, 3]))
        kernel_size = tuple(int(k) for k in (pick.integers(1, 5, axes) if pick.random() < 0.6 else [3] * axes))
        dilation = tuple(int(d) for d in pick.integers(1, 3, axes))
        padding = tuple(int(p) for p in (pick.integers(0, 3, 2 * axes) if pick.random() < 0.6 else [1] * 2 * axes))
        groups = int(pick.choice([1, 1, 2]))
        sizes = [
            max(1, dilation[i] * (kernel_size[i] - 1) + 1 - sum(padding[2 * (axes - 1 - i) :][:2]))
            + int(pick.integers(0, 7 if axes == 2 else 3))
            for i in range(axes)
        ]
        shape = (int(pick.integers(1, 4)), groups * int(pick.choice([1, 2, 3, 8, 17])), *sizes)
        dtype = [torch.float32, torch.float16, torch.bfloat16][pick.integers(3)]
        x = drawn(shape, dtype, seed)
        layout = pick.integers(3)
        if layout == 1:
            x = x.to(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
        elif layout == 2:
            x = torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
        yield x, (kernel_size, padding, dilation, groups), float(pick.choice([1.0, 0.37, -2.0]))


@pytest.mark.parametrize("seed", range(10))
def test_random_geometries_are_within_rounding(emulated, seed):
    emulated.seed = seed
    for x, geometry, alpha in random_cases(seed):
        check(by_lags(x, geometry, alpha), x, geometry, alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 31, 64, 100])
def test_channels_that_fill_tiles_and_that_do_not(dtype, channels):
    x = drawn((2, channels, 5, 6), dtype)
    check(by_lags(x, SAME), x, SAME)


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((2, 5, 1, 9), ((1, 3), (1, 1, 0, 0), (1, 1), 1)),
        ((2, 5, 4, 4), ((1, 1), (0,) * 4, (1, 1), 1)),
        ((3, 2, 1, 1), SAME),
        ((1, 3, 4, 5, 6), ((3, 3, 3), (1,) * 6, (1, 1, 1), 1)),
        ((2, 3, 7, 7), ((5, 5), (2,) * 4, (1, 1), 1)),
        ((2, 3, 9, 9), ((3, 3), (2,) * 4, (2, 2), 1)),
        ((2, 4, 6, 6), ((3, 3), (0, 2, 1, 0), (1, 1), 2)),
        ((1, 3, 5, 80), SAME),
        ((70, 3, 2, 2), SAME),
    ],
)
def test_edges_of_the_geometry(shape, geometry):
    x = drawn(shape)
    check(by_lags(x, geometry), x, geometry)


@pytest.mark.sanitized
@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_split_of_positions_and_lags(emulated, monkeypatch, capability, dtype):
    """Little shared memory divides the lags of wide rows over blocks, many multiprocessors divide the positions."""
    emulated.capability = capability
    x = drawn((3, 40, 9, 50 if dtype == torch.float32 else 20), dtype)
    for multiprocessors in (1, 16):
        monkeypatch.setattr(lags, "_multiprocessors", lambda _device, count=multiprocessors: count)
        check(by_lags(x, SAME), x, SAME)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_order_of_blocks_and_threads_changes_no_bit(emulated, dtype):
    x = drawn((3, 36, 7, 7), dtype)
    results = []
    for emulated.seed in (0, 5):
        results.append(by_lags(x, SAME))
    assert np.array_equal(*results)


def test_one_product_of_tf32_where_torch_allows_it():
    x = drawn((2, 20, 5, 5))
    exact = by_lags(x, SAME)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        rounded = by_lags(x, SAME)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    check(rounded, x, SAME, product=2.0**-10)
    assert not np.array_equal(exact, rounded)


def test_a_channels_last_input_is_read_in_place():
    x = drawn((2, 32, 5, 6)).to(memory_format=torch.channels_last)
    for given in (x, x[:, :16], x[:, 4:20], x[:, :, 1:, 2:]):
        patches = conv_patches("test", 2, given, (3, 3), (1, 1), (1,) * 4, (1, 1), 1)
        operand, copies = lags._channels_last(patches)
        assert operand.data_ptr() == given.data_ptr()
        assert copies == []
        check(by_lags(given, SAME), given, SAME)
    for given in (x[:, 1:17], x[:, :5], x.contiguous()):
        patches = conv_patches("test", 2, given, (3, 3), (1, 1), (1,) * 4, (1, 1), 1)
        operand, copies = lags._channels_last(patches)
        assert operand.data_ptr() != given.data_ptr()
        assert len(copies) == 1
        check(by_lags(given, SAME), given, SAME)


def test_without_mirror_the_upper_triangle_is_left_alone():
    x = drawn((2, 18, 6, 6))
    patches = conv_patches("test", 2, x, (3, 3), (1, 1), (1,) * 4, (1, 1), 1)
    out = torch.full((1, 162, 162), 7.0).triu(1)
    lags.add_lag_covariance_cuda(out, patches, 1.0, mirror=False)
    assert np.array_equal(out.tril()[0], np.tril(by_lags(x, SAME)[0]))
    assert torch.equal(out.triu(1), torch.full((1, 162, 162), 7.0).triu(1))


def test_it_adds_to_the_lower_triangle_and_copies_it_to_the_upper_one():
    x = drawn((2, 18, 6, 6))
    zeros, ones = by_lags(x, SAME), by_lags(x, SAME, before=1.0)
    np.testing.assert_allclose(ones, zeros + 1.0, rtol=0, atol=2.0**-24 * np.abs(ones).max())
    patches = conv_patches("test", 2, x, (3, 3), (1, 1), (1,) * 4, (1, 1), 1)
    out = torch.full((1, 162, 162), float("nan")).triu(1)
    lags.add_lag_covariance_cuda(out, patches, 1.0)
    assert np.array_equal(out.numpy(), zeros)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_pixel_shows_and_stays_in_its_channel(bad):
    x = drawn((2, 4, 6, 6))
    x[1, 2, 3, 3] = bad
    with np.errstate(invalid="ignore"):
        expected = oracles.conv_covariance(x.double().numpy(), (3, 3), (1, 1), (1,) * 4, (1, 1), 1)
    actual = by_lags(x, SAME)
    clean = np.repeat(np.arange(4) != 2, 9)
    assert not np.isfinite(actual[~np.isfinite(expected)]).any()
    assert np.isfinite(actual[:, clean][:, :, clean]).all()


def test_the_bound_notices_one_changed_pixel():
    x = drawn((2, 9, 6, 6))
    actual = by_lags(x, SAME)
    x[1, 4, 0, 5] *= 1.01
    with pytest.raises(AssertionError, match="expected"):
        check(actual, x, SAME)
