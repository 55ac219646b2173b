"""Spread and significance of results over seeds and over test samples.

Every function has a defined answer for the small cases that a table of runs contains: one seed, equal results,
results that differ by the same amount in every seed, missing cells. A test that cannot be made gives ``None`` and a
sentence, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n − 1) over ``count`` values; ``std`` is None below two values."""

    count: int
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two methods over the seeds that both have; differences are *first minus second*.

    ``interval`` is the 95 % interval of the mean difference by Student's t. ``note`` says why a number is missing.
    """

    seeds: tuple[int, ...]
    mean_difference: float | None = None
    std_difference: float | None = None
    interval: tuple[float, float] | None = None
    t: float | None = None
    p_t: float | None = None
    p_wilcoxon: float | None = None
    note: str = ""

    @property
    def p(self) -> float | None:
        """The p-value to report: paired t; Wilcoxon where t is undefined."""
        return self.p_wilcoxon if self.p_t is None else self.p_t


@dataclass(frozen=True)
class McNemarTest:
    """Exact McNemar test on one test set: samples that only the first, or only the second, classifies correctly."""

    only_first: int
    only_second: int
    p: float


def summarize(values: Sequence[float]) -> Summary:
    """Return count, mean and sample standard deviation of finite values.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    array = _finite(values)
    if array.size == 0:
        return Summary(0, None, None)
    return Summary(array.size, float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None)


def paired_test(first: Mapping[int, float], second: Mapping[int, float]) -> PairedTest:
    """Compare two methods seed by seed: paired t-test, Wilcoxon signed-rank test, interval of the mean difference.

    Args:
        first: seed → score of the first method.
        second: seed → score of the second method. Seeds that only one side has are left out.

    Returns:
        One seed: the difference and a note, no test. All differences 0: p = 1. All differences equal but not 0: the
        t statistic is undefined (no spread), Wilcoxon's p stands alone.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        return PairedTest(seeds, note="no seed in common: no test possible")
    a, b = _finite([first[seed] for seed in seeds]), _finite([second[seed] for seed in seeds])
    difference = a - b
    # Scores are measured in float32; below the rounding of a subtraction of such, differences count as equal. Otherwise
    # the same difference in every seed would look like one with hardly any spread, and p would be next to 0.
    rounding = 4 * float(np.finfo(np.float32).eps) * max(np.abs(a).max(), np.abs(b).max())
    difference[np.abs(difference) <= rounding] = 0.0
    mean = float(difference.mean())
    if len(seeds) == 1:
        return PairedTest(seeds, mean, note="one seed: no test over seeds possible")
    std = float(difference.std(ddof=1))
    if not difference.any():
        return PairedTest(seeds, 0.0, 0.0, (0.0, 0.0), 0.0, 1.0, 1.0, "identical in every seed")
    p_wilcoxon = wilcoxon_p(difference)
    if std <= rounding:
        note = "the same difference in every seed: t is undefined, Wilcoxon's p is given"
        return PairedTest(seeds, mean, 0.0, None, None, None, p_wilcoxon, note)
    error = std / math.sqrt(len(seeds))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1))
    t = mean / error
    p_t = float(2 * stats.t.sf(abs(t), len(seeds) - 1))
    return PairedTest(seeds, mean, std, (mean - half, mean + half), t, p_t, p_wilcoxon)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the exact two-sided p of the Wilcoxon signed-rank test; zeros are left out, ties share their mean rank.

    The null distribution (every sign pattern equally likely) is counted out over the ranks that occur, so ties keep it
    exact; ``scipy.stats.wilcoxon`` changes to a normal approximation there, which is poor for five seeds.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if values.size == 0:
        return 1.0
    doubled_ranks = np.rint(2 * stats.rankdata(np.abs(values))).astype(int)  # mean ranks are whole or half
    share = np.ones(1)  # share[w] = probability that the doubled rank sum of the positive differences is w
    for rank in doubled_ranks:
        share = 0.5 * (np.pad(share, (0, rank)) + np.pad(share, (rank, 0)))
    positive = int(doubled_ranks[values > 0].sum())
    smaller = min(positive, int(doubled_ranks.sum()) - positive)
    return min(1.0, 2.0 * float(share[: smaller + 1].sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p-values (Holm 1979); tests that could not be made (None) are not counted."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> McNemarTest:
    """Test whether two classifiers differ on the same test samples (exact binomial on the discordant ones).

    Args:
        first_correct: [N] bool, sample classified correctly by the first method.
        second_correct: [N] bool, the same samples in the same order for the second.

    Raises:
        ValueError: the two do not have the same length.
    """
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"McNemar's test needs the same samples twice; given shapes {first.shape} and {second.shape}.")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemarTest(only_first, only_second, p)


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion, taking samples as independent.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"a proportion needs 0 ≤ successes ≤ trials and a trial; given {successes} of {trials}.")
    low, high = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"scores must be finite; given {array.tolist()}. Leave missing cells out instead.")
    return array
