"""A lock per cell, so that several processes, on several machines, can share the folder of a comparison."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


class Locked(RuntimeError):  # noqa: N818 - what is the case, not what went wrong
    """Another process holds the lock; the message says which and what to do if it is gone."""


class Lock:
    """A lock file that this process holds; make one with :func:`acquire`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def share(self, pid: int) -> None:
        """Let the lock count as held while process ``pid`` of this machine lives, even when this one is killed."""
        with self.path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _write(file, [os.getpid(), pid])

    def release(self) -> None:
        """Give the lock back."""
        self.path.unlink(missing_ok=True)


def acquire(path: Path) -> Lock:
    """Take a lock, or take over one whose processes ran on this machine and are gone.

    The file is made with ``O_EXCL``, so only one of several processes gets it, on a network file system too.

    Raises:
        Locked: another process holds it, or one of another machine, of which nobody can say here whether it lives.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _take_over(path):
                return Lock(path)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _write(file, [os.getpid()])
        return Lock(path)


def _take_over(path: Path) -> bool:
    """Take a stale lock; False where it was given back in the meantime."""
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        return False
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two processes that find the same stale lock, the second sees the first
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            return False
        holder = _holder(file.read())
        if holder is None:
            raise Locked(f"{path} is being written. If this stays so, its process was killed: remove that file.")
        if holder["host"] != socket.gethostname() or any(map(_is_alive, holder["pids"])):
            pids = " and ".join(map(str, holder["pids"]))
            raise Locked(
                f"being trained by process {pids} on {holder['host']} since {holder['since']}. If that is no longer "
                f"so, remove {path}."
            )
        file.seek(0)
        _write(file, [os.getpid()])
    return True


def _write(file: Any, pids: list[int]) -> None:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    file.write(json.dumps({"host": socket.gethostname(), "pids": pids, "since": since}))
    file.truncate()


def _holder(content: str) -> dict[str, Any] | None:
    try:
        holder: dict[str, Any] = json.loads(content)
    except json.JSONDecodeError:
        return None
    return holder


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and is another user's
        return True
    # In a container without an init process a killed orphan stays in the process table as a zombie.
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")
