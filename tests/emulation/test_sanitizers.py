"""The emulated kernels once more under AddressSanitizer and UBSan: no access beyond an array, no overflow."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import emulator
import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    "IGM_FAST_EMULATION_SANITIZED" in os.environ or emulator.sanitizer_runtime() is None,
    reason="runs in a process of its own, and needs a compiler with AddressSanitizer (g++ has it)",
)


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizer's memory allocator, which fences every array: those of torch and numpy, too."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))}
    environment |= {
        "LD_PRELOAD": emulator.sanitizer_runtime() or "",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "IGM_FAST_EMULATION_SANITIZED": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )


@cache
def built() -> None:
    emulator.build(sanitized=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernels_stay_within_their_arrays():
    built()
    # -s: a sanitizer ends the process, and with it what pytest would have captured.
    done = sanitized("-m", "pytest", "-v", "-s", "-x", "-p", "no:cacheprovider", "-m", "not gpu", "--durations=5", ".")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("defect", "report"),
    [
        ("kNone", "nothing found"),
        ("kLoadOffByOne", "heap-buffer-overflow"),
        ("kStoreOffByOne", "heap-buffer-overflow"),
        ("kSharedOverrun", "heap-buffer-overflow"),
        ("kStaticIndex", "index 64 out of bounds"),
    ],
)
def test_a_planted_access_beyond_an_array_is_found(defect, report):
    built()
    done = sanitized("planted.py", defect)
    assert report in done.stderr
    assert done.returncode != 0
    assert defect == "kNone" or "planted.cu" in done.stderr
