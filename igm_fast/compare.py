"""Command line: train several methods with several seeds and say which differences are more than chance.

Every cell (method, data set, seed) is one ``python -m igm_fast.train`` in a process of its own, with its own run
folder below ``OUT/cells``; so a cell can be looked at, resumed or handed to a scheduler by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from igm_fast import __version__
from igm_fast.names import nearest
from igm_fast.reports import comparison as tables
from igm_fast.reports.comparison import Cell
from igm_fast.reports.comparison_html import write_comparison_report
from igm_fast.reports.record import read_json

DESCRIPTION = """\
Train several methods on the same data with several seeds, and compare them.

  python -m igm_fast.compare                              six methods, five seeds, the default data: a table
  python -m igm_fast.compare --methods late igm --seeds 10 --data watch emoji
  python -m igm_fast.compare --methods igm joint -- --epochs 6      what follows -- goes to every training run

OUT then holds report.html (open it), table.md, table.csv, comparison.json, comparison.png, and one run folder per
cell under cells/. Stop it with Ctrl-C and give the same command again: finished runs are kept, half-done ones go on.
More seeds later are added the same way. Exit code: 0 all runs finished, 1 some failed, 2 wrong usage, 130 stopped.
"""

DEFAULT_METHODS = ("unimodal", "late", "joint", "mla", "igm-no-sam", "igm")
SET_HERE = ("--method", "--modality", "--data", "--seed", "--out", "--threads", "--resume", "--overwrite")
USAGE_ERROR = 2
LOG_TAIL_LINES = 15


@dataclass
class Job:
    """A cell that is being trained."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: IO[bytes]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    arguments, flags = _parse(sys.argv[1:] if argv is None else argv)
    out: Path = arguments.out
    console = Console(soft_wrap=True, highlight=False, markup=False)
    cells = plan(arguments.methods, arguments.data, arguments.seeds)
    try:
        waiting = [cell for cell in cells if not _is_kept(out, cell, flags)]
        tables.finished_runs(out, cells)  # results that cannot share a table are refused now, not after hours of work
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return USAGE_ERROR
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already and kept.")
    try:
        failed = run_cells(out, waiting, flags, arguments.jobs, console)
    except KeyboardInterrupt:
        print("compare: stopped. Finished runs are kept; give the same command again to go on.", file=sys.stderr)
        return 130
    try:
        runs = tables.finished_runs(out, cells)
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    comparison = tables.compare_runs(runs, arguments.reference) | _provenance(flags) | {"failed": failed}
    table = tables.markdown(comparison)
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.json").write_text(json.dumps(comparison, indent=1), encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "table.csv").write_text(tables.tidy_csv(runs), encoding="utf-8")
    write_comparison_report(out)
    console.print(_short_tables(comparison) if console.is_terminal else f"\n{table}")
    console.print(f"Report: {out / 'report.html'}")
    for failure in failed:
        print(f"compare: {failure['name']} has no result; log: {out / failure['log']}", file=sys.stderr)
    return 1 if failed else 0


def plan(methods: Sequence[str], data: Sequence[str], seeds: int) -> list[Cell]:
    """Return the cells in the order in which they run: seed by seed, so that an early look compares like with like."""
    cells = []
    for name in data:
        rows: list[tuple[str, str | None]] = []
        for method in methods:
            rows += [(method, modality) for modality in (modality_names(name) if method == "unimodal" else [None])]
        cells += [Cell(name, method, modality, seed) for seed in range(seeds) for method, modality in rows]
    return cells


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
    return [*command, *flags]


def run_cells(
    out: Path, waiting: Sequence[Cell], flags: Sequence[str], jobs: int, console: Console
) -> list[dict[str, str]]:
    """Train cells, ``jobs`` at a time, and return those that failed with the end of their log.

    A failed cell does not stop the others, except that a method which rejects the flags is not asked again.
    """
    queue, running, failed = list(waiting), list[Job](), list[dict[str, str]]()
    rejected: set[tuple[str, str]] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began = time.monotonic()
    progress = Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    # A scheduler's SIGTERM ends the comparison as Ctrl-C does, so that no child is left behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with progress:
        task = progress.add_task("training", total=len(waiting))
        try:
            while queue or running:
                while queue and len(running) < jobs:
                    cell = queue.pop(0)
                    if (cell.data, cell.row) in rejected:
                        tail = "not tried, because this method rejected its flags with another seed"
                        failed.append({"name": str(cell), "log": _log_path(cell).as_posix(), "tail": tail})
                        progress.advance(task)
                        continue
                    running.append(_start(out, cell, flags))
                progress.update(task, description=", ".join(str(job.cell) for job in running[:2]))
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    job.log.close()
                    progress.advance(task)
                    done = len(waiting) - len(queue) - len(running)
                    left = (time.monotonic() - began) / done * (len(queue) + len(running))
                    said = f"[{done}/{len(waiting)}] {job.cell}: {_outcome(out, job)}"
                    console.print(said if console.is_terminal else f"{said}; about {_duration(left)} left")
                    if not _has_result(out, job.cell) or job.process.returncode:
                        failed.append(_failure(out, job))
                        console.print(failed[-1]["tail"])
                    if job.process.returncode == USAGE_ERROR:
                        rejected.add((job.cell.data, job.cell.row))
                time.sleep(0.05)
        finally:
            _stop(running)
            signal.signal(signal.SIGTERM, before)
    return failed


def modality_names(data: str) -> list[str]:
    """Return the modalities of a data set."""
    from igm_fast.data import load_dataset  # loads torch and the data: only where a unimodal row asks for it

    return [modality.name for modality in load_dataset(data).modalities]


