"""Test query outcomes against a count per query, and the sampling of queries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.report.query_outcomes import NO_HIT, QueryOutcomes, first_hits_and_precision

LISTS = st.lists(st.lists(st.integers(-2, 3), min_size=1, max_size=6), max_size=6)


def one_by_one(grades):
    seen, hits, total, first = 0, 0, 0.0, NO_HIT
    for grade in grades:
        if grade < 0:
            continue
        seen += 1
        if grade > 0:
            hits += 1
            total += hits / seen
            first = min(first, seen)
    return first, total / seen if seen else float("nan")


@settings(max_examples=200, deadline=None)
@given(LISTS)
def test_first_and_precision_are_those_of_counting(lists):
    grades = np.array([grade for each in lists for grade in each], np.int16)
    starts = np.cumsum([0, *map(len, lists)])[:-1].astype(np.int64)
    first, precision = first_hits_and_precision(grades, starts)
    expected = [one_by_one(each) for each in lists]
    assert first.tolist() == [one for one, _ in expected]
    assert np.allclose(precision, [two for _, two in expected], equal_nan=True)


def standings(**lists):
    stands = [one_by_one(grades) for grades in lists.values()]
    grades = np.array([grade for each in lists.values() for grade in each], np.int16)
    return QueryOutcomes(
        list(lists), np.zeros(len(grades)), grades, np.array([f for f, _ in stands], np.int32),
        np.array([p for _, p in stands]), np.zeros(len(lists), np.int32),
    )  # fmt: skip


def test_worst_is_who_finds_the_right_one_last_and_unknown_is_not_bad():
    made = standings(
        best=[1, 1], late=[0, 0, 1], never=[0, 0], second=[0, 1, 0], second_more=[0, 1, 1],
        unknown=[-2, -2], junk_first=[-1, 1],
    )  # fmt: skip
    assert made.worst(9) == ["never", "late", "second", "second_more"]
    assert made.worst(2) == ["never", "late"]
    assert made.has_grade.tolist() == [True] * 5 + [False, True]


@pytest.mark.parametrize("most", [0, 3, 100])
def test_queries_are_drawn_by_their_names_alone(most):
    names = [f"q{number:03}" for number in range(20)]
    made = standings(**{name: [1] for name in names}).sample(most, 0)
    again = standings(**{name: [0] for name in reversed(names)}).sample(most, 0)
    assert made == again == sorted(made)
    assert len(set(made)) == min(most, 20)
    if most == 3:
        assert made != standings(**{name: [1] for name in names}).sample(most, 1)
