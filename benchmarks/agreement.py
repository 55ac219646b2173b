"""What "the same result" means: relative error against a reference, and the error raised when it is too large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

# Figures about one function's result, such as its error; they go into the record.
Facts = Mapping[str, float | str]
# Sees the result of each compared function's first call, by name; returns facts by name or raises DisagreementError.
Agree = Callable[[Mapping[str, Any]], Mapping[str, Facts]]


class DisagreementError(Exception):
    """Results differ by more than the benchmark allows: their times must not be compared."""


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Return ‖result − reference‖ / ‖reference‖ (Frobenius), in float64."""
    reference = reference.double()
    return float((result.double() - reference).norm() / reference.norm())


def require(name: str, error: float, limit: float, what: str) -> None:
    """Raise unless error ≤ limit; NaN is an error, too.

    Raises:
        DisagreementError: it is larger.
    """
    if not error <= limit:
        raise DisagreementError(f"{name}: {what} is {error:.2e}, expected at most {limit:.0e}")


def close_to(reference: Tensor, limit: float) -> Agree:
    """Return a check that every result is a tensor within a relative (Frobenius) error of the reference."""

    def agree(results: Mapping[str, Any]) -> dict[str, Facts]:
        facts: dict[str, Facts] = {}
        for name, result in results.items():
            error = relative_error(result, reference)
            require(name, error, limit, "relative error")
            facts[name] = {"relative_error": error}
        return facts

    return agree
