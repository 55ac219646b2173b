"""The GPU under measurement: how a sample is taken on it, what it reaches, what a record says about it.

A sample is one call between two CUDA events, after 1 GiB was written: that empties the L2 cache, and while it runs the
host queues the call's kernels, so that the host's own time counts only where it is longer. On the CPU (for a look at
whether everything runs) a sample is one call on the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.agreement import Agree
from benchmarks.timing import Effort, Function, Record
from igm_fast.ops import native
from igm_fast.ops.precision import tf32_allowed

_FLUSH_BYTES = 1 << 30
_REPEATS = 7
# How float32 products are computed, in the order of torch's set_float32_matmul_precision.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Bench:
    """A device and how much is measured on it."""

    device: torch.device
    effort: Effort
    scratch: Tensor = field(init=False)
    facts: dict[str, Any] = field(init=False)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        on_gpu = self.device.type == "cuda"
        self.scratch = torch.empty(_FLUSH_BYTES if on_gpu else 0, dtype=torch.uint8, device=self.device)
        self.facts = facts(self)

    @property
    def quick(self) -> bool:
        """Whether tiny cases do."""
        return self.effort.scale == "quick"

    def clock(self) -> int:
        """Return nanoseconds, after all that was queued."""
        self.wait()
        return time.perf_counter_ns()

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sample(self, function: Function, calls: int) -> float:
        """Return milliseconds per call, with a cold L2 cache before the first."""
        if self.device.type == "cpu":
            began = time.perf_counter_ns()
            for _ in range(calls):
                function()
            return (time.perf_counter_ns() - began) / 1e6 / calls
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.scratch.zero_()
        start.record()
        for _ in range(calls):
            function()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / calls

    def compare(
        self,
        case: str,
        *,
        ours: Mapping[str, Function],
        peers: Mapping[str, Function],
        agree: Agree,
        references: Mapping[str, Function] | None = None,
        precision: str = "float32",
        unavailable: Mapping[str, str] | None = None,
        few: Mapping[str, int] | None = None,
        warm: bool = True,
        **more: Any,
    ) -> list[Record]:
        """Compare as :func:`benchmarks.timing.compare` does; peers and references that raise an error are left out.

        ``precision`` names the products with whose rate ``flops`` are compared. With ``warm`` all but the few are
        called once before results are compared: libraries get loaded, kernels compiled.
        """
        missing = dict(unavailable or {})
        usable = {name: function for name, function in peers.items() if name not in missing}
        bounds = dict(references or {})
        if warm:
            for function in ours.values():
                function()
            for group in (usable, bounds):
                for name in [name for name in group if name not in (few or {})]:
                    if (why := self._why_not(group[name])) is not None:
                        missing[name] = why
                        del group[name]
            self.wait()
        if beside := more.get("beside"):
            more["beside"] = {name: [n for n in names if n not in missing] for name, names in beside.items()}
        records = timing.compare(
            case,
            ours=ours,
            peers=usable,
            references=bounds,
            agree=agree,
            effort=self.effort,
            few=few,
            unavailable=missing,
            clock=self.clock,
            timer=self.sample,
            peak=_peak(self.device),
            **more,
        )
        limits = self.facts | {"peak_flops_per_s": self.facts["products_flops_per_s"][precision]}
        return [machine.annotate(record, limits) for record in records]

    def _why_not(self, function: Function) -> str | None:
        """Call a function; return the first line of its error, if any."""
        try:
            function()
            self.wait()
        except RuntimeError as error:  # also NotImplementedError and torch.OutOfMemoryError
            return str(error).splitlines()[0][:200]
        return None


def facts(bench: Bench) -> dict[str, Any]:
    """Return what a record says about machine and device, with the peaks that a part of it reaches."""
    said = machine.facts() | {"route": native.cuda_route()}
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        said["device"] = properties.name
        said["capability"] = f"{properties.major}.{properties.minor}"
        said["multiprocessors"] = properties.multi_processor_count
        said["memory_bytes"] = properties.total_memory
        said["driver"] = _driver()
        said["cuda"] = torch.version.cuda
    else:
        said |= {"device": f"no GPU: {said['cpu']}", "capability": "–", "driver": "–"}
    elements, size = (1 << 20, 256) if bench.quick else (1 << 28, 8192)
    said["peak_bytes_per_s"] = 2 * 4 * elements / _fastest(bench, _copy(elements, bench.device))
    said["products_flops_per_s"] = {
        name: 2 * size**3 / _fastest(bench, _product(name, size, bench.device)) for name in PRECISIONS
    }
    said["peak_flops_per_s"] = said["products_flops_per_s"]["float32"]
    return said


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Let torch's float32 products and convolutions use tf32, or not; yields the dtype of the inputs."""
    # Read by the newer name where there is one, since torch refuses the older one after the newer was used; written by
    # the older, which sets both.
    cudnn: Any = torch.backends.cudnn
    convolutions = cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else bool(cudnn.allow_tf32)
    before = tf32_allowed(), convolutions
    torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = name != "float32"
    try:
        yield PRECISIONS[name]
    finally:
        torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32 = before


def _copy(elements: int, device: torch.device) -> Function:
    source, target = (torch.empty(elements, device=device).normal_() for _ in range(2))
    return lambda: target.copy_(source)


def _product(name: str, size: int, device: torch.device) -> Function:
    left, right = (torch.randn(size, size, device=device).to(PRECISIONS[name]) for _ in range(2))

    def product() -> Tensor:
        with precision(name):
            return left @ right

    return product


def _fastest(bench: Bench, function: Function) -> float:
    for _ in range(2):
        function()
    return min(bench.sample(function, 1) for _ in range(_REPEATS)) / 1e3


def _driver() -> str:
    import ctypes

    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return "unknown"
    return f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


class _DevicePeak:
    """As :class:`benchmarks.memory.Peak`, of the memory that torch hands out on a GPU."""

    bytes: int | None = None
    _before = 0

    def __enter__(self) -> _DevicePeak:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.cuda.synchronize()
        self.bytes = torch.cuda.max_memory_allocated() - self._before


def _peak(device: torch.device) -> Any:
    return _DevicePeak if device.type == "cuda" else timing.Peak


def largest(values: Sequence[float]) -> float:
    """Return the largest of some figures; NaN if there is one."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())
