"""The covariance by lags on a real GPU, against the float64 oracle."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from bounds import assert_within, gamma

from igm_fast.ops import lags, native
from igm_fast.ops.patches import Patches, conv_patches

pytestmark = pytest.mark.gpu

SAME = ((3, 3), (1, 1, 1, 1), (1, 1), 1)  # kernel size, padding, dilation, groups


@pytest.fixture(autouse=True)
def _matrix_units() -> None:
    if not torch.cuda.is_available() or native.capability(torch.device("cuda", 0)) < (8, 0):
        pytest.skip("needs a GPU of compute capability 8.0 or later")


def prepared(shape, geometry, dtype=torch.float32, layout=torch.contiguous_format) -> tuple[Patches, torch.Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    x = x.to(memory_format=layout) if x.dim() == 4 else x
    kernel_size, padding, dilation, groups = geometry
    patches = conv_patches("test", x.dim() - 2, x, kernel_size, (1,) * len(kernel_size), padding, dilation, groups)
    return patches, torch.zeros(groups, patches.dim, patches.dim, device="cuda")


def check(actual, patches: Patches, geometry, product: float) -> None:
    """Compare as tests/emulation/test_lags_emulation.py does; its bound."""
    kernel_size, padding, dilation, groups = geometry
    x = patches.input.double().cpu().numpy()
    x = x if len(kernel_size) == 3 else x[:, :, 0]
    norms = np.sqrt((x**2).sum(axis=(0, *range(2, x.ndim)))).reshape(groups, -1).repeat(math.prod(kernel_size), 1)
    roundings = len(x) * math.prod(x.shape[2:]) + 100
    bound = (gamma(roundings, torch.float32) + product) * 8 * norms[:, :, None] * norms[:, None, :]
    expected = oracles.conv_covariance(x, kernel_size, (1,) * len(kernel_size), padding, dilation, groups)
    assert_within(actual.double().cpu().numpy(), expected, bound)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((8, 64, 28, 28), SAME),
        ((3, 100, 7, 9), SAME),
        ((2, 34, 9, 60), ((3, 3), (0, 2, 1, 0), (2, 1), 2)),
        ((4, 24, 10, 10), ((5, 5), (2,) * 4, (1, 1), 1)),
        ((2, 8, 5, 6, 7), ((3, 3, 3), (1,) * 6, (1, 1, 1), 1)),
        ((1, 3, 4, 4), SAME),
    ],
)
def test_within_rounding(shape, geometry, dtype, layout):
    patches, out = prepared(shape, geometry, dtype, layout)
    lags.add_lag_covariance_cuda(out, patches, 1.0)
    assert torch.equal(out, out.mT)
    check(out, patches, geometry, 3 * 2.0**-22)
    again = torch.zeros_like(out)
    lags.add_lag_covariance_cuda(again, patches, 1.0)
    assert torch.equal(out, again)


def test_tf32_where_torch_allows_it():
    patches, out = prepared((8, 64, 14, 14), SAME)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        lags.add_lag_covariance_cuda(out, patches, 1.0)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    check(out, patches, SAME, 2.0**-10)


def test_a_cuda_graph_records_it():
    patches, out = prepared((4, 32, 14, 14), SAME)
    lags.add_lag_covariance_cuda(out, patches, 1.0)
    once, x = out.clone(), patches.input
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lags.add_lag_covariance_cuda(out, patches, 1.0)
    out.zero_()
    graph.replay()
    assert torch.equal(out, once)
    x.mul_(2)
    out.zero_()
    graph.replay()
    assert torch.equal(out, 4 * once)