def known_methods() -> list[str]:
    """Return the names of all methods."""
    from igm_fast.methods import METHODS

    return list(METHODS)


def known_data() -> list[str]:
    """Return the names of all data sets."""
    from igm_fast.data import dataset_names

    return list(dataset_names())


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    split = list(argv).index("--") if "--" in argv else len(argv)
    own, flags = list(argv[:split]), list(argv[split + 1 :])
    parser = argparse.ArgumentParser(
        prog="python -m igm_fast.compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- flags for every training run]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT_METHODS),
        metavar="NAME",
        help="methods to compare, or 'all'; 'unimodal' makes one row per modality (default: %(default)s)",
    )
    parser.add_argument("--data", nargs="+", default=["watch"], metavar="NAME", help="data sets (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 … N−1 (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/table"), metavar="FOLDER", help="where results go (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=_usable_processors(),
        metavar="N",
        help="runs at the same time, one thread each (default here: %(default)s, the processors of this machine)",
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="method that the others are tested against (default: igm where it is compared, else the last method)",
    )
    arguments = parser.parse_args(own)
    _check(arguments, flags, parser.error)
    return arguments, flags


def _check(arguments: argparse.Namespace, flags: Sequence[str], error: Any) -> None:
    methods, data = known_methods(), known_data()
    if arguments.methods == ["all"]:
        arguments.methods = methods
    arguments.methods, arguments.data = list(dict.fromkeys(arguments.methods)), list(dict.fromkeys(arguments.data))
    for given, known, kind in ((arguments.methods, methods, "method"), (arguments.data, data, "data set")):
        for name in given:
            if name not in known:
                error(nearest(name, known, kind))
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            error(f"--{name} must be at least 1; given {getattr(arguments, name)}")
    if arguments.reference is None:
        arguments.reference = "igm" if "igm" in arguments.methods else arguments.methods[-1]
    if arguments.reference == "unimodal":
        error("--reference unimodal: that makes one row per modality; name a method with a single row")
    if arguments.reference not in arguments.methods:
        error(f"--reference: {nearest(arguments.reference, arguments.methods, 'compared method')}")
    for flag in flags:
        if flag.split("=")[0] in SET_HERE:
            error(f"{flag} after -- is set by compare itself for every run; use compare's own options before --")


def _is_kept(out: Path, cell: Cell, flags: Sequence[str]) -> bool:
    """Whether the cell is finished.

    Raises:
        ValueError: the cell was begun with other flags than are asked for now.
    """
    if not (out / cell.folder).exists():
        return False
    request = read_json(_request_path(out, cell), {})
    if request.get("flags") != list(flags):
        made = " ".join(request["flags"]) or "no flags" if "flags" in request else "unknown flags"
        raise ValueError(
            f"{out / cell.folder} was trained with {made}; now asked for: {' '.join(flags) or 'no flags'}. Runs with "
            "different settings cannot share a table: choose another --out, or remove that folder."
        )
    return _has_result(out, cell)


def _has_result(out: Path, cell: Cell) -> bool:
    return (out / cell.folder / "result.json").exists()


def _request_path(out: Path, cell: Cell) -> Path:
    return out / cell.folder.with_suffix(".request.json")


def _log_path(cell: Cell) -> Path:
    return cell.folder.with_suffix(".log")


def _start(out: Path, cell: Cell, flags: Sequence[str]) -> Job:
    command = train_command(out, cell, flags)
    (out / cell.folder).parent.mkdir(parents=True, exist_ok=True)
    request = {"flags": list(flags), "igm_fast": __version__}
    _request_path(out, cell).write_text(json.dumps(request), encoding="utf-8")
    log = (out / _log_path(cell)).open("ab")
    # A session of its own: Ctrl-C reaches only this process, which then ends its children in an orderly way.
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    return Job(cell, process, log)


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


def _outcome(out: Path, job: Job) -> str:
    result = read_json(out / job.cell.folder / "result.json", None)
    if job.process.returncode or result is None:
        return f"failed (exit code {job.process.returncode})"
    branch = "fused" if "fused" in result["test"] else next(iter(result["test"]))
    return f"test accuracy {result['test'][branch]['accuracy']:.3f} in {_duration(result['seconds'])}"


def _failure(out: Path, job: Job) -> dict[str, str]:
    lines = (out / _log_path(job.cell)).read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(lines[-LOG_TAIL_LINES:]) or "(its log is empty)"
    return {"name": str(job.cell), "log": _log_path(job.cell).as_posix(), "tail": tail}


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _short_tables(comparison: dict[str, Any]) -> Group:
    """The columns that fit a terminal; the whole table is in table.md."""
    parts: list[Table | Text] = []
    for data, content in comparison["data"].items():
        tests = {test["method"]: test for test in content["tests"] if test["metric"] == "accuracy"}
        table = Table(title=f"\n{data}", title_justify="left", box=None, title_style="bold")
        table.add_column("method", no_wrap=True)
        table.add_column("test accuracy", no_wrap=True)
        table.add_column(f"against {comparison['reference']}")
        for row, summary in content["methods"].items():
            said = tables.verdict(tests[row], content["mcnemar"]) if row in tests else ""
            table.add_row(row, tables.spread(summary["fused"]["accuracy"]), Text(said))
        parts += [table, Text(tables.reading_note(comparison, data), style="dim")]
    return Group(*parts)


def _provenance(flags: Sequence[str]) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "matplotlib")}
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "flags": list(flags),
        "machine": {
            "processor": models[0] if models else platform.processor(),
            "processors usable": _usable_processors(),
            "system": platform.platform(),
        },
        "versions": {"igm_fast": __version__, "python": platform.python_version()} | versions,
    }


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
