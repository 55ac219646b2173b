"""Loads the compiled module ``_igm_fast``; nothing else imports it. Says what was built and which routes are active."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch  # before _igm_fast, which _load() imports: both then share the OpenMP runtime that torch brings along

import igm_fast

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


def require_cuda(op: str) -> ModuleType:
    """Return the compiled module if it holds CUDA kernels.

    Raises:
        RuntimeError: it was built without them.
    """
    if not hasattr(_igm_fast, "sam_perturb_cuda"):
        raise RuntimeError(
            f"{op}: CUDA tensors given, expected CPU tensors: {_igm_fast.build_info()['cuda_note']}. "
            f"Rebuild with nvcc on PATH and IGM_FAST_CUDA=ON, or move the tensors with .cpu()."
        )
    return _igm_fast


def openmp_runtimes() -> list[str]:
    """Return the OpenMP runtimes that this process has loaded (Linux); two of them would fight for the cores."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = {Path("/" + line.split("/", 1)[1]) for line in lines if "/" in line}
    return sorted(str(file) for file in files if file.name.startswith(("libgomp", "libiomp5", "libomp.")))


def _cuda_route() -> str:
    info = _igm_fast.build_info()
    if not info["cuda_architectures"]:
        return f"off: {info['cuda_note']}; CPU tensors work"
    built = f"{info['cuda_note']} for {info['cuda_architectures']}"
    if torch.version.cuda is None:
        return f"{built}; this torch has no CUDA"
    if not torch.cuda.is_available():
        return f"{built}; no device visible"
    return f"{built}; {', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))}"


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
        "cuda": _cuda_route(),
        "torch": torch.__version__,
    }
    return "\n".join(f"{name + ':':<15}{value}" for name, value in lines.items())
