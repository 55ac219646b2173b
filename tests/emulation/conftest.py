"""The fixture `emulated`: CUDA ops run on CPU tensors, their kernels in the emulator."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import emulator
import on_device
import pytest
import torch
from hypothesis import settings

from igm_fast.ops import native

SANITIZED = "IGM_FAST_EMULATION_SANITIZED" in os.environ  # this process was started by test_sanitizers.py

if SANITIZED:
    settings.register_profile("sanitized", deadline=None, max_examples=5)
    settings.load_profile("sanitized")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under the sanitizers, which take several times as long: the first case of each test, and what is marked."""
    if not SANITIZED:
        return
    seen: set[tuple[str, str]] = set()
    chosen, others = [], []
    for item in items:
        name = (str(item.path), getattr(item, "originalname", item.name))
        (chosen if name not in seen or "sanitized" in item.keywords else others).append(item)
        seen.add(name)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


@pytest.fixture(scope="session")
def _emulator() -> emulator.Emulator:
    if emulator.compiler() is None:
        pytest.skip("no C++ compiler here; install g++ or set CXX")
    return emulator.Emulator(sanitized=SANITIZED)


@pytest.fixture
def emulated(_emulator: emulator.Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[emulator.Emulator]:
    """Call the `_…_cuda` functions with CPU tensors. torch.empty gives NaN here, so what stays unwritten is seen."""
    _emulator.reset()
    monkeypatch.setattr(native, "launch", _emulator.launch)
    monkeypatch.setattr(native, "capability", lambda _device: _emulator.capability)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield _emulator
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def _device(tmp_path_factory: pytest.TempPathFactory) -> on_device.Device:
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        pytest.skip("no nvcc here; put it on PATH or into CUDACXX")
    return on_device.Device(nvcc, tmp_path_factory.mktemp("device"))


@pytest.fixture(params=["emulated", pytest.param("_device", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> emulator.Emulator | on_device.Device:
    """Run a test in the emulator and, where there is one, on a GPU."""
    return request.getfixturevalue(request.param)
