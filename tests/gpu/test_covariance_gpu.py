"""The covariance operators on a GPU against float64 oracles, the CPU's results, and what CUDA asks of them."""

from __future__ import annotations

import math

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
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import igm_fast
from igm_fast.ops import covariance
from igm_fast.ops import patches as patching

pytestmark = pytest.mark.gpu
ops = torch.ops.igm_fast
few = settings(max_examples=40, deadline=None)


def run_covariance(case: Case, alpha: float = 1.0) -> torch.Tensor:
    out = torch.full((case.groups, case.dim, case.dim), 5.0, dtype=case.sums, device="cuda")
    getattr(ops, f"conv{case.axes}d_covariance")(out, case.input.cuda(), *case.arguments, alpha=alpha)
    return out


def run_sketch(case: Case, omega: torch.Tensor, alpha: float = 1.0) -> list[torch.Tensor]:
    shapes = (tuple(omega.shape), (case.groups, case.dim), (case.groups,))
    results = [
        torch.full(shape, float(start), dtype=case.sums, device="cuda") for start, shape in enumerate(shapes, start=1)
    ]
    op = getattr(ops, f"conv{case.axes}d_covariance_sketch")
    op(*results, case.input.cuda(), omega.cuda(), *case.arguments, alpha=alpha)
    return results


@pytest.fixture
def by_patches(monkeypatch):
    """Keep the lag form out: it has tests of its own."""
    monkeypatch.setattr(covariance, "lags_pay_cuda", lambda *_: False)


@few
@given(case=conv_cases(), alpha=st.sampled_from([1.0, 0.37, -2.0]), columns=st.sampled_from([1, 8, 81]))
def test_conv_within_rounding(case, alpha, columns):
    omega = randn(case.groups, case.dim, columns, seed=1, dtype=case.sums)
    sketch = run_sketch(case, omega, alpha)
    assert_sketch(case, sketch, omega, alpha)
    if case.patches.size:
        assert_covariance(case, run_covariance(case, alpha), alpha, 5.0)


@pytest.mark.parametrize(("shape", "geometry"), LARGE)
@pytest.mark.parametrize("dtype", INPUTS)
def test_many_tiles_within_rounding(by_patches, monkeypatch, shape, geometry, dtype):  # noqa: ARG001
    for tuning in [(16 << 20, 16 << 20, 1 << 30), (1 << 18, 1 << 12, 300)]:
        for name, value in zip(("_PARTIAL_BYTES", "_IMAGE_BYTES", "_RUN_POSITIONS"), tuning, strict=True):
            monkeypatch.setattr(patching, name, value)
        for layout in ("contiguous", "channels_last"):
            for sums in SUMS:
                case = Case(laid_out(randn(*shape, seed=3, dtype=dtype), layout), geometry, sums)
                omega = randn(case.groups, case.dim, 18, seed=4, dtype=sums)
                assert_covariance(case, run_covariance(case, 0.5), 0.5, 5.0)
                assert_sketch(case, run_sketch(case, omega, 0.5), omega, 0.5)


@pytest.mark.parametrize("dtype", INPUTS)
def test_linear_within_rounding(dtype):
    for x in (randn(300, 152, dtype=dtype), randn(2, 3, 2, 2, 2, 70, dtype=dtype).transpose(0, 2)):
        case = as_conv(x, torch.float32)
        omega = randn(case.dim, 16, seed=1)
        out = torch.full((case.dim, case.dim), 5.0, device="cuda")
        sketch = [torch.full(s, v, device="cuda") for s, v in (((case.dim, 16), 1.0), ((case.dim,), 2.0), ((), 3.0))]
        ops.linear_covariance(out, x.cuda())
        ops.linear_covariance_sketch(*sketch, x.cuda(), omega.cuda())
        assert_covariance(case, out[None], 1.0, 5.0)
        assert_sketch(case, [result[None] for result in sketch], omega[None], 1.0)


def test_tf32_where_torch_allows_it(by_patches, monkeypatch):  # noqa: ARG001
    case = Case(randn(3, 24, 9, 8), SAME)
    omega = randn(1, case.dim, 80, seed=1)
    exact = run_covariance(case)
    monkeypatch.setattr(patching, "tf32_allowed", lambda: True)
    rounded = run_covariance(case)
    assert_covariance(case, rounded, 1.0, 5.0, tf32=True)
    assert_sketch(case, run_sketch(case, omega), omega, 1.0, tf32=True)
    assert torch.cuda.get_device_capability() < (8, 0) or not torch.equal(exact, rounded)


