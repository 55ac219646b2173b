"""Both routes to a GPU give the same bits: kernels that nvcc built, and those that CuPy has NVRTC compile."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import native

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no CuPy here; pip install igm_fast[cupy]"),
]
ops = torch.ops.igm_fast


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    """A cache of this run's own: kernels are compiled here, not found."""
    monkeypatch.setenv("IGM_FAST_KERNEL_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values of all magnitudes, subnormal ones among them, which one compiler option would set to zero."""
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float64)
    values.flatten()[::7] *= 1e-39
    return values.to(dtype)


def perturbed(dtype: torch.dtype) -> list[torch.Tensor]:
    params = [tensor(300, 77, dtype=dtype), tensor(5, dtype=dtype), tensor(40001, dtype=dtype)]
    backups, norm = [torch.empty_like(param) for param in params], torch.empty(1, device="cuda")
    ops.sam_perturb(params, backups, norm, [2 * tensor(*param.shape, dtype=dtype) for param in params], 0.05)
    return [*params, *backups, norm]


def covariance(dtype: torch.dtype) -> list[torch.Tensor]:
    out = torch.zeros(1, 144, 144, device="cuda")
    ops.conv2d_covariance(out, tensor(3, 16, 13, 11, dtype=dtype), [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)
    strided = torch.zeros(1, 144, 144, device="cuda")
    ops.conv2d_covariance(strided, tensor(3, 16, 13, 11, dtype=dtype), [3, 3], [2, 2], [1, 1, 1, 1], [1, 1], 1)
    return [out, strided]


def sketch(dtype: torch.dtype) -> list[torch.Tensor]:
    image, total, trace = (torch.zeros(shape, device="cuda") for shape in ((1, 288, 24), (1, 288), (1,)))
    x, omega = tensor(3, 32, 13, 11, dtype=dtype), tensor(1, 288, 24)
    ops.conv2d_covariance_sketch(image, total, trace, x, omega, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)
    return [image, total, trace]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", [perturbed, covariance, sketch])
def test_both_routes_give_the_same_bits(operation, dtype, monkeypatch):
    monkeypatch.setenv("IGM_FAST_CUDA_ROUTE", "cupy")
    through_cupy = operation(dtype)
    if not hasattr(native.module(), "execute"):
        pytest.skip("this build has no kernels of its own to compare with")
    monkeypatch.setenv("IGM_FAST_CUDA_ROUTE", "built")
    for ours, other in zip(operation(dtype), through_cupy, strict=True):
        assert torch.equal(ours.view(torch.uint8), other.view(torch.uint8))


def test_a_graph_records_launches_through_cupy(monkeypatch):
    monkeypatch.setenv("IGM_FAST_CUDA_ROUTE", "cupy")
    params, backups, norm = [tensor(999)], [tensor(999)], torch.empty(1, device="cuda")
    grads = [tensor(998 + 1)]
    ops.sam_perturb(params, backups, norm, grads, 0.05)  # compiled and loaded
    expected = params[0].clone()
    params[0].copy_(backups[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.sam_perturb(params, backups, norm, grads, 0.05)
    params[0].copy_(backups[0])
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(params[0], expected)


def test_cupy_arrays_are_taken_where_they_lie():
    import cupy  # type: ignore[import-not-found, unused-ignore]

    from igm_fast import flat_projectors

    X = cupy.random.default_rng(0).standard_normal((500, 32))
    projector = flat_projectors({"layer": X.T @ X / 500})["layer"]
    assert projector.dense().is_cuda
