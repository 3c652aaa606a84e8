"""Test isotonic regression against its min-max formula, and the probabilities at its edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation.isotonic import fit_probabilities, pool_adjacent_violators

observations = st.lists(
    st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25
)  # few distinct values, so that ties occur


def min_max_fit(means, weights):
    """Return the isotonic fit by its formula: max over a <= i of min over b >= i of mean(a..b)."""
    count = len(means)

    def mean(first, last):
        chosen = slice(first, last + 1)
        return np.average(means[chosen], weights=weights[chosen])

    return [
        max(min(mean(a, b) for b in range(i, count)) for a in range(i + 1)) for i in range(count)
    ]


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=1, max_size=20))
def test_pooling_equals_the_min_max_formula(pairs):
    means, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    values, starts = pool_adjacent_violators(means, weights)
    fit = np.repeat(values, np.diff(starts, append=len(means)))
    np.testing.assert_allclose(fit, min_max_fit(means, weights), atol=1e-9)
    assert np.all(np.diff(values) > 0)


@given(observations)
def test_probabilities_increase_and_are_never_certain(pairs):
    values, right = (np.array(column) for column in zip(*pairs, strict=True))
    knots, heights = fit_probabilities(values.astype(float), right.astype(bool))
    assert np.all(np.diff(knots) > 0)
    assert np.all(np.diff(heights) >= 0)
    assert np.all((heights > 0) & (heights < 1))
    # the fit keeps the total: the two added observations are one right and one wrong
    fitted = np.interp([*values, knots[0], knots[-1]], knots, heights)
    assert fitted.sum() == pytest.approx(right.sum() + 1)


@given(observations, st.randoms())
def test_probabilities_do_not_depend_on_the_order(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    first, second = (
        fit_probabilities(*(np.array(column) for column in zip(*rows, strict=True)))
        for rows in (pairs, shuffled)
    )
    np.testing.assert_array_equal(np.stack(first), np.stack(second))


@pytest.mark.parametrize(("right", "expected"), [(True, 9 / 10), (False, 1 / 10)])
@pytest.mark.parametrize("values", [np.zeros(8), np.arange(8.0)])
def test_all_right_or_all_wrong_follows_the_rule_of_succession(values, right, expected):
    knots, heights = fit_probabilities(values, np.full(8, right))
    np.testing.assert_allclose(np.interp([-1.0, 3.0, 99.0], knots, heights), expected)


def test_constant_values_have_the_share_that_is_right():
    _, heights = fit_probabilities(np.full(8, 0.5), np.arange(8) < 6)
    np.testing.assert_allclose(heights, [7 / 10])
