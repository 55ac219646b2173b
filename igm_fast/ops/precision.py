"""Whether matrix products on GPUs are in full float32: what the program around them has chosen, and keeping it so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep cuBLAS from rounding float32 operands to TF32 (11 bits) inside, which no certificate would survive.

    The setting is torch's and global; it is put back as it was. CPU tensors are not affected.
    """
    matmul: Any = torch.backends.cuda.matmul
    # torch 2.9 brought a second name for the setting and refuses to read the first once the second was used.
    name, full = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    if before in (full, "none"):
        yield
        return
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def tf32_allowed() -> bool:
    """Return whether torch's setting lets float32 operands of matrix products be rounded to TF32 (11 bits)."""
    matmul: Any = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)
