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


def openmp_runtimes() -> list[str]:
    """Return the OpenMP runtimes that this process has loaded; two of them would fight for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {
        line.split(maxsplit=5)[5].strip()
        for line in maps.read_text().splitlines()
        if line.count(" ") > 4 and "/" in line
    }
    return sorted(file for file in files if Path(file).name.startswith(("libgomp", "libiomp5", "libomp")))
