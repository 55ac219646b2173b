"""A GPU behind the same functions as the emulator, to see that both do the same. Compiles its kernels with nvcc."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from emulator import HERE, ROOT, Array, addresses


class Device:
    """Runs the kernels of kernels/matrix_unit.cu; `seed` is there for the likeness only."""

    def __init__(self, nvcc: str, folder: Path) -> None:
        major, minor = torch.cuda.get_device_capability()
        library = folder / "on_device.so"
        flags = ["-std=c++17", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler=-fPIC", f"-I{ROOT / 'csrc'}"]
        sources = [HERE / "on_device.cu", ROOT / "csrc/common/execute.cu"]
        subprocess.run([nvcc, *flags, *sources, "-o", library], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.igm_device_run.restype = ctypes.c_char_p
        self.seed = 0

    def run_arrays(
        self, kernel: str, grid: int, block: int, arrays: Sequence[Array], scalars: bytes = b"", shared_bytes: int = 0
    ) -> None:
        """Run a kernel whose parameters are the addresses of arrays, which it may write, and then scalars."""
        copies = [torch.from_numpy(array.reshape(-1).view("u1")).cuda() for array in arrays]
        params = addresses(copy.data_ptr() for copy in copies) + scalars
        number = ctypes.c_int64
        problem = self._library.igm_device_run(
            kernel.encode(), number(grid), number(block), number(shared_bytes), params, number(len(params))
        )
        assert problem is None, problem
        torch.cuda.synchronize()
        for array, copy in zip(arrays, copies, strict=True):
            array.reshape(-1).view("u1")[:] = copy.cpu().numpy()
