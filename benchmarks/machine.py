"""What a record must say about the machine: facts, and the peaks that a part of it was measured to reach."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import igm_fast
from benchmarks.timing import Effort, Function, Record
from igm_fast.ops import native

_REPEATS = 7


def facts() -> dict[str, Any]:
    """Return processor, build, versions, commit and load of this process and machine."""
    build = native.module().build_info()
    load = os.getloadavg() if hasattr(os, "getloadavg") else (None,)
    return {
        "cpu": _cpuinfo("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "mhz": float(_cpuinfo("cpu MHz") or 0) or None,
        "isa": native.module().isa(),
        "threads": torch.get_num_threads(),
        "load": load[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "igm_fast": igm_fast.__version__,
        "build": f"{build['build_type']}, {build['compiler']}, {build['flags']}",
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def peaks(effort: Effort) -> dict[str, float]:
    """Measure what torch reaches: bytes/s of a copy or a triad (the better), flop/s of a float32 matrix product.

    The arrays of the first are 128 MB each, several times any last-level cache that two cores share.
    """
    elements, size = (1 << 20, 384) if effort.scale == "quick" else (1 << 25, 1536)
    a, b, c = (torch.full((elements,), value) for value in (0.0, 1.0, 2.0))
    copy = 2 * a.nbytes / _fastest(lambda: a.copy_(b))
    triad = 3 * a.nbytes / _fastest(lambda: torch.add(b, c, alpha=3.0, out=a))
    left, right, product = (torch.ones(size, size) for _ in range(3))
    flops = 2 * size**3 / _fastest(lambda: torch.mm(left, right, out=product))
    return {"peak_bytes_per_s": max(copy, triad), "peak_flops_per_s": flops}


def higher(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return the higher of two measurements of each peak: other programs can only have lowered them."""
    return {name: max(first[name], second[name]) for name in first}


def annotate(record: Record, machine: dict[str, Any]) -> Record:
    """Return the record with its machine, and with the share of the machine's peaks that ours reached."""
    limits = {
        "bytes_moved": (record["bytes_moved"], machine["peak_bytes_per_s"]),
        "flops": (record["flops"], machine["peak_flops_per_s"]),
    }
    seconds = record["ours_ms"] / 1e3
    percent = {name: 100 * amount / seconds / peak for name, (amount, peak) in limits.items() if amount is not None}
    return Record(**{**record, "machine": machine, "percent_of_peak": percent})


def is_busy(machine: dict[str, Any]) -> bool:
    """Return whether other programs were using much of this machine when the run began."""
    return float(machine["load"] or 0.0) > 0.5 * int(machine["cores"])


def _fastest(function: Function) -> float:
    function()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        function()
        seconds.append((time.perf_counter_ns() - began) / 1e9)
    return min(seconds)


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    values = [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
    return values[0] if values else None


def _commit() -> str | None:
    """Commit of the measured checkout; None for an installed package."""
    command = ["git", "-C", str(Path(igm_fast.__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
