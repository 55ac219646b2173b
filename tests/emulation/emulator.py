"""Builds the emulator, all CUDA sources of the package compiled for the CPU, and runs lists of launches with it.

Objects are kept in ``build/emulation`` and made anew when a file that they were made from has changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
STORE = ROOT / "build" / "emulation"
Array = np.ndarray[Any, Any]
WEEK = 7 * 24 * 3600

# Ours first: its common/*.cuh stand in for those of csrc. No fused multiply-add, as the baseline of x86-64.
FLAGS = (
    f"-std=c++17 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Werror "
    f"-Wno-unknown-pragmas -I{HERE} -I{ROOT / 'csrc'}"
).split()
PLAIN = ["-O2"]
# -O1 compiles in half the time. An address is no mistake until it is used, which AddressSanitizer sees.
SANITIZED = [
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,pointer-overflow,vptr",
    "-fno-sanitize-recover=all",
]


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _compiler_run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # A sanitizer that this process runs with is none of the compiler's business, and slows it down five times.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler() or "", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@cache
def sanitizer_runtime() -> str | None:
    """What a process with a sanitized library has to be started with (LD_PRELOAD), or None.

    Beside AddressSanitizer that is the C++ runtime, in which it looks for the functions that throw when it starts.
    """
    if compiler() is None:
        return None
    files = [
        Path(_compiler_run(f"-print-file-name={name}").stdout.strip()) for name in ("libasan.so", "libstdc++.so.6")
    ]
    return ":".join(map(str, files)) if all(file.is_absolute() for file in files) else None


def cuda_sources() -> list[Path]:
    """The .cu files with kernels; execute.cu starts them on a GPU, which is what the emulator replaces."""
    return sorted(path for path in ROOT.glob("csrc/**/*.cu") if path.name != "execute.cu")


def listed_cuda_sources() -> list[Path]:
    """The same as CMakeLists.txt has them."""
    found = re.search(r"set\(CUDA_SOURCES ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert found is not None
    return sorted(ROOT / name for name in found.group(1).split() if not name.endswith("/execute.cu"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]


@cache
def _flags(sanitized: bool) -> list[str]:
    flags = FLAGS + (SANITIZED if sanitized else PLAIN)
    # An accumulator that nobody set to zero must not be zero by chance.
    pattern = "-ftrivial-auto-var-init=pattern"
    known = _compiler_run(pattern, "-E", "-x", "c++", os.devnull).returncode == 0
    return [*flags, pattern] if known else flags


@cache
def _key(sanitized: bool) -> str:
    replaced = sorted(path.name for path in (HERE / "common").iterdir())
    return _digest(json.dumps([_compiler_run("--version").stdout, _flags(sanitized), replaced]).encode())


def _current(made_from: dict[str, str]) -> bool:
    return all(Path(name).exists() and _digest(Path(name).read_bytes()) == digest for name, digest in made_from.items())


def _compile(source: Path, sanitized: bool) -> tuple[Path, str]:
    """The object of a source, and the compiler's complaint if there is one."""
    name = "-".join(source.relative_to(ROOT).with_suffix("").parts)
    stem = STORE / f"{name}-{_key(sanitized)}"
    record, depends, made = (stem.with_suffix(suffix) for suffix in (".json", ".d", ".o"))
    if record.exists() and made.exists() and _current(json.loads(record.read_text())):
        return made, ""
    started = time.time()
    record.unlink(missing_ok=True)
    done = _compiler_run(*_flags(sanitized), "-MMD", "-MF", depends, "-c", "-x", "c++", source, "-o", made)
    if done.returncode != 0:
        return made, done.stderr
    files = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    if all(Path(file).stat().st_mtime < started for file in files):  # else nobody knows what the compiler has read
        record.write_text(json.dumps({file: _digest(Path(file).read_bytes()) for file in files}))
    return made, ""


def addresses(pointers: Iterable[int]) -> bytes:
    return b"".join(bytes(ctypes.c_uint64(pointer)) for pointer in pointers)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Tests side by side build once."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(sanitized: bool) -> tuple[Path, dict[str, str]]:
    """Return the library and, by source, what the compiler said of those that are not in it.

    A library with AddressSanitizer can only be loaded by a process that has started with its runtime.
    """
    sources = [HERE / "emulate.cpp", *cuda_sources(), *sorted(HERE.glob("kernels/*.cu"))]
    with _alone():
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: _compile(source, sanitized), sources))
        failures = {
            str(source.relative_to(ROOT)): text for source, (_, text) in zip(sources, objects, strict=True) if text
        }
        if "tests/emulation/emulate.cpp" in failures:
            raise RuntimeError(failures["tests/emulation/emulate.cpp"])
        usable = [made for made, text in objects if not text]
        library = STORE / f"emulation-{_digest(b''.join(made.read_bytes() for made in usable))}.so"
        if not library.exists():
            unfinished = library.with_suffix(".tmp")
            done = _compiler_run(*_flags(sanitized), "-shared", *usable, "-o", unfinished)
            assert done.returncode == 0, done.stderr
            unfinished.rename(library)
        library.touch()
        for old in STORE.iterdir():
            if old.stat().st_mtime < time.time() - WEEK and old.suffix == ".so":
                old.unlink(missing_ok=True)
    return library, failures


class Emulator:
    """Runs launches on CPU memory.

    Attributes:
        seed: chooses the order of blocks and of the threads between barriers.
        capability: of the device that is emulated; kernels that need a newer one are refused.
        sanitized: an access beyond an array ends the process.
        failures: sources that are missing, and why.
    """

    def __init__(self, sanitized: bool) -> None:
        self.sanitized = sanitized
        library, self.failures = build(sanitized)
        self._library = ctypes.CDLL(str(library))
        self._library.igm_emulation_kernels.restype = ctypes.c_char_p
        self._library.igm_emulation_run.restype = ctypes.c_char_p
        self._library.igm_emulation_run.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_char_p,
            ctypes.c_int64,
            ctypes.c_int,
            ctypes.c_uint64,
        ]
        self.reset()

    def reset(self) -> None:
        self.seed = 0
        self.capability = (8, 0)

    def kernels(self) -> list[str]:
        return self._library.igm_emulation_kernels().decode().splitlines()

    def run(self, kernel: str, grid: int, block: int, params: bytes, shared_bytes: int = 0) -> None:
        """Run one kernel; params are the bytes of its parameter struct, with addresses of CPU memory.

        Raises:
            RuntimeError: the launch is impossible, or its threads wait for one another in vain.
        """
        major, minor = self.capability
        problem = self._library.igm_emulation_run(
            kernel.encode(), grid, block, shared_bytes, params, len(params), 10 * major + minor, self.seed
        )
        if problem is not None:
            broken = "\n".join(f"{source} did not compile:\n{text}" for source, text in self.failures.items())
            raise RuntimeError(f"{kernel}, seed {self.seed}: {problem.decode()}\n{broken}".strip())

    def run_arrays(
        self, kernel: str, grid: int, block: int, arrays: Sequence[Array], scalars: bytes = b"", shared_bytes: int = 0
    ) -> None:
        """Run a kernel whose parameters are the addresses of arrays, which it may write, and then scalars."""
        self.run(kernel, grid, block, addresses(array.ctypes.data for array in arrays) + scalars, shared_bytes)

    def launch(self, op: str, launches: Sequence[Any], device: Any) -> None:
        """Take the place of ``igm_fast.ops.native.launch``."""
        assert device.type == "cpu", f"{op}: tensors on {device}, expected on the cpu"
        for launch in launches:
            self.run(launch.kernel, launch.grid, launch.block, launch.params, launch.shared_bytes)