LAYERS = [((8, 64, 56, 56), SAME), ((8, 256, 14, 14), SAME), ((8, 64, 56, 56), ((3, 3), (2, 2), *SAME[2:]))]


@pytest.mark.parametrize(("shape", "geometry"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_a_network_equal_a_product_in_float64(shape, geometry, dtype):
    """Long sums: matrix units truncate when they add, which must not drift beyond float32's own rounding."""
    x = randn(*shape, dtype=dtype).cuda().relu()
    for layout in (torch.contiguous_format, torch.channels_last):
        case = Case(x.contiguous(memory_format=layout), geometry)
        unfolded = nn.functional.unfold(x.double(), geometry[0], padding=1, stride=geometry[1])
        unfolded = unfolded.movedim(1, 0).flatten(1)
        expected = unfolded @ unfolded.T
        out = torch.zeros(1, case.dim, case.dim, device="cuda")
        ops.conv2d_covariance(out, case.input, *case.arguments)
        assert float((out[0] - expected).abs().max() / expected.abs().max()) < 2e-5
        omega = torch.linalg.qr(randn(case.dim, 80, dtype=torch.float64))[0].float().cuda()
        sketch = torch.zeros(1, case.dim, 80, device="cuda")
        total, trace = torch.zeros(1, case.dim, device="cuda"), torch.zeros(1, device="cuda")
        ops.conv2d_covariance_sketch(sketch, total, trace, case.input, omega[None], *case.arguments)
        image = expected @ omega.double()
        assert float((sketch[0] - image).abs().max() / image.abs().max()) < 2e-5
        torch.testing.assert_close(total[0].double(), unfolded.sum(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(trace[0].double(), unfolded.square().sum(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_again_and_in_a_graph(dtype):
    case = Case(randn(4, 24, 20, 18, dtype=dtype), SAME)
    omega = randn(1, case.dim, 80, seed=1).cuda()
    x = case.input.cuda()
    out = torch.zeros(1, case.dim, case.dim, device="cuda")
    sketch = [torch.zeros(s, device="cuda") for s in (omega.shape, (1, case.dim), (1,))]

    def add() -> None:
        ops.conv2d_covariance(out, x, *case.arguments)
        ops.conv2d_covariance_sketch(*sketch, x, omega, *case.arguments)

    def taken() -> list[bytes]:
        found = bits(out, *sketch)
        for tensor in (out, *sketch):
            tensor.zero_()
        return found

    add()
    first = taken()
    add()
    assert taken() == first
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add()
    for tensor in (out, *sketch):
        tensor.zero_()
    graph.replay()
    assert taken() == first


def test_tensors_on_two_devices_are_refused():
    x = randn(2, 6, 5, 5)
    out = torch.zeros(1, 6, 6, device="cuda")
    with pytest.raises(ValueError, match=r"out is on cuda:0, expected cpu as input"):
        ops.conv2d_covariance(out, x, *Case(x, POINTWISE).arguments)


@pytest.mark.parametrize("estimator", ["sketch", "full", "batch_mean"])
def test_a_network_on_a_gpu_has_the_statistics_of_a_cpu(estimator):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 300),
        nn.Linear(300, 5),
    ).eval()
    batch = randn(4, 3, 16, 16)
    found = []
    for device in ("cpu", "cuda"):
        network.to(device)
        with torch.no_grad(), igm_fast.ActivationCovariance(network, estimator, centered=True) as statistics:
            network(batch.to(device))
        found.append(statistics)
    on_cpu, on_gpu = found
    for name in on_cpu:
        assert on_gpu.mean(name).device.type == "cuda"
        assert on_cpu.count(name) == on_gpu.count(name)
        dim = math.prod(on_cpu.mean(name).shape)
        if dim > 2000 and estimator != "sketch":
            continue
        scale = float(on_cpu.trace(name).max())
        assert float((on_cpu.mean(name) - on_gpu.mean(name).cpu()).abs().max()) <= 1e-4 * scale**0.5
        assert float((on_cpu[name] - on_gpu[name].cpu()).abs().max()) <= 1e-4 * scale
