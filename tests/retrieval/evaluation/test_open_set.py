"""Test open-set measures against plain loops over the queries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation.open_set import measure_open_set

queries = st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=30)


@given(queries)
def test_measures_equal_plain_loops(rows):
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    evidence, right, known = np.array(columns[0], float), *(np.array(c, bool) for c in columns[1:])
    result = measure_open_set(evidence, right, known)
    if known.all() or not known.any():
        assert result is None
        return
    pairs = [(a > b) + (a == b) / 2 for a in evidence[known] for b in evidence[~known]]
    assert result.auroc == pytest.approx(np.mean(pairs))
    for each in result.identifications:
        passing = evidence >= each.threshold
        assert each.false_positives == np.mean(passing[~known]) <= each.rate
        assert each.identified == np.mean((passing & right)[known])
        # no lower evidence keeps the rate
        lower = evidence[~known][evidence[~known] < each.threshold]
        assert np.mean(evidence[~known] >= lower.max()) > each.rate


def test_perfect_separation_identifies_every_query():
    evidence = np.array([0.9] * 12 + [0.1] * 12)
    known = np.arange(24) < 12
    result = measure_open_set(evidence, known, known)
    assert (result.auroc, result.known, result.unknown) == (1.0, 12, 12)
    for each in result.identifications:
        assert each.identified == 1.0
        assert each.low < 1.0
    assert [each.name for each in result.identifications] == ["DIR@0.01", "DIR@0.1"]


def test_queries_without_a_match_are_never_identified():
    evidence = np.array([-np.inf] * 11 + [0.5, -np.inf])
    known = np.array([True] * 12 + [False])
    result = measure_open_set(evidence, known, known)
    assert result.identifications[0].identified == pytest.approx(1 / 12)
    assert result.auroc == pytest.approx((11 / 2 + 1) / 12)
