"""NVRTC itself, found where a wheel or a toolkit put it, under the names that CuPy gives its functions."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path


class NVRTCError(RuntimeError):
    """As ``cupy.cuda.nvrtc.NVRTCError``."""


def library_file() -> str | None:
    """Return the library of a wheel (nvidia-cuda-nvrtc-cu12 or nvidia-cuda-nvrtc), of the system, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in folder.glob("*/lib/libnvrtc.so.*")]
    return str(files[0]) if files else find_library("nvrtc")


class Nvrtc:
    """The part of ``cupy.cuda.nvrtc`` that igm_fast uses; needs no GPU and no driver."""

    NVRTCError = NVRTCError

    def __init__(self, file: str) -> None:
        for builtins in Path(file).parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # which NVRTC looks for by name only
        self._library = ctypes.CDLL(file)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def getVersion(self) -> tuple[int, int]:  # noqa: N802 - these are CuPy's names
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def createProgram(self, source: str, name: str, headers: Sequence[bytes], names: Sequence[bytes]) -> int:  # noqa: N802
        assert not headers
        assert not names
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        assert program.value is not None
        return program.value

    def destroyProgram(self, program: int) -> None:  # noqa: N802
        self._call("DestroyProgram", ctypes.byref(ctypes.c_void_p(program)))

    def addNameExpression(self, program: int, name: str) -> None:  # noqa: N802
        self._call("AddNameExpression", ctypes.c_void_p(program), name.encode())

    def compileProgram(self, program: int, options: Sequence[str]) -> None:  # noqa: N802
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        self._call("CompileProgram", ctypes.c_void_p(program), len(options), array)

    def getLoweredName(self, program: int, name: str) -> str:  # noqa: N802
        lowered = ctypes.c_char_p()
        self._call("GetLoweredName", ctypes.c_void_p(program), name.encode(), ctypes.byref(lowered))
        assert lowered.value is not None
        return lowered.value.decode()

    def getCUBIN(self, program: int) -> bytes:  # noqa: N802
        return self._bytes("CUBIN", program)

    def getPTX(self, program: int) -> str:  # noqa: N802
        return self._bytes("PTX", program)[:-1].decode()

    def getProgramLog(self, program: int) -> str:  # noqa: N802
        return self._bytes("ProgramLog", program)[:-1].decode()

    def _bytes(self, what: str, program: int) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", ctypes.c_void_p(program), ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", ctypes.c_void_p(program), buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{function}")(*arguments)
        if status != 0:
            raise NVRTCError(self._library.nvrtcGetErrorString(status).decode())
