"""Arrays from ``.npy`` and ``.npz`` files: never a pickle, and no memory for a size that the file does not hold."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from igm_fast.data.problems import BadFile

_WAY_OUT = "Save the array again with numpy.save, as plain numbers"


def open_array(path: Path) -> NDArray[Any]:
    """Return the numbers of a ``.npy`` file as a read-only memory map.

    Raises:
        BadFile: missing, empty, truncated, or no plain numbers (pickled objects, text, records).
    """
    _expect_content(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a broken header ends in whatever its parser runs into
        raise _unreadable(path, error) from error
    return _numbers(path, array)


def archive_keys(path: Path) -> list[str]:
    """Return the names of the arrays in a ``.npz`` file, in its order.

    Raises:
        BadFile: missing, empty or no archive.
    """
    _expect_content(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:
        raise _unreadable(path, error) from error


def read_archive(path: Path, key: str) -> NDArray[Any]:
    """Return one array of a ``.npz`` file.

    Raises:
        BadFile: as for :func:`open_array`, no such key, or a header that claims another size than the archive states.
    """
    if key not in (known := archive_keys(path)):
        raise BadFile(path, f"has no array {key!r}, only {', '.join(known)}", "Correct the name after '#'")
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open(f"{key}.npy") as member:
                _check_size(member, archive.getinfo(f"{key}.npy").file_size)
            with archive.open(f"{key}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
    except Exception as error:
        raise _unreadable(path, error) from error
    return _numbers(path, array)


def _expect_content(path: Path) -> None:
    if not path.is_file():
        raise BadFile(path, "no such file, expected an array", "Copy it there, or take its line out of the list")
    if path.stat().st_size == 0:
        raise BadFile(path, "is empty, expected an array", _WAY_OUT)


def _check_size(member: IO[bytes], size: int) -> None:
    """Compare the size in the header with the member's: ``read_array`` would ask for the memory first."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header claims shape {shape} of {dtype}, but it holds {size} bytes")


def _numbers(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "buif":
        raise BadFile(path, f"holds {array.dtype}, expected real numbers", _WAY_OUT)
    return array


def _unreadable(path: Path, error: Exception) -> BadFile:
    return BadFile(path, f"is no readable array file ({error or type(error).__name__})", _WAY_OUT)
