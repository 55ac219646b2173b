"""Seconds per phase and stage, processor time and memory of a run, added up over interruptions."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PHASES = ("train", "statistics", "decomposition", "evaluation", "checkpoint")


class Clock:
    """Adds up the seconds of named phases.

    >>> clock = Clock()
    >>> clock.enter_stage(0, "gyroscope")
    >>> with clock("train"): pass
    >>> sorted(clock.timing()["per_stage"][0])
    ['stage', 'train', 'trained']
    """

    def __init__(self, timing: Mapping[str, Any] | None = None) -> None:
        timing = timing or {}
        self._seconds = {phase: float(timing.get(phase, 0.0)) for phase in PHASES}
        self._per_stage: list[dict[str, Any]] = [dict(row) for row in timing.get("per_stage", ())]
        self._earlier = float(timing.get("total", 0.0))
        self._earlier_processor = float(timing.get("processor", 0.0))
        self._earlier_peak = int(timing.get("peak_memory", 0))
        self._began, self._processor_began = time.perf_counter(), time.process_time()

    def enter_stage(self, stage: int, trained: str) -> None:
        """Book what follows on a stage too."""
        if not self._per_stage or self._per_stage[-1]["stage"] != stage:
            self._per_stage.append({"stage": stage, "trained": trained})

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measure what runs inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._seconds[phase] += seconds
            if self._per_stage:
                row = self._per_stage[-1]
                row[phase] = row.get(phase, 0.0) + seconds

    @property
    def total(self) -> float:
        """Seconds since the run began, time between interruption and resume left out."""
        return self._earlier + time.perf_counter() - self._began

    @property
    def processor(self) -> float:
        """Seconds of processor time of all threads of this process: what other work on the machine leaves alone."""
        return self._earlier_processor + time.process_time() - self._processor_began

    @property
    def peak_memory(self) -> int:
        """Largest resident size of this process so far in bytes, its libraries and its data included."""
        unit = 1 if sys.platform == "darwin" else 1024
        return max(self._earlier_peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

    def timing(self) -> dict[str, Any]:
        """Return what ``timing.json`` holds."""
        cost = {"total": self.total, "processor": self.processor, "peak_memory": self.peak_memory}
        return {**self._seconds, **cost, "per_stage": [dict(row) for row in self._per_stage]}
