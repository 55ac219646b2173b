"""How much memory a call takes at its worst moment, beyond what the process held before it.

The kernel's high-water mark of resident memory counts everything: tensors, a kernel's own buffers, those of the BLAS.
Reserved but untouched pages do not count, and neither do buffers that were there from earlier calls. Good to a few
hundred kB: the kernel counts pages in batches.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType

_RESET = Path("/proc/self/clear_refs")  # Linux: writing 5 sets the high-water mark to what is resident now
_STATUS = Path("/proc/self/status")


class Peak:
    """``with Peak() as peak: …``; afterwards ``peak.bytes``, None where the system offers no such mark."""

    bytes: int | None = None
    _before: int | None = None

    def __enter__(self) -> Peak:
        try:
            ctypes.CDLL(None).malloc_trim(0)  # or freed blocks, still resident, would serve the call unseen
            _RESET.write_text("5", encoding="ascii")
            self._before = _resident("VmRSS")
        except (OSError, AttributeError):  # another system, or a sandbox that forbids it
            self._before = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            self.bytes = max(0, _resident("VmHWM") - self._before)


def _resident(key: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(value)
