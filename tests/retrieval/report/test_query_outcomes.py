"""Tests of query outcomes against a loop over matches, and of the sampling of queries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.report.query_outcomes import NO_HIT, QueryOutcomes, first_hits_and_precision

LISTS = st.lists(st.lists(st.integers(-2, 3), min_size=1, max_size=6), max_size=6)


def ranking_outcome(grades):
    """Return the rank of the first relevant match and the average precision of one ranking."""
    rank, hits, precision_sum, first = 0, 0, 0.0, NO_HIT
    for grade in grades:
        if grade < 0:
            continue
        rank += 1
        if grade > 0:
            hits += 1
            precision_sum += hits / rank
            first = min(first, rank)
    return first, precision_sum / rank if rank else float("nan")


@settings(max_examples=200, deadline=None)
@given(LISTS)
def test_first_hits_and_precision_equal_loop(lists):
    grades = np.array([grade for ranking in lists for grade in ranking], np.int16)
    starts = np.cumsum([0, *map(len, lists)])[:-1].astype(np.int64)
    first, precision = first_hits_and_precision(grades, starts)
    expected = [ranking_outcome(ranking) for ranking in lists]
    assert first.tolist() == [expected_first for expected_first, _ in expected]
    assert np.allclose(
        precision, [expected_precision for _, expected_precision in expected], equal_nan=True
    )


def make_outcomes(**lists):
    outcomes_per_query = [ranking_outcome(grades) for grades in lists.values()]
    grades = np.array([grade for ranking in lists.values() for grade in ranking], np.int16)
    return QueryOutcomes(
        list(lists),
        np.zeros(len(grades)),
        grades,
        np.array([first for first, _ in outcomes_per_query], np.int32),
        np.array([precision for _, precision in outcomes_per_query]),
        np.zeros(len(lists), np.int32),
    )


def test_worst_queries_are_sorted_by_first_hit_without_unknown():
    outcomes = make_outcomes(
        best=[1, 1], late=[0, 0, 1], never=[0, 0], second=[0, 1, 0], second_more=[0, 1, 1],
        unknown=[-2, -2], junk_first=[-1, 1],
    )  # fmt: skip
    assert outcomes.worst(9) == ["never", "late", "second", "second_more"]
    assert outcomes.worst(2) == ["never", "late"]
    assert outcomes.has_grade.tolist() == [True] * 5 + [False, True]


@pytest.mark.parametrize("limit", [0, 3, 100])
def test_sample_depends_on_names_and_seed_only(limit):
    names = [f"q{number:03}" for number in range(20)]
    sampled = make_outcomes(**{name: [1] for name in names}).sample(limit, 0)
    sampled_again = make_outcomes(**{name: [0] for name in reversed(names)}).sample(limit, 0)
    assert sampled == sampled_again == sorted(sampled)
    assert len(set(sampled)) == min(limit, 20)
    if limit == 3:
        assert sampled != make_outcomes(**{name: [1] for name in names}).sample(limit, 1)
