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
from tests.retrieval.coverage import CASES, SIZES, covered
from tests.retrieval.sample_vectors import quick, seeds

shares = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.array)


def of(values, weights=None):
    low, high = score_intervals(np.asarray(values, float)[:, None], weights)
    return float(low[0]), float(high[0])


def wilson(right, count, z=1.959963984540054):
    """Wilson's interval, as he writes it."""
    share = right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


# --- score intervals ----------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "count"), [(15, 15), (0, 15), (14, 15), (25, 50), (196, 200)])
def test_of_shares_it_is_wilsons(right, count):
    values = [1.0] * right + [0.0] * (count - right)
    assert of(values) == pytest.approx(wilson(right, count), abs=1e-12)


def test_fifteen_of_fifteen_is_not_certain():
    assert of([1.0] * 15) == pytest.approx((0.796, 1.0), abs=5e-4)


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
def test_equal_values_are_no_point(value):
    low, high = of([value] * 30)
    assert low <= value <= high
    assert high - low > 0.05


def test_a_handful_has_none():
    assert np.isnan(of([])).all()
    assert np.isnan(of([1.0] * (MIN_SAMPLE_SIZE - 1))).all()
    assert np.isfinite(of([1.0] * MIN_SAMPLE_SIZE)).all()


def test_of_many_values_it_is_the_textbooks():
    values = np.random.default_rng(1).beta(2, 2, 4000)
    half = 1.96 * values.std() / np.sqrt(4000)
    ends = values.mean() - half, values.mean() + half
    assert of(values) == pytest.approx(ends, abs=half / 20)


@quick
@given(st.lists(st.floats(0, 1), min_size=MIN_SAMPLE_SIZE, max_size=40))
def test_it_holds_the_mean_and_stays_within_the_bounds(values):
    low, high = of(values)
    assert 0 <= low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= high <= 1
    assert low < high


def test_columns_are_as_alone():
    values = np.random.default_rng(1).random((50, 4))
    together = np.stack(score_intervals(values))
    alone = np.stack([of(column) for column in values.T], axis=1)
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_rows_count_by_their_weight():
    """Two rows of weight 2 for four: fewer witnesses, a wider interval about the same mean."""
    values = np.random.default_rng(2).random(40)
    weights = np.array([1.0, 3.0] * 20)[:, None]
    low, high = of(values, weights)
    mean = (values * weights[:, 0]).sum() / 80
    assert low < mean < high
    assert of(values, 7 * weights) == pytest.approx((low, high), abs=1e-12)
    nothing = np.append(weights, np.zeros((5, 1)), axis=0)
    assert of([*values, *[0.0] * 5], nothing) == (low, high), "weight 0 does not count"
    assert np.isnan(of([1.0] * 40, np.array([[1.0]] * 9 + [[0.0]] * 31))).all()
    one = np.array([1e6] + [1.0] * 39)[:, None]
    low, high = of([1.0] * 40, one)
    assert low < 0.3, "a row that outweighs all others is one witness"


# --- paired differences -------------------------------------------------------------------------


def of_pairs(first, second):
    columns = (np.asarray(values, float)[:, None] for values in (first, second))
    low, high = difference_intervals(*columns)
    return float(low[0]), float(high[0])


def test_rankings_that_do_not_differ_are_still_not_certainly_equal():
    right = [1.0] * 40 + [0.0] * 20
    low, high = of_pairs(right, right)
    assert low == pytest.approx(-high, abs=1e-12)
    assert 0.02 < high < 0.06
    low, high = of_pairs([1.0] * 60, [1.0] * 60)
    assert (low, high) == pytest.approx((-0.0602, 0.0602), abs=1e-4), "as by Tango's score interval"
    low, high = of_pairs([0.5] * 60, [0.5] * 60)
    assert low < -0.01 < 0.01 < high
    low, high = of_pairs([0.1] * 60, [0.3] * 60)  # their means are rounded
    alone = [end - begin for begin, end in (of([0.1] * 60), of([0.3] * 60))]
    assert high - low > 0.9 * np.hypot(*alone), "equal values go together with nothing"


def test_of_matched_proportions_it_is_about_newcombes():
    """12 queries won, 4 lost, 50 right and 34 wrong in both."""
    first = [1.0] * 12 + [0.0] * 4 + [1.0] * 50 + [0.0] * 34
    second = [0.0] * 12 + [1.0] * 4 + [1.0] * 50 + [0.0] * 34
    (low, high), (other_low, other_high) = wilson(62, 100), wilson(54, 100)
    correlation = (50 * 34 - 12 * 4) / np.sqrt(62 * 38 * 54 * 46)
    a, b, c, d = 0.62 - low, other_high - 0.54, high - 0.62, 0.54 - other_low
    theirs = (
        0.08 - np.sqrt(a * a - 2 * correlation * a * b + b * b),
        0.08 + np.sqrt(c * c - 2 * correlation * c * d + d * d),
    )
    assert of_pairs(first, second) == pytest.approx(theirs, abs=0.003)


@quick
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=MIN_SAMPLE_SIZE, max_size=40))
def test_it_holds_the_difference_and_is_never_a_point(pairs):
    first, second = np.array(pairs).T
    low, high = of_pairs(first, second)
    difference = first.mean() - second.mean()
    assert -1 - 1e-12 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1 + 1e-12
    assert high - low > 0.005
    other_low, other_high = of_pairs(second, first)
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-12)


