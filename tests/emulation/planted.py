"""Runs a kernel with a planted defect (kernels/planted.cu); as a program, in the library with sanitizers."""

from __future__ import annotations

import ctypes
import sys

import emulator
import numpy as np

ROWS, COLUMNS, DEPTH = 16, 32, 64
SHARED = 2 * 16 * (ROWS + 8 + COLUMNS + 8)


def product(
    emulated: emulator.Emulator, defect: str, *, fenced: bool = True, shared_bytes: int = SHARED, threads: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the kernel with this defect makes, and what is right, both [16, 32].

    The numbers are small integers: products and sums are exact in any order. `fenced`: a row of NaN lies behind a, and
    room for one behind the result; otherwise they end where they end.
    """
    random, behind = np.random.default_rng(0), 1 if fenced else 0
    a = np.full((DEPTH + behind, ROWS), np.nan, np.float32)
    a[:DEPTH] = random.integers(-4, 5, (DEPTH, ROWS))
    b = random.integers(-4, 5, (DEPTH, COLUMNS)).astype(np.float32)
    out = np.full((ROWS + behind, COLUMNS), np.nan, np.float32)
    bfloat16_a, bfloat16_b = ((matrix.view(np.uint32) >> 16).astype(np.uint16) for matrix in (a, b))
    emulated.run_arrays(
        f"igm::planted_kernel<igm::Defect::{defect}>",
        1,
        threads,
        [bfloat16_a, bfloat16_b, out],
        bytes(ctypes.c_int64(DEPTH)),
        shared_bytes,
    )
    return out[:ROWS], a[:DEPTH].T @ b


if __name__ == "__main__":
    made, right = product(emulator.Emulator(sanitized=True), sys.argv[1], fenced=False)
    sys.exit("a wrong result" if not np.array_equal(made, right) else "nothing found")
