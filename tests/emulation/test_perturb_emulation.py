"""The CUDA path of sam_perturb, host code and kernels, executed on a CPU."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from igm_fast.ops import update

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
CHUNK = 16384


def perturb(params, grads, *, rho=0.05, adaptive=False, scope="global", skip=0):
    """Run the op on copies, `skip` elements behind a multiple of 16 bytes; returns weights, backups and norms."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        room = torch.empty(tensor.numel() + skip, dtype=tensor.dtype)[skip:]
        return room.copy_(tensor)

    weights, gradients = [moved(param) for param in params], [moved(grad) for grad in grads]
    backups = [moved(torch.empty_like(param)) for param in params]
    norm = torch.empty(len(params) if scope == "tensor" else 1)
    update._sam_perturb_cuda(weights, backups, norm, gradients, rho, scope=scope, adaptive=adaptive)
    return weights, backups, norm


def draw(sizes: list[int], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_right(params, grads, weights, backups, norm, *, scope="global", adaptive=False, rho=0.05):
    before, gradients = ([tensor.double().numpy() for tensor in tensors] for tensors in (params, grads))
    expected, want = oracles.sam_perturb(before, gradients, rho, scope=scope, adaptive=adaptive)
    np.testing.assert_allclose(norm.numpy(), want.astype(np.float32), rtol=1e-6)
    for i, param in enumerate(params):
        assert torch.equal(backups[i], param)
        unit = min(UNIT[param.dtype], 2.0**-24)
        step = np.abs(expected[i] - before[i])
        bound = 1.01 * (UNIT[param.dtype] + unit) * np.abs(expected[i]) + 8 * unit * step + 1e-44
        assert np.all(np.abs(weights[i].double().numpy() - expected[i]) <= bound)


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_kernels_match_the_oracle(emulated, dtype, adaptive, scope):
    sizes = [5, 0, CHUNK + 3, 1, CHUNK, 259, 0]
    params, grads = draw(sizes, dtype, 0), draw(sizes, dtype, 1)
    weights, backups, norm = perturb(params, grads, adaptive=adaptive, scope=scope)
    assert_right(params, grads, weights, backups, norm, adaptive=adaptive, scope=scope)
    # Another order of blocks and threads, and addresses off the 16-byte grid: the same bits.
    emulated.seed = 1
    others = perturb(params, grads, adaptive=adaptive, scope=scope, skip=1)
    assert bits(norm) == bits(others[2])
    assert [*map(bits, weights), *map(bits, backups)] == [*map(bits, others[0]), *map(bits, others[1])]


@pytest.mark.sanitized
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_more_tensors_than_one_launch_takes(scope):
    sizes = [3 + i % 5 for i in range(200)]
    params, grads = draw(sizes, torch.float32, 0), draw(sizes, torch.float32, 1)
    assert_right(params, grads, *perturb(params, grads, scope=scope), scope=scope)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_no_direction_leaves_the_weights(bad):
    params, grads = draw([300, 7], torch.float32, 0), [torch.zeros(300), torch.zeros(7)]
    grads[1][3] = bad
    weights, backups, norm = perturb(params, grads)
    for before, after, backup in zip(params, weights, backups, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, backup)
    assert not torch.isfinite(norm) or norm == 0
