"""The CUDA route of builds without nvcc: NVRTC compiles a kernel when it is first needed, CuPy loads and starts it.

The launches are those of every build; only who executes them differs. The sources are the same, too, and so are the
compiler's defaults (CuPy's own ``RawModule(code=…)`` would add ``-ftz=true``, which flushes subnormal numbers): on one
version of CUDA both routes give the same bits.

A compiled kernel is kept in ``$IGM_FAST_KERNEL_CACHE``, by default ``$XDG_CACHE_HOME/igm_fast/kernels`` or
``~/.cache/igm_fast/kernels``, under a hash of its name, the sources, the architecture and the version of NVRTC.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

# -default-device: constexpr functions and lambdas without annotations, which nvcc takes for what their callers are.
_OPTIONS = ("-std=c++17", "-default-device")
# What a kernel may use without asking for more (csrc/common/launch.hpp: DeviceLimits).
_SHARED_BYTES = 48 * 1024
_LISTED = re.compile(r"^\s*IGM_INSTANCE\(([^;]*?)\)\s*$", re.MULTILINE)
_HELP = "Install a CuPy for a CUDA toolkit that knows this device, or rebuild igm_fast with nvcc on PATH."


def sources() -> Path:
    """Return the folder of the kernels' sources: inside an installed package, or of the checkout that it runs from."""
    package = Path(__file__).parents[1]
    for folder in (package / "kernels", package.parent / "csrc"):
        if (folder / "common" / "device.cuh").exists():
            return folder
    raise RuntimeError(
        f"igm_fast in {package}: its CUDA sources are missing, expected them in {package / 'kernels'}. "
        "Reinstall the package."
    )


@lru_cache(maxsize=1)
def instances() -> dict[str, Path]:
    """Return the kernels by name, such as ``igm::perturb_kernel<false, float>``, and the files that list them."""
    files = sorted(sources().rglob("*.cu"))
    return {
        f"igm::{' '.join(name.split())}": file
        for file in files
        for name in _LISTED.findall(file.read_text(encoding="utf-8"))
    }


def compile_kernel(kernel: str, architecture: str, nvrtc: Any) -> tuple[str, bytes]:
    """Compile one kernel; return its name in the binary, and the binary.

    Args:
        kernel: as in :func:`instances`.
        architecture: such as ``sm_90``.
        nvrtc: ``cupy.cuda.nvrtc``, or a module with its functions.

    Raises:
        RuntimeError: there is no such kernel, or NVRTC does not compile it.
    """
    if kernel not in instances():
        raise RuntimeError(
            f"{kernel} is in no list of kernels in {sources()}, expected one of {len(instances())}. "
            "This is a defect of igm_fast: please report it."
        )
    # NVRTC 12 leaves the thread that calls it with another locale, after which Python's open() would expect ASCII: so
    # that thread ends here.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_compile, kernel, architecture, nvrtc).result()


def _compile(kernel: str, architecture: str, nvrtc: Any) -> tuple[str, bytes]:
    file = instances()[kernel]
    program = nvrtc.createProgram(file.read_text(encoding="utf-8"), file.name, (), ())
    try:
        nvrtc.addNameExpression(program, kernel)
        nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", f"-I{sources()}", *_OPTIONS))
        return nvrtc.getLoweredName(program, kernel), nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        major, minor = nvrtc.getVersion()
        raise RuntimeError(
            f"{kernel}: NVRTC {major}.{minor} did not compile it for {architecture} ({error}). {_HELP}\n"
            f"{nvrtc.getProgramLog(program)}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


def execute(launches: Sequence[Any], device: int, stream: int) -> None:
    """Start kernels in order on a stream of a device, as ``_igm_fast.execute`` does.

    Raises:
        RuntimeError: a kernel cannot be compiled, loaded or started.
    """
    import cupy  # a heavy import that other routes do not need

    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    with cupy.cuda.Device(device), _stream(stream, device):
        for launch in launches:
            params = np.frombuffer(launch.params, dtype=f"V{len(launch.params)}")  # one structure, by value
            try:
                function = _function(launch.kernel, architecture)
                if launch.shared_bytes > _SHARED_BYTES:  # more has to be asked for
                    function.max_dynamic_shared_size_bytes = launch.shared_bytes
                function((launch.grid,), (launch.block,), (params,), shared_mem=launch.shared_bytes)
            except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
                raise RuntimeError(
                    f"{launch.kernel}: launch with grid {launch.grid}, block {launch.block}, {launch.shared_bytes} "
                    f"bytes of shared memory on device {device} ({architecture}) through CuPy {cupy.__version__} "
                    f"failed ({error}). {_HELP}"
                ) from error


@dataclass(frozen=True)
class _Stream:
    """A stream by the CUDA stream protocol."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _stream(pointer: int, device: int) -> Any:
    """Return a stream of torch's as CuPy takes it: from version 14 on by the protocol, before by a class of its own."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Stream(pointer))
    return cupy.cuda.ExternalStream(pointer, device)


@cache
def _function(kernel: str, architecture: str) -> Any:
    """Return the kernel as a ``cupy.RawKernel``, which loads itself once on every device of the architecture."""
    import cupy

    folder = cache_folder()
    stem = _digest(kernel, architecture, cupy.cuda.nvrtc.getVersion())
    binary, name = folder / f"{stem}.cubin", folder / f"{stem}.name"
    if not binary.exists():  # written last: with it the name is there, too
        lowered, code = compile_kernel(kernel, architecture, cupy.cuda.nvrtc)
        _write(name, lowered.encode())
        _write(binary, code)
    return cupy.RawModule(path=str(binary)).get_function(name.read_text(encoding="utf-8"))


def cache_folder() -> Path:
    """Return where compiled kernels are kept."""
    given = os.environ.get("IGM_FAST_KERNEL_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igm_fast" / "kernels"


def _digest(kernel: str, architecture: str, version: tuple[int, int]) -> str:
    said = repr((kernel, architecture, version, _OPTIONS, _sources_digest()))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(sources().rglob("*")):
        if file.suffix in (".cu", ".cuh", ".hpp"):
            digest.update(file.relative_to(sources()).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file that other processes see in full or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as error:
        raise RuntimeError(
            f"a compiled CUDA kernel cannot be written to {path} ({error}), expected a writable folder. "
            "Set IGM_FAST_KERNEL_CACHE to one."
        ) from error
