"""Tests of confidence intervals: known cases, minimum sample sizes, and measured coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core import confidence
from retrieval.core.confidence import (
    MIN_SAMPLE_SIZE,
    RESAMPLES,
    bootstrap_mean,
    bootstrap_means,
    class_means,
    difference_intervals,
    resampled_sums,
    score_intervals,
)
from tests.retrieval.coverage import CASES, SIZES, measured_coverage
from tests.retrieval.sample_vectors import quick, seeds

score_arrays = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.array)


def score_interval(values, weights=None):
    low, high = score_intervals(np.asarray(values, float)[:, None], weights)
    return float(low[0]), float(high[0])


def wilson(successes, count, z=1.959963984540054):
    """Return the ends of Wilson's score interval of a proportion (Wilson, 1927)."""
    proportion = successes / count
    center = (proportion + z**2 / (2 * count)) / (1 + z**2 / count)
    half_width = (
        z
        / (1 + z**2 / count)
        * np.sqrt(proportion * (1 - proportion) / count + z**2 / (4 * count**2))
    )
    return center - half_width, center + half_width


# --- score intervals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "count"), [(15, 15), (0, 15), (14, 15), (25, 50), (196, 200)]
)
def test_score_interval_of_proportion_equals_wilson(successes, count):
    values = [1.0] * successes + [0.0] * (count - successes)
    assert score_interval(values) == pytest.approx(wilson(successes, count), abs=1e-12)


def test_fifteen_of_fifteen_successes_has_lower_bound_below_one():
    assert score_interval([1.0] * 15) == pytest.approx((0.796, 1.0), abs=5e-4)


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
def test_equal_values_yield_interval_of_positive_width(value):
    low, high = score_interval([value] * 30)
    assert low <= value <= high
    assert high - low > 0.05


def test_samples_below_minimum_size_yield_nan():
    assert np.isnan(score_interval([])).all()
    assert np.isnan(score_interval([1.0] * (MIN_SAMPLE_SIZE - 1))).all()
    assert np.isfinite(score_interval([1.0] * MIN_SAMPLE_SIZE)).all()


def test_large_sample_matches_normal_approximation():
    values = np.random.default_rng(1).beta(2, 2, 4000)
    half_width = 1.96 * values.std() / np.sqrt(4000)
    expected = values.mean() - half_width, values.mean() + half_width
    assert score_interval(values) == pytest.approx(expected, abs=half_width / 20)


@quick
@given(st.lists(st.floats(0, 1), min_size=MIN_SAMPLE_SIZE, max_size=40))
def test_score_interval_contains_mean_and_stays_in_unit_range(values):
    low, high = score_interval(values)
    assert 0 <= low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= high <= 1
    assert low < high


def test_score_intervals_of_columns_equal_single_column_intervals():
    values = np.random.default_rng(1).random((50, 4))
    actual = np.stack(score_intervals(values))
    expected = np.stack([score_interval(column) for column in values.T], axis=1)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_row_weights_set_effective_sample_size():
    """Only relative weights matter, and rows of weight 0 do not change the interval."""
    values = np.random.default_rng(2).random(40)
    weights = np.array([1.0, 3.0] * 20)[:, None]
    low, high = score_interval(values, weights)
    mean = (values * weights[:, 0]).sum() / 80
    assert low < mean < high
    assert score_interval(values, 7 * weights) == pytest.approx((low, high), abs=1e-12)
    padded_weights = np.append(weights, np.zeros((5, 1)), axis=0)
    assert score_interval([*values, *[0.0] * 5], padded_weights) == (low, high), (
        "rows of weight 0 changed the interval"
    )
    assert np.isnan(score_interval([1.0] * 40, np.array([[1.0]] * 9 + [[0.0]] * 31))).all()
    dominated_weights = np.array([1e6] + [1.0] * 39)[:, None]
    low, high = score_interval([1.0] * 40, dominated_weights)
    assert low < 0.3, "the effective sample size is 1 if one row outweighs all others"


