"""The one harness: ours and its peers in turn in one process, first checked for equal results, then timed.

Every function is timed once per round. The order is drawn anew for each pair of rounds and reversed in its second one
(A B B A), so that neither a slow drift of the machine nor a favourite predecessor in the caches helps anyone. A sample
is one call, or as many calls as fill a millisecond: work of milliseconds starts from the caches that another function
left, as in training; work of microseconds is warm. The first call, which is checked, also shows the peak of its memory.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from benchmarks.agreement import Agree, Facts
from benchmarks.memory import Peak

Function = Callable[[], object]
Clock = Callable[[], int]  # nanoseconds
Timer = Callable[[Function, int], float]  # function, calls → milliseconds per call

OURS = "ours"
CONFIDENCE = 0.95
# A median of fewer samples has no interval worth printing.
LEAST_ROUNDS = 7
_SAMPLE_MS = 1.0
_MOST_CALLS = 1000
_BRIEF_MS = 200.0
_RESAMPLES = 4000
_SEED = 0


@dataclass(frozen=True)
class Effort:
    """How much is measured: which cases a benchmark takes, and how many rounds.

    Attributes:
        scale: ``quick``: tiny cases that only show that everything runs; ``long``: also those that take minutes.
        rounds: most rounds per case.
        budget_s: seconds per function and case after which a slow one is left out of further rounds, evenly spread.
    """

    scale: Literal["quick", "full", "long"] = "full"
    rounds: int = 30
    budget_s: float = 1.5


class Ratio(TypedDict):
    """Median of another function ÷ median of ours (above 1: ours is faster), with a bootstrap interval.

    Either of fewer than seven samples has no interval.
    """

    ratio: float
    low: float | None
    high: float | None


class Record(TypedDict):
    """One comparison, as it is written to JSON; machine and percent_of_peak are added by ``machine.annotate``."""

    name: str
    case: str
    headline: bool  # whether the README's table has it
    ours_ms: float  # medians
    peers: dict[str, float]
    references: dict[str, float]
    quartiles_ms: dict[str, tuple[float, float]]  # of all three, ours as "ours"; the same for rounds, calls and facts
    ratios: dict[str, Ratio]
    rounds: dict[str, int]
    calls_per_sample: dict[str, int]
    facts: dict[str, dict[str, float | str]]
    unavailable: dict[str, str]  # peer → why it could not run
    bytes_moved: int | None
    flops: int | None
    percent_of_peak: dict[str, float]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Milliseconds per call, one entry per round that a function took part in."""

    ms: NDArray[np.float64]
    calls: int

    @property
    def median(self) -> float:
        """Return the median."""
        return float(np.median(self.ms))

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile."""
        low, high = np.percentile(self.ms, (25, 75))
        return float(low), float(high)


def compare(
    case: str,
    *,
    ours: Mapping[str, Function],
    peers: Mapping[str, Function],
    agree: Agree,
    effort: Effort,
    references: Mapping[str, Function] | None = None,
    unavailable: Mapping[str, str] | None = None,
    headlines: Sequence[str] | None = None,
    beside: Mapping[str, Sequence[str]] | None = None,
    few: Mapping[str, int] | None = None,
    rest_s: float = 0.0,
    bytes_moved: int | None = None,
    flops: int | None = None,
    clock: Clock = time.perf_counter_ns,
    timer: Timer | None = None,
    peak: type[Peak] = Peak,
) -> list[Record]:
    """Check that results agree, then time everything in turn; one record per entry of ``ours``.

    Args:
        case: what it is measured on, such as ``"3×3 C64 H56"``.
        ours: record name → function. Several routes to one result share the peers' samples.
        peers: name → function with the same result.
        agree: called with the result of the first call of each of ours and of the peers. Functions may therefore go on
            from state that they keep: later results are not looked at.
        effort: rounds and time.
        references: name → function whose result is another one, such as a lower bound; timed, not checked.
        unavailable: peers that cannot run here, and why.
        headlines: those of ours that the README shows (default: all).
        beside: name of ours → the peers and references in its record (default: all of them). Functions that several
            records share are so measured once.
        few: functions too slow for seven rounds → how many they make, the checked call among them.
        rest_s: seconds of rest before every sample, where peers have threads of their own (scipy's OpenBLAS), which go
            on spinning after a call and would take the processors from the next one. Threads that rested are slow to
            wake, so that brief functions then make a call that is not timed.
        bytes_moved: compulsory memory traffic of one call of ours.
        flops: arithmetic of one call of ours.
        clock: nanoseconds; tests give their own.
        timer: takes a sample of one call in its own way; None: the clock, around as many calls as fill a millisecond.
        peak: measures the peak of memory of a first call.

    Raises:
        DisagreementError: two results differ by more than ``agree`` allows.
    """
    references = references or {}
    compared = {**ours, **peers}
    functions = {**compared, **references}
    if len(functions) != len(ours) + len(peers) + len(references):
        raise ValueError(f"{case}: a name stands twice in {[*ours, *peers, *references]}; give each function its own")
    estimates, results, memory = {}, {}, dict[str, Facts]()
    for name, function in functions.items():
        time.sleep(rest_s)
        with peak() as used:
            began = clock()
            results[name] = function()
            estimates[name] = (clock() - began) / 1e6
        memory[name] = {} if used.bytes is None else {"peak_bytes": used.bytes}
    facts = agree({name: results[name] for name in compared})
    facts = {name: {**memory[name], **said} for name, said in facts.items()}
    del results
    sample_ms = _SAMPLE_MS if timer is None else 0.0
    timer = timer or partial(_time, clock=clock)
    samples = _measure(functions, estimates, effort, timer, sample_ms, few or {}, rest_s)

    records = []
    for name in ours:
        shown_beside = (*peers, *references) if beside is None else beside[name]
        others = {other: samples[other] for other in shown_beside}
        shown = {OURS: samples[name], **others}
        records.append(
            Record(
                name=name,
                case=case,
                headline=headlines is None or name in headlines,
                ours_ms=samples[name].median,
                peers={other: value.median for other, value in others.items() if other in peers},
                references={other: value.median for other, value in others.items() if other in references},
                quartiles_ms={key: value.quartiles for key, value in shown.items()},
                ratios={other: _ratio(value, samples[name]) for other, value in others.items()},
                rounds={key: value.ms.size for key, value in shown.items()},
                calls_per_sample={key: value.calls for key, value in shown.items()},
                facts=_facts_beside(facts, name, [peer for peer in peers if peer in others]),
                unavailable=dict(unavailable or {}),
                bytes_moved=bytes_moved,
                flops=flops,
                percent_of_peak={},
                machine={},
            )
        )
    return records


def schedule(rounds: Mapping[str, int], generator: np.random.Generator) -> Iterator[list[str]]:
    """Yield who is timed in each round, in order; functions with fewer rounds are spread over all of them."""
    total = max(rounds.values())
    order: list[str] = []
    for index in range(total):
        order = order[::-1] if index % 2 else [str(name) for name in generator.permutation(list(rounds))]
        yield [name for name in order if _share(index + 1, rounds[name], total) > _share(index, rounds[name], total)]


def ratio_interval(other: NDArray[np.float64], ours: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the bootstrap percentile interval of median(other) / median(ours); None for fewer than seven samples."""
    if min(other.size, ours.size) < LEAST_ROUNDS:
        return None
    generator = np.random.default_rng(_SEED)
    medians = [np.median(generator.choice(ms, (_RESAMPLES, ms.size)), axis=1) for ms in (other, ours)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians[0] / medians[1], (tail, 100 - tail))
    return float(low), float(high)


def _share(index: int, rounds: int, total: int) -> int:
    """Rounds that a function should have made before round `index`, half a step early so that one is in the middle."""
    return (index * rounds + total // 2) // total


def _measure(
    functions: Mapping[str, Function],
    estimates: Mapping[str, float],
    effort: Effort,
    timer: Timer,
    sample_ms: float,
    few: Mapping[str, int],
    rest_s: float,
) -> dict[str, Samples]:
    calls, rounds = {}, {}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():
        estimate = estimates[name]
        if name in few:
            calls[name], rounds[name], samples[name] = 1, min(few[name], effort.rounds) - 1, [estimate]
            continue
        if estimate < 1e3 * effort.budget_s / LEAST_ROUNDS:  # the first call also paid for set-up: warm up, look again
            time.sleep(rest_s)
            estimate = timer(function, 1)
        calls[name] = max(1, min(_MOST_CALLS, math.ceil(sample_ms / max(estimate, _SAMPLE_MS / _MOST_CALLS))))
        affordable = int(1e3 * effort.budget_s / max(estimate * calls[name], 1e-6))
        rounds[name] = min(effort.rounds, max(LEAST_ROUNDS, affordable))
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle would be charged to whoever happens to run
    try:
        for names in schedule(rounds, np.random.default_rng(_SEED)):
            for name in names:
                if rest_s:
                    time.sleep(rest_s)
                    if estimates[name] < _BRIEF_MS:
                        functions[name]()
                samples[name].append(timer(functions[name], calls[name]))
    finally:
        if collects:
            gc.enable()
    return {name: Samples(np.array(ms), calls[name]) for name, ms in samples.items()}


def _time(function: Function, calls: int, clock: Clock) -> float:
    began = clock()
    for _ in range(calls):
        function()
    return (clock() - began) / 1e6 / calls


def _ratio(other: Samples, ours: Samples) -> Ratio:
    low, high = ratio_interval(other.ms, ours.ms) or (None, None)
    return Ratio(ratio=other.median / ours.median, low=low, high=high)


def _facts_beside(facts: Mapping[str, Facts], name: str, peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    chosen = {OURS: name, **{peer: peer for peer in peers}}
    return {key: dict(facts[source]) for key, source in chosen.items() if source in facts}
