"""Rounding-error bounds (Higham, Accuracy and Stability of Numerical Algorithms, §3.1) and the comparison with them."""

from __future__ import annotations

import numpy as np
import torch

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def gamma(n: float, dtype: torch.dtype) -> float:
    """γ(n) = n·u/(1 − n·u): relative error after n roundings, whatever their order."""
    return n * UNIT[dtype] / (1 - n * UNIT[dtype])


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    """|actual − expected| ≤ bound in every entry; NaN only where NaN is expected, and there always."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    undefined = np.isnan(expected)
    assert np.array_equal(np.isnan(actual), undefined), "NaN in other places than expected"
    excess = np.where(undefined, -np.inf, np.abs(actual - expected) - bound)
    if excess.size and not excess.max() <= 0:
        worst = np.unravel_index(excess.argmax(), excess.shape)
        limit = np.broadcast_to(bound, expected.shape)[worst]
        raise AssertionError(f"{actual[worst]} at {worst}, expected {expected[worst]} ± {limit}")