# --- paired differences ---------------------------------------------------------------------------


def paired_interval(first, second):
    columns = (np.asarray(values, float)[:, None] for values in (first, second))
    low, high = difference_intervals(*columns)
    return float(low[0]), float(high[0])


def test_equal_paired_values_yield_interval_around_zero():
    outcomes = [1.0] * 40 + [0.0] * 20
    low, high = paired_interval(outcomes, outcomes)
    assert low == pytest.approx(-high, abs=1e-12)
    assert 0.02 < high < 0.06
    low, high = paired_interval([1.0] * 60, [1.0] * 60)
    assert (low, high) == pytest.approx((-0.0602, 0.0602), abs=1e-4), (
        "differs from Tango's score interval"
    )
    low, high = paired_interval([0.5] * 60, [0.5] * 60)
    assert low < -0.01 < 0.01 < high
    low, high = paired_interval([0.1] * 60, [0.3] * 60)  # the means are rounded
    widths = [
        upper - lower for lower, upper in (score_interval([0.1] * 60), score_interval([0.3] * 60))
    ]
    assert high - low > 0.9 * np.hypot(*widths), "constant values must be treated as uncorrelated"


def test_paired_proportions_match_newcombe_interval():
    """12 queries correct in the first ranking only, 4 in the second only, 50 in both."""
    first = [1.0] * 12 + [0.0] * 4 + [1.0] * 50 + [0.0] * 34
    second = [0.0] * 12 + [1.0] * 4 + [1.0] * 50 + [0.0] * 34
    (low, high), (other_low, other_high) = wilson(62, 100), wilson(54, 100)
    correlation = (50 * 34 - 12 * 4) / np.sqrt(62 * 38 * 54 * 46)
    lower_first, upper_second, upper_first, lower_second = (
        0.62 - low,
        other_high - 0.54,
        high - 0.62,
        0.54 - other_low,
    )
    expected = (
        0.08
        - np.sqrt(
            lower_first * lower_first
            - 2 * correlation * lower_first * upper_second
            + upper_second * upper_second
        ),
        0.08
        + np.sqrt(
            upper_first * upper_first
            - 2 * correlation * upper_first * lower_second
            + lower_second * lower_second
        ),
    )
    assert paired_interval(first, second) == pytest.approx(expected, abs=0.003)


@quick
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=MIN_SAMPLE_SIZE, max_size=40))
def test_paired_interval_contains_difference_and_is_antisymmetric(pairs):
    first, second = np.array(pairs).T
    low, high = paired_interval(first, second)
    difference = first.mean() - second.mean()
    assert -1 - 1e-12 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1 + 1e-12
    assert high - low > 0.005
    other_low, other_high = paired_interval(second, first)
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-12)


def test_correlated_pairs_yield_narrower_interval_than_separate_samples():
    generator = np.random.default_rng(4)
    second = generator.beta(2, 2, 60)
    first = np.clip(second + 0.03 + 0.05 * generator.standard_normal(60), 0, 1)
    low, high = paired_interval(first, second)
    separate = [score_interval(first), score_interval(second)]
    assert high - low < 0.25 * sum(upper - lower for lower, upper in separate)
    assert low > 0


def test_pairs_below_minimum_size_yield_nan():
    assert np.isnan(paired_interval([0.0] * 5, [1.0] * 5)).all()


# --- classes --------------------------------------------------------------------------------------


def test_class_means_returns_means_and_query_counts():
    values = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 1.0]])
    means, sizes = class_means(values, np.array([0, 0, 1]))
    assert means.tolist() == [[0.5, 0.0], [0.5, 1.0]]
    assert sizes.tolist() == [[2.0], [1.0]]


def test_identical_values_within_class_count_as_single_observation():
    """300 queries of 20 classes; within a class all queries are correct or all are wrong."""
    correct = np.arange(20) % 2 == 0
    values = np.repeat(correct, 15).astype(float)[:, None]
    class_interval = score_intervals(*class_means(values, np.repeat(np.arange(20), 15)))
    assert (class_interval[0][0], class_interval[1][0]) == pytest.approx(wilson(10, 20), abs=1e-12)
    query_interval = score_intervals(values)
    assert class_interval[1][0] - class_interval[0][0] > 3 * (
        query_interval[1][0] - query_interval[0][0]
    )


