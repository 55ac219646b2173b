"""The CUDA path of sam_perturb, host code and kernels, executed on a CPU under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

ROOT = Path(__file__).parents[2]
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 3}
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
CHUNK = 16384


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler here; install g++ or set CXX")
    program = tmp_path_factory.mktemp("emulation") / "perturb"
    flags = "-std=c++17 -O1 -g -fopenmp -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"
    includes = [f"-I{ROOT / 'tests/emulation'}", f"-I{ROOT / 'csrc'}"]  # in this order: ours replaces common/*.cuh
    sources = [ROOT / "tests/emulation/perturb_main.cpp", ROOT / "csrc/update/perturb_plan.cpp"]
    done = subprocess.run(
        [compiler, *flags.split(), *includes, *sources, "-o", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def emulate(emulator, params, grads, *, rho=0.05, adaptive=False, per_tensor=False, seed=0, skip=0):
    dtype, bytes_each = params[0].dtype, params[0].element_size()
    sizes = [param.numel() for param in params]
    header = [CODES[dtype], bytes_each, adaptive, per_tensor, seed, skip, len(sizes), *sizes]
    problem = struct.pack(f"<{len(header)}qd", *header, rho)
    problem += b"".join(raw(param) + raw(grad) for param, grad in zip(params, grads, strict=True))
    done = subprocess.run([emulator], input=problem, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    moved, backups, position = [], [], 0
    for size in sizes:
        for results in (moved, backups):
            part = bytearray(done.stdout[position : position + size * bytes_each])
            results.append(torch.frombuffer(part, dtype=dtype) if size else torch.empty(0, dtype=dtype))
            position += len(part)
    norms = np.frombuffer(done.stdout[position:], np.float32)
    return moved, backups, norms


def draw(sizes: list[int], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def assert_right(params, grads, moved, backups, norms, *, per_tensor=False, adaptive=False, rho=0.05):
    scope = "tensor" if per_tensor else "global"
    weights, gradients = ([tensor.double().numpy() for tensor in tensors] for tensors in (params, grads))
    expected, want = oracles.sam_perturb(weights, gradients, rho, scope=scope, adaptive=adaptive)
    np.testing.assert_allclose(norms, want.astype(np.float32), rtol=1e-6)
    for i, param in enumerate(params):
        assert torch.equal(backups[i], param)
        unit = min(UNIT[param.dtype], 2.0**-24)
        step = np.abs(expected[i] - weights[i])
        bound = 1.01 * (UNIT[param.dtype] + unit) * np.abs(expected[i]) + 8 * unit * step + 1e-44
        assert np.all(np.abs(moved[i].double().numpy() - expected[i]) <= bound)


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_kernels_match_the_oracle(emulator, dtype, adaptive, per_tensor):
    sizes = [5, 0, CHUNK + 3, 1, CHUNK, 259, 0]
    params, grads = draw(sizes, dtype, 0), draw(sizes, dtype, 1)
    options = {"adaptive": adaptive, "per_tensor": per_tensor}
    first = emulate(emulator, params, grads, **options)
    assert_right(params, grads, *first, **options)
    # Another order of blocks and threads, and addresses off the 16-byte grid: the same bits.
    second = emulate(emulator, params, grads, seed=1, skip=1, **options)
    for ours, others in zip(first, second, strict=True):
        assert all(
            np.array_equal(np.asarray(raw_of(a)), np.asarray(raw_of(b))) for a, b in zip(ours, others, strict=True)
        )


def raw_of(value: torch.Tensor | np.float32) -> bytes:
    return raw(value) if isinstance(value, torch.Tensor) else value.tobytes()


@pytest.mark.parametrize("per_tensor", [False, True])
def test_more_tensors_than_one_launch_takes(emulator, per_tensor):
    sizes = [3 + i % 5 for i in range(200)]
    params, grads = draw(sizes, torch.float32, 0), draw(sizes, torch.float32, 1)
    assert_right(params, grads, *emulate(emulator, params, grads, per_tensor=per_tensor), per_tensor=per_tensor)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_no_direction_leaves_the_weights(emulator, bad):
    params, grads = draw([300, 7], torch.float32, 0), [torch.zeros(300), torch.zeros(7)]
    grads[1][3] = bad
    moved, backups, norms = emulate(emulator, params, grads)
    for before, after, backup in zip(params, moved, backups, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, backup)
    assert not np.isfinite(norms[0]) or norms[0] == 0
