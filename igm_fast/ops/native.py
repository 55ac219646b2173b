"""Loads the compiled module ``_igm_fast``; nothing else imports it. Says what was built and which routes are active."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # before _igm_fast, which _load() imports: both then share the OpenMP runtime that torch brings along

import igm_fast
from igm_fast.ops import nvrtc

_HOW_TO_BUILD = "Build it with `pip install .` in a checkout (needs a C++17 compiler and CMake), or install a wheel."

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/common/dtype.hpp


def _load() -> ModuleType:
    try:
        module = import_module("_igm_fast")
    except ModuleNotFoundError as error:
        if error.name != "_igm_fast":
            raise
        raise ImportError(
            f"igm_fast {igm_fast.__version__} from {Path(igm_fast.__file__).parent}: the compiled module _igm_fast is "
            f"missing, expected it beside the package in site-packages. {_HOW_TO_BUILD}"
        ) from error
    if module.version != igm_fast.__version__:
        raise ImportError(
            f"_igm_fast {module.version} ({module.__file__}) was loaded, expected {igm_fast.__version__} as in "
            f"{igm_fast.__file__}. {_HOW_TO_BUILD}"
        )
    return module


_igm_fast = _load()


def module() -> ModuleType:
    """Return the compiled module, for the sibling files of this folder."""
    return _igm_fast


def launch(op: str, launches: list[Any], device: torch.device) -> None:
    """Start kernels on the current stream of a CUDA device, in order; nothing waits for them.

    The build's own kernels where it has some, else those that CuPy has NVRTC compile (``igm_fast/ops/nvrtc.py``);
    ``IGM_FAST_CUDA_ROUTE`` set to ``built`` or ``cupy`` says which.

    Raises:
        RuntimeError: there is no such route here, the device cannot be used, or a launch failed.
        ValueError: IGM_FAST_CUDA_ROUTE is something else.
    """
    route = cuda_route()
    if route not in ("built", "cupy"):
        raise RuntimeError(
            f"{op}: CUDA tensors given, expected CPU tensors: {route}. Rebuild with nvcc on PATH and IGM_FAST_CUDA=ON, "
            "or install CuPy (pip install igm_fast[cupy]), or move the tensors with .cpu()."
        )
    stream = torch.cuda.current_stream(device).cuda_stream
    with torch.cuda.device(device):  # the module has a CUDA runtime of its own, and sets the device in it
        if route == "built":
            _igm_fast.execute(launches, device.index, stream)
        else:
            nvrtc.execute(launches, device.index, stream)


def cuda_route() -> str:
    """Return ``built`` or ``cupy``, or why there is no route to a GPU; raise a ValueError for an unknown setting."""
    return _cuda_route(os.environ.get("IGM_FAST_CUDA_ROUTE") or None)


@cache
def _cuda_route(asked: str | None) -> str:
    if asked not in (None, "built", "cupy"):
        raise ValueError(f"IGM_FAST_CUDA_ROUTE={asked}, expected built or cupy. Unset it to let igm_fast choose.")
    has = {"built": hasattr(_igm_fast, "execute"), "cupy": find_spec("cupy") is not None}
    for route, here in has.items():
        if here and asked in (None, route):
            return route
    missing = {"built": f"this build has no CUDA kernels ({_igm_fast.build_info()['cuda_note']})"}
    missing["cupy"] = "CuPy is not installed"
    if asked is not None:
        return f"IGM_FAST_CUDA_ROUTE={asked}, but {missing[asked]}"
    return " and ".join(missing.values())


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a CUDA device: which kernels it can run (8.0 has matrix units for float32)."""
    return torch.cuda.get_device_capability(device)


def openmp_runtimes() -> list[str]:
    """Return the OpenMP runtimes that this process has loaded (Linux); two of them would fight for the cores."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = {Path("/" + line.split("/", 1)[1]) for line in lines if "/" in line}
    return sorted(str(file) for file in files if file.name.startswith(("libgomp", "libiomp5", "libomp.")))


def _cuda_line() -> str:
    info = _igm_fast.build_info()
    said = {
        "built": f"{info['cuda_note']} for {info['cuda_architectures']}",
        "cupy": f"kernels compiled by CuPy's NVRTC when first needed, kept in {nvrtc.cache_folder()}",
    }
    route = cuda_route()
    if route not in said:
        return f"off: {route}; CPU tensors work"
    if torch.version.cuda is None:
        return f"{said[route]}; this torch has no CUDA"
    if not torch.cuda.is_available():
        return f"{said[route]}; no device visible"
    return f"{said[route]}; {', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))}"


def show_config() -> str:
    """Return what was built and what this machine uses, one line each, for bug reports and benchmark records."""
    info = _igm_fast.build_info()
    runtimes = openmp_runtimes()
    shared = {0: "unknown here", 1: runtimes[0] if runtimes else ""}.get(len(runtimes), f"several: {runtimes}")
    openmp = f"{info['openmp']}, runtime {shared}" if info["openmp"] else "not built in: one thread"
    lines = {
        "igm_fast": f"{igm_fast.__version__} in {Path(igm_fast.__file__).parent}",
        "native module": _igm_fast.__file__,
        "build": f"{info['build_type']}, {info['compiler']}, {info['flags']}",
        "cpu": f"{_igm_fast.isa()} kernels, {torch.get_num_threads()} threads (torch.set_num_threads)",
        "openmp": openmp,
        "cuda": _cuda_line(),
        "torch": torch.__version__,
    }
    return "\n".join(f"{name + ':':<15}{value}" for name, value in lines.items())