def test_pairs_that_go_together_are_surer_than_two_intervals():
    generator = np.random.default_rng(4)
    second = generator.beta(2, 2, 60)
    first = np.clip(second + 0.03 + 0.05 * generator.standard_normal(60), 0, 1)
    low, high = of_pairs(first, second)
    both = [of(first), of(second)]
    assert high - low < 0.25 * sum(end - begin for begin, end in both)
    assert low > 0


def test_few_pairs_have_none():
    assert np.isnan(of_pairs([0.0] * 5, [1.0] * 5)).all()


# --- classes ------------------------------------------------------------------------------------


def test_classes_are_means_with_the_number_of_their_queries():
    values = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 1.0]])
    means, sizes = class_means(values, np.array([0, 0, 1]))
    assert means.tolist() == [[0.5, 0.0], [0.5, 1.0]]
    assert sizes.tolist() == [[2.0], [1.0]]


def test_queries_of_a_class_that_are_all_alike_are_one_witness():
    """300 queries of 20 classes, each class wholly right or wholly wrong."""
    right = np.arange(20) % 2 == 0
    values = np.repeat(right, 15).astype(float)[:, None]
    ends = score_intervals(*class_means(values, np.repeat(np.arange(20), 15)))
    assert (ends[0][0], ends[1][0]) == pytest.approx(wilson(10, 20), abs=1e-12)
    over_queries = score_intervals(values)
    assert ends[1][0] - ends[0][0] > 3 * (over_queries[1][0] - over_queries[0][0])


def test_over_classes_the_truth_of_all_classes_is_held():
    """Classes differ, by a beta distribution; over queries a third of the intervals would miss."""
    generator, held = np.random.default_rng(5), [0, 0]
    for _ in range(400):
        skill = np.repeat(generator.beta(4, 2, 15), 12)
        values = (generator.random(180) < skill).astype(float)[:, None]
        classes = np.repeat(np.arange(15), 12)
        for place, rows in enumerate([(values, None), class_means(values, classes)]):
            low, high = score_intervals(*rows)
            held[place] += low[0] <= 4 / 6 <= high[0]
    assert held[0] < 0.8 * 400
    assert held[1] >= 0.93 * 400


# --- coverage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_truth_lies_within_about_as_often_as_is_said(case):
    for size in SIZES:
        ours, _ = covered(case, size)
        assert ours >= 0.88, (size, ours)
    assert covered(case, 200)[0] >= 0.925


def test_what_it_replaces_would_be_far_too_sure():
    assert covered("0 or 1, 98 % of them 1", 15)[1] < 0.3
    assert covered("AP: 95 % above 0.95, the others 0", 15)[1] < 0.6
    assert covered("paired AP: 4 % lose 0.5, the others hardly change", 15)[1] < 0.5


# --- bootstrap ----------------------------------------------------------------------------------


def test_nothing_has_no_interval():
    assert np.isnan(bootstrap_mean(np.empty(0))).all()


def test_a_normal_mean_has_the_textbook_interval():
    values = np.random.default_rng(1).normal(10, 2, 400)
    half = 1.96 * values.std() / np.sqrt(400)
    low, high = bootstrap_mean(values)
    assert low == pytest.approx(values.mean() - half, abs=half / 10)
    assert high == pytest.approx(values.mean() + half, abs=half / 10)


@quick
@given(shares, seeds)
def test_a_seed_gives_one_interval_around_the_mean_within_the_values(values, seed):
    low, high = bootstrap_mean(values, seed=seed)
    assert (low, high) == bootstrap_mean(values.copy(), seed=seed)
    rounding = 1e-12
    assert values.min() - rounding <= low <= values.mean() + rounding
    assert values.mean() - rounding <= high <= values.max() + rounding


def test_another_seed_gives_another_interval_of_nearly_the_same_ends():
    values = np.random.default_rng(1).random(300)
    ends = np.array([bootstrap_mean(values, seed=seed) for seed in range(20)])
    assert len(np.unique(ends[:, 0])) > 1
    width = np.diff(ends.mean(0))[0]
    assert (ends.std(0) < width / 10).all()  # as RESAMPLES says


def test_blocks_of_draws_do_not_matter(monkeypatch):
    values = np.random.default_rng(1).random(37)
    whole = bootstrap_mean(values)
    monkeypatch.setattr(confidence, "_BLOCK", 1000)
    assert bootstrap_mean(values) == whole


def test_sums_are_those_of_rows_drawn_one_by_one():
    values = np.random.default_rng(1).random((23, 3))
    drawn = np.random.default_rng(5).integers(0, 23, (RESAMPLES, 23))
    np.testing.assert_allclose(resampled_sums(values, seed=5), values[drawn].sum(1), rtol=1e-12)


def test_columns_have_the_bootstrap_intervals_that_they_have_alone():
    values = np.random.default_rng(1).random((50, 4))
    low, high = bootstrap_means(values, seed=2)
    for place, column in enumerate(values.T):
        expected = bootstrap_mean(column, seed=2)
        assert (low[place], high[place]) == pytest.approx(expected, rel=1e-12)
