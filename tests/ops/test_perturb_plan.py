"""The launch plan of sam_perturb's CUDA kernels, checked without a GPU; and the kernels where there is one."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import native

CHUNK, TENSORS, MAX_GRID = 16384, 96, 2**31 - 1


@given(sizes=st.lists(st.integers(0, 5 * CHUNK), max_size=300), per_tensor=st.booleans())
def test_plan_covers_every_chunk_once(sizes, per_tensor):
    plan = native.module().perturb_plan(sizes, per_tensor, MAX_GRID)
    chunks = [-(-size // CHUNK) for size in sizes]
    assert [batch["first_tensor"] for batch in plan["batches"]] == list(range(0, len(sizes), TENSORS))
    for batch in plan["batches"]:
        inside = slice(batch["first_tensor"], batch["first_tensor"] + batch["tensors"])
        assert 0 < batch["tensors"] <= TENSORS
        assert batch["grid"] == sum(chunks[inside])
        assert batch["first_chunk"] == sum(chunks[: inside.start])
        assert batch["block"] == 256
    assert plan["partials"] == sum(chunks)
    ranges = [range(begin, end) for norms in plan["norms"] for begin, end in zip(norms["begin"], norms["begin"][1:])]  # noqa: B905
    assert [len(part) for part in ranges] == (chunks if per_tensor else [sum(chunks)])
    assert sum(norms["grid"] for norms in plan["norms"]) == len(ranges)
    assert plan["workspace_doubles"] == plan["partials"] + len(ranges)
    assert plan["workspace_doubles"] == native.module().perturb_workspace(sizes, per_tensor)


def test_huge_tensors_need_64_bits():
    plan = native.module().perturb_plan([2**40], False, MAX_GRID)
    assert plan["batches"][0]["grid"] == 2**26


def test_plan_beyond_the_device_is_refused():
    with pytest.raises(ValueError, match=r"perturb_kernel: grid 3, .* expected at most 2 blocks.*Split the list"):
        native.module().perturb_plan([CHUNK, CHUNK, 1], False, 2)


def test_route_without_kernels_says_so(monkeypatch):
    if hasattr(native.module(), "sam_perturb_cuda"):
        monkeypatch.delattr(native.module(), "sam_perturb_cuda")
    with pytest.raises(RuntimeError, match=r"sam_perturb: CUDA tensors given, expected CPU.*Rebuild with nvcc"):
        native.require_cuda("sam_perturb")


def test_no_cuda_library_is_loaded_at_import(run_python):
    code = "import igm_fast.ops; print('libcuda' in open('/proc/self/maps').read())"
    if torch.version.cuda is None:  # a torch with CUDA brings its own libraries along
        assert run_python(code).strip() == "False"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_gpu_matches_the_oracle(dtype, scope, adaptive):
    sizes = [5, 0, CHUNK + 3, 1, 3 * CHUNK, *range(200)]
    params, grads = ([torch.randn(size, dtype=dtype, device="cuda") for size in sizes] for _ in range(2))
    params[2] = torch.randn(CHUNK + 4, dtype=dtype, device="cuda")[1:]  # off the 16-byte grid
    before, backups = [param.clone() for param in params], [torch.empty_like(param) for param in params]
    norm = torch.empty(1 if scope == "global" else len(sizes), device="cuda")
    torch.ops.igm_fast.sam_perturb(params, backups, norm, grads, 0.05, scope=scope, adaptive=adaptive)
    weights, gradients = ([tensor.double().cpu().numpy() for tensor in tensors] for tensors in (before, grads))
    expected, norms = oracles.sam_perturb(weights, gradients, 0.05, scope=scope, adaptive=adaptive)
    np.testing.assert_allclose(norm.cpu().numpy(), norms.astype(np.float32), rtol=1e-6)
    unit = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7}[dtype]
    for param, backup, old, want in zip(params, backups, before, expected, strict=True):
        assert torch.equal(backup, old)
        np.testing.assert_allclose(param.double().cpu().numpy(), want, rtol=2 * unit, atol=2 * unit * 0.05)
    torch.ops.igm_fast.sam_restore(params, backups)
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


@pytest.mark.gpu
def test_gpu_graph_replays_without_the_host():
    weight, backup, grad = (torch.randn(100_000, device="cuda") for _ in range(3))
    norm, start = torch.empty(1, device="cuda"), weight.clone()
    torch.ops.igm_fast.sam_perturb([weight], [backup], norm, [grad], 0.05)
    want = weight.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ops.igm_fast.sam_perturb([weight], [backup], norm, [grad], 0.05)
    weight.copy_(start)
    graph.replay()
    assert torch.equal(weight, want)
    assert torch.equal(backup, start)
