"""Decoded features on disk: one memory-mapped ``.npy`` for each content and reader, shared by any number of processes.

``features/ab/KEY.npy`` holds a tensor; KEY is the sha256 of the source, in which the content's sha256 stands for each
file, and of the reader's parameters. A renamed or copied file finds its features again; a changed one does not.
``contents/ab/KEY`` holds the sha256 of a file's content under its path, size and time of change, so that a warm look-up
reads no source file. Everything is written beside its place and renamed: a reader sees all of an entry or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

CHECKSUM_BYTES = 4


class FeatureCache:
    """Keeps what readers decoded.

    Args:
        folder: is made if missing; may be deleted at any time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def get(self, root: Path, source: Any, parameters: str, decode: Callable[[], Tensor]) -> Tensor:
        """Return ``decode()``, or what it returned for this content before.

        The strings of a source are files where a file of that name lies below ``root``, and plain values elsewhere. A
        source without a file (text) is no work to read and is not kept.

        Args:
            root: the folder that files are relative to.
            source: a path, text, or mappings and sequences of these and of numbers.
            parameters: of the reader.
            decode: makes the tensor.

        Returns:
            The tensor, mapped from the file where it was there: writing to it changes a private copy.
        """
        contents: list[str] = []
        named = self._named(os.path.abspath(root), source, contents)  # noqa: PTH100 - as in the rest of this class
        if not contents:
            return decode()
        path = self._path("features", _sha256(json.dumps([named, parameters], sort_keys=True))) + ".npy"
        found = _mapped(path)
        if found is not None:
            return found
        decoded = decode()
        self._write(path, lambda file: _save(file, decoded))
        return decoded

    def _named(self, root: str, source: Any, contents: list[str]) -> Any:
        """Return a source with its files' contents in place of their names, and collect these contents."""
        if isinstance(source, (str, PurePath)):
            digest = self._content(os.path.join(root, source))  # noqa: PTH118
            if digest is None:
                return str(source)
            contents.append(digest)
            return {"sha256": digest}
        if isinstance(source, Mapping):
            return {str(key): self._named(root, value, contents) for key, value in source.items()}
        if isinstance(source, Sequence):
            return [self._named(root, value, contents) for value in source]
        return source

    def _content(self, path: str) -> str | None:
        """Return the sha256 of a file, read only if path, size or time of change are new; None if it is no file."""
        try:
            state = os.stat(path)  # noqa: PTH116 - a Path costs more than the whole look-up
        except (OSError, ValueError):  # text, perhaps longer than a file name may be
            return None
        if not stat.S_ISREG(state.st_mode):
            return None
        known = self._path("contents", _sha256(f"{path}\n{state.st_size}\n{state.st_mtime_ns}"))
        try:
            with open(known, encoding="ascii") as file:  # noqa: PTH123
                digest = file.read()
        except (FileNotFoundError, UnicodeDecodeError):
            digest = ""
        if len(digest) != 64:
            digest = _file_sha256(path)
            self._write(known, lambda file: file.write(digest.encode("ascii")))
        return digest

    def _path(self, kind: str, name: str) -> str:
        return f"{self.folder}/{kind}/{name[:2]}/{name}"

    @staticmethod
    def _write(path: str, write: Callable[[BinaryIO], Any]) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _save(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor as ``.npy``, and after it the checksum that tells a whole entry from a damaged one."""
    array = tensor.contiguous().numpy()
    np.lib.format.write_array(file, array, allow_pickle=False)
    file.write(_checksum(array))


def _mapped(path: str) -> Tensor | None:
    """Map a tensor; None if there is none, or a damaged one."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        with open(path, "rb") as file:  # noqa: PTH123
            file.seek(-CHECKSUM_BYTES, os.SEEK_END)
            stored = file.read()
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(array) if stored == _checksum(array) else None


def _checksum(array: np.ndarray[Any, Any]) -> bytes:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data).to_bytes(CHECKSUM_BYTES, "little")
