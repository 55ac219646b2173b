"""Statistics against scipy, brute force and the small cases that tables of runs contain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from igm_fast.reports import statistics

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=12)


def by_seed(values):
    return dict(enumerate(values))


def test_summary_is_the_sample_standard_deviation():
    assert statistics.summarize([0.8, 0.9, 1.0]) == statistics.Summary(3, pytest.approx(0.9), pytest.approx(0.1))


@pytest.mark.parametrize(("values", "mean"), [([], None), ([0.5], 0.5)])
def test_summary_without_spread(values, mean):
    assert statistics.summarize(values) == statistics.Summary(len(values), mean, None)


def test_summary_refuses_nan():
    with pytest.raises(ValueError, match="finite"):
        statistics.summarize([0.5, float("nan")])


@given(SCORES)
def test_paired_t_agrees_with_scipy(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    difference = a - b
    ours = statistics.paired_test(by_seed(a), by_seed(b))
    if difference.std(ddof=1) < 1e-9:
        return
    theirs = stats.ttest_rel(a, b)
    np.testing.assert_allclose(ours.p_t, theirs.pvalue, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours.interval, theirs.confidence_interval(0.95), rtol=1e-6, atol=1e-9)
    assert ours.p == ours.p_t


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_wilcoxon_is_exact_with_ties_and_zeros(differences):
    values = np.array([d for d in differences if d], dtype=float)
    expected = 1.0
    if values.size:
        ranks = stats.rankdata(np.abs(values))
        centre = ranks.sum() / 2
        sums = [ranks[np.array(signs)].sum() for signs in itertools.product([False, True], repeat=values.size)]
        observed = abs(ranks[values > 0].sum() - centre)
        expected = np.mean(np.abs(np.array(sums) - centre) >= observed - 1e-9)
    assert statistics.wilcoxon_p(differences) == pytest.approx(expected)


def test_wilcoxon_agrees_with_scipy_without_ties():
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.55, -0.2, 0.7])
    assert statistics.wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_one_seed_has_a_difference_but_no_test():
    result = statistics.paired_test({0: 0.9}, {0: 0.8, 1: 0.7})
    assert result.mean_difference == pytest.approx(0.1)
    assert (result.p, result.interval, result.p_wilcoxon) == (None, None, None)
    assert "one seed" in result.note


def test_identical_results_have_p_one():
    result = statistics.paired_test(by_seed([0.7, 0.8, 0.9]), by_seed([0.7, 0.8, 0.9]))
    assert (result.mean_difference, result.p_t, result.p_wilcoxon, result.interval) == (0.0, 1.0, 1.0, (0.0, 0.0))


def test_equal_differences_leave_t_undefined():
    """0.9 − 0.8 and 0.3 − 0.2 differ in the last bit: that is no spread, and t = 1e15 would be no evidence."""
    result = statistics.paired_test(by_seed([0.9, 0.3, 0.7]), by_seed([0.8, 0.2, 0.6]))
    assert (result.t, result.p_t, result.interval) == (None, None, None)
    assert result.p == result.p_wilcoxon == pytest.approx(0.25)
    assert "undefined" in result.note


def test_missing_cells_are_left_out_of_the_pairs():
    result = statistics.paired_test({0: 0.9, 1: 0.8, 3: 0.7}, {1: 0.7, 2: 0.1, 3: 0.65})
    assert result.seeds == (1, 3)
    assert result.mean_difference == pytest.approx(0.075)
    assert statistics.paired_test({0: 0.9}, {1: 0.9}).note.startswith("no seed in common")


def test_holm_on_a_worked_example():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.02, None, 0.9]) == [pytest.approx(0.04), None, pytest.approx(0.9)]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_p_and_keeps_the_order(p_values):
    adjusted = statistics.holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


def test_mcnemar_is_the_exact_binomial_on_discordant_samples():
    first = [True] * 8 + [False] * 1 + [True] * 20
    second = [False] * 8 + [True] * 1 + [True] * 20
    assert statistics.mcnemar(first, second) == statistics.McNemarTest(8, 1, pytest.approx(2 * 10 / 2**9))
    assert statistics.mcnemar(first, first).p == 1.0
    assert statistics.mcnemar([], []).p == 1.0
    with pytest.raises(ValueError, match=r"\(29,\).*\(28,\)"):
        statistics.mcnemar(first, second[1:])


def test_binomial_interval_is_wilsons():
    z = stats.norm.ppf(0.975)
    n, share = 744, 0.8
    k = round(n * share)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(statistics.binomial_interval(k, n), [centre - half, centre + half])
    assert statistics.binomial_interval(0, 5)[0] == 0.0
    with pytest.raises(ValueError, match="0 of 0"):
        statistics.binomial_interval(0, 0)


def test_the_same_difference_of_float32_scores_is_the_same():
    """3 of 500 samples more in each seed, as torchmetrics reports it: t is undefined, not huge."""
    first, second = (
        {seed: float(np.float32(n / 500)) for seed, n in enumerate(right)} for right in ([346, 344], [343, 341])
    )
    test = statistics.paired_test(first, second)
    assert test.p_t is None
    assert test.p_wilcoxon == 0.5
    assert test.mean_difference == pytest.approx(0.006, abs=2.0**-23)  # rounding of two float32 scores below 1
