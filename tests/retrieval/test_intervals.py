"""Bootstrap intervals of a mean: known cases, seeded, and about as wide as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import intervals
from retrieval.intervals import (
    RESAMPLES,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_ratios,
    resampled_sums,
)
from tests.retrieval.vectors import quick, seeds

shares = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.array)


def test_nothing_has_no_interval():
    assert np.isnan(bootstrap_mean(np.empty(0))).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3e10])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_a_constant_has_a_point(value, count):
    assert bootstrap_mean(np.full(count, value)) == pytest.approx((value, value), rel=1e-12)


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
    monkeypatch.setattr(intervals, "_BLOCK", 1000)
    assert bootstrap_mean(values) == whole


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_true_mean_lies_within_as_often_as_is_said(share):
    generator = np.random.default_rng(3)
    held = 0
    for seed in range(300):
        low, high = bootstrap_mean((generator.random(150) < share).astype(float), seed=seed)
        held += low <= share <= high
    assert 0.90 <= held / 300 <= 0.98


def test_sums_are_those_of_rows_drawn_one_by_one():
    values = np.random.default_rng(1).random((23, 3))
    drawn = np.random.default_rng(5).integers(0, 23, (RESAMPLES, 23))
    np.testing.assert_allclose(resampled_sums(values, seed=5), values[drawn].sum(1), rtol=1e-12)


def test_columns_have_the_intervals_that_they_have_alone():
    values = np.random.default_rng(1).random((50, 4))
    low, high = bootstrap_means(values, seed=2)
    for place, column in enumerate(values.T):
        expected = bootstrap_mean(column, seed=2)
        assert (low[place], high[place]) == pytest.approx(expected, rel=1e-12)


def test_a_ratio_is_of_sums_and_not_of_means_of_ratios():
    """Rows of one match and of a thousand: precision is over all matches."""
    generator = np.random.default_rng(1)
    kept = generator.choice([1.0, 1000.0], (200, 1))
    right = np.floor(kept * 0.6)
    low, high = bootstrap_ratios(right, kept)
    assert low[0] < right.sum() / kept.sum() < high[0]
    drawn = np.random.default_rng(0).integers(0, 200, (RESAMPLES, 200))
    expected = np.quantile(right[drawn].sum((1, 2)) / kept[drawn].sum((1, 2)), [0.025, 0.975])
    assert (low[0], high[0]) == pytest.approx(tuple(expected))


def test_a_ratio_under_which_nothing_ever_is_has_no_interval():
    low, high = bootstrap_ratios(np.zeros((5, 2)), np.array([[0.0, 1.0]] * 5))
    assert np.isnan([low[0], high[0]]).all()
    assert (low[1], high[1]) == (0, 0)