def test_class_mean_intervals_cover_population_mean():
    """Class accuracies follow a beta distribution; intervals over queries cover below 80 %."""
    generator, covered = np.random.default_rng(5), [0, 0]
    for _ in range(400):
        success_rates = np.repeat(generator.beta(4, 2, 15), 12)
        values = (generator.random(180) < success_rates).astype(float)[:, None]
        classes = np.repeat(np.arange(15), 12)
        for method, arguments in enumerate([(values, None), class_means(values, classes)]):
            low, high = score_intervals(*arguments)
            covered[method] += low[0] <= 4 / 6 <= high[0]
    assert covered[0] < 0.8 * 400
    assert covered[1] >= 0.93 * 400


# --- coverage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_measured_coverage_is_near_nominal_level(case):
    for size in SIZES:
        coverage, _ = measured_coverage(case, size)
        assert coverage >= 0.88, (size, coverage)
    assert measured_coverage(case, 200)[0] >= 0.925


def test_student_t_intervals_undercover_on_skewed_values():
    assert measured_coverage("0 or 1, 98 % of them 1", 15)[1] < 0.3
    assert measured_coverage("AP: 95 % above 0.95, the others 0", 15)[1] < 0.6
    assert measured_coverage("paired AP: 4 % lose 0.5, the others change slightly", 15)[1] < 0.5


# --- bootstrap ------------------------------------------------------------------------------------


def test_bootstrap_of_empty_array_is_nan():
    assert np.isnan(bootstrap_mean(np.empty(0))).all()


def test_bootstrap_matches_normal_approximation():
    values = np.random.default_rng(1).normal(10, 2, 400)
    half_width = 1.96 * values.std() / np.sqrt(400)
    low, high = bootstrap_mean(values)
    assert low == pytest.approx(values.mean() - half_width, abs=half_width / 10)
    assert high == pytest.approx(values.mean() + half_width, abs=half_width / 10)


@quick
@given(score_arrays, seeds)
def test_bootstrap_is_deterministic_and_contains_mean(values, seed):
    low, high = bootstrap_mean(values, seed=seed)
    assert (low, high) == bootstrap_mean(values.copy(), seed=seed)
    rounding = 1e-12
    assert values.min() - rounding <= low <= values.mean() + rounding
    assert values.mean() - rounding <= high <= values.max() + rounding


def test_bootstrap_ends_vary_little_between_seeds():
    values = np.random.default_rng(1).random(300)
    ends = np.array([bootstrap_mean(values, seed=seed) for seed in range(20)])
    assert len(np.unique(ends[:, 0])) > 1
    width = np.diff(ends.mean(0))[0]
    assert (ends.std(0) < width / 10).all()  # the precision documented at RESAMPLES


def test_bootstrap_is_independent_of_block_size(monkeypatch):
    values = np.random.default_rng(1).random(37)
    expected = bootstrap_mean(values)
    monkeypatch.setattr(confidence, "_BLOCK", 1000)
    assert bootstrap_mean(values) == expected


def test_resampled_sums_equal_sums_of_indexed_rows():
    values = np.random.default_rng(1).random((23, 3))
    indices = np.random.default_rng(5).integers(0, 23, (RESAMPLES, 23))
    np.testing.assert_allclose(resampled_sums(values, seed=5), values[indices].sum(1), rtol=1e-12)


def test_bootstrap_of_columns_equals_single_column_bootstrap():
    values = np.random.default_rng(1).random((50, 4))
    low, high = bootstrap_means(values, seed=2)
    for position, column in enumerate(values.T):
        expected = bootstrap_mean(column, seed=2)
        assert (low[position], high[position]) == pytest.approx(expected, rel=1e-12)
