"""Train the cells of a comparison: each is one ``python -m igm_fast.train``, kept when finished, never run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from igm_fast import __version__
from igm_fast.comparing.locks import Lock, Locked, acquire
from igm_fast.reports.comparison import Cell
from igm_fast.reports.record import read_json
from igm_fast.training.run_folder import write_text

USAGE_ERROR = 2
LOG_TAIL_LINES = 15


@dataclass
class Job:
    """A cell that is being trained."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    lock: Lock


def train_command(out: Path, cell: Cell, flags: Sequence[str]) -> list[str]:
    """Return the command that trains one cell, goes on with it, or begins again what left no checkpoint."""
    folder = out / cell.folder
    command = [sys.executable, "-m", "igm_fast.train", "--method", cell.method, "--data", cell.data]
    command += ["--modality", cell.modality] if cell.modality else []
    command += ["--seed", str(cell.seed), "--out", str(folder), "--threads", "1"]
    if (folder / "checkpoints" / "last.safetensors").exists():
        command.append("--resume")
    elif folder.exists():
        command.append("--overwrite")
    return [*command, *cell.flags, *flags]


def is_kept(out: Path, cell: Cell, flags: Sequence[str]) -> bool:
    """Whether the cell is finished.

    Raises:
        ValueError: the cell was begun with other flags than are asked for now.
    """
    if not (out / cell.folder).exists():
        return False
    request = read_json(_request_path(out, cell), {})
    asked = [*cell.flags, *flags]
    if request.get("flags") != asked:
        made = " ".join(request["flags"]) or "no flags" if "flags" in request else "unknown flags"
        raise ValueError(
            f"{out / cell.folder} was trained with {made}; now asked for: {' '.join(asked) or 'no flags'}. Runs with "
            "different settings cannot share a table: choose another --out, or remove that folder."
        )
    return has_result(out, cell)


def has_result(out: Path, cell: Cell) -> bool:
    """Whether the cell's run reached its test result."""
    return (out / cell.folder / "result.json").exists()


def has_failed(out: Path, cell: Cell) -> bool:
    """Whether the cell's last run ended by itself without a result; a run that was stopped has not failed."""
    exit_code = read_json(_request_path(out, cell), {}).get("exit_code")
    return not has_result(out, cell) and exit_code is not None and exit_code > 0


def log_path(cell: Cell) -> Path:
    """Return where the cell's run says what it says, relative to the comparison's folder."""
    return cell.folder.with_suffix(".log")


def write_request(out: Path, cell: Cell, flags: Sequence[str], exit_code: int | None = None) -> None:
    """Note with which flags a cell is trained, and how that ended."""
    path = _request_path(out, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    request = {"flags": [*cell.flags, *flags], "igm_fast": __version__, "exit_code": exit_code}
    write_text(path, json.dumps(request))


def run_cells(
    out: Path, waiting: Sequence[Cell], flags: Sequence[str], jobs: int, console: Console, *, split: str = "test"
) -> list[dict[str, str]]:
    """Train cells, ``jobs`` at a time, and return those that got no result here, each with the reason.

    A failed cell does not stop the others, except that a row which rejects its flags is not tried again. A cell that
    another process is training is left to that process.

    Args:
        out: folder of the comparison.
        waiting: cells to train, in this order.
        flags: for every cell, after its own.
        jobs: how many at the same time.
        console: where progress is shown.
        split: part of the data whose accuracy is shown: "test" or "validation".
    """
    queue, running, failed = list(waiting), list[Job](), list[dict[str, str]]()
    rejected: set[tuple[str, str]] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began = time.monotonic()
    progress = Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    # Ctrl-C and a scheduler's SIGTERM are heard between two looks at the cells, where all children are known: an
    # exception in the middle of something could leave one behind, or be lost in a destructor.
    stop = threading.Event()
    heard = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in heard]
    with progress:
        task = progress.add_task("training", total=len(waiting))
        try:
            while queue or running:
                if stop.is_set():
                    raise KeyboardInterrupt
                while queue and len(running) < jobs and not stop.is_set():
                    cell = queue.pop(0)
                    if (cell.data, cell.row) in rejected:
                        tail = "not tried, because this method rejected its flags with another seed"
                        failed.append(_failure(cell, tail))
                        progress.advance(task)
                        continue
                    try:
                        job = _start(out, cell, flags)
                    except Locked as held:
                        failed.append(_failure(cell, str(held)))
                        console.print(f"{cell}: {held}")
                        progress.advance(task)
                        continue
                    if job is None:
                        progress.advance(task)
                    else:
                        running.append(job)
                progress.update(task, description=", ".join(str(job.cell) for job in running[:2]))
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    _end(out, job, flags)
                    progress.advance(task)
                    done = len(waiting) - len(queue) - len(running)
                    left = (time.monotonic() - began) / done * (len(queue) + len(running))
                    said = f"[{done}/{len(waiting)}] {job.cell}: {_outcome(out, job, split)}"
                    console.print(said if console.is_terminal else f"{said}; about {_duration(left)} left")
                    if not has_result(out, job.cell) or job.process.returncode:
                        failed.append(_failure(job.cell, _log_tail(out, job.cell)))
                        console.print(failed[-1]["tail"])
                    if job.process.returncode == USAGE_ERROR:
                        rejected.add((job.cell.data, job.cell.row))
                time.sleep(0.05)
        finally:
            _stop(running)
            for number, handler in zip(heard, before, strict=True):
                signal.signal(number, handler)
    return failed


def _request_path(out: Path, cell: Cell) -> Path:
    return out / cell.folder.with_suffix(".request.json")


def _start(out: Path, cell: Cell, flags: Sequence[str]) -> Job | None:
    """Begin to train a cell; None where another process has finished it since this one looked."""
    (out / cell.folder).parent.mkdir(parents=True, exist_ok=True)
    lock = acquire(out / cell.folder.with_suffix(".lock"))
    if has_result(out, cell):
        lock.release()
        return None
    command = train_command(out, cell, flags)
    write_request(out, cell, flags)
    log = (out / log_path(cell)).open("ab")
    # A session of its own: Ctrl-C reaches only this process, which then ends its children in an orderly way.
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    lock.share(process.pid)
    return Job(cell, process, log, lock)


def _end(out: Path, job: Job, flags: Sequence[str]) -> None:
    job.log.close()
    write_request(out, job.cell, flags, job.process.returncode)
    job.lock.release()


def _stop(running: Sequence[Job]) -> None:
    for job in running:
        os.killpg(job.process.pid, signal.SIGTERM)
    for job in running:
        try:
            job.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()
        job.log.close()
        job.lock.release()


def _outcome(out: Path, job: Job, split: str) -> str:
    result = read_json(out / job.cell.folder / "result.json", None)
    if job.process.returncode or result is None:
        return f"failed (exit code {job.process.returncode})"
    branch = "fused" if "fused" in result[split] else next(iter(result[split]))
    return f"{split} accuracy {result[split][branch]['accuracy']:.3f} in {_duration(result['seconds'])}"


def _failure(cell: Cell, tail: str) -> dict[str, str]:
    return {"name": str(cell), "log": log_path(cell).as_posix(), "tail": tail}


def _log_tail(out: Path, cell: Cell) -> str:
    lines = (out / log_path(cell)).read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "(its log is empty)"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
