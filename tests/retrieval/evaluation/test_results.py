"""Means with intervals, by class, compared, and by score: each against a plain loop."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation import results as results_of
from retrieval.evaluation.comparison import compare
from retrieval.evaluation.judged import SCORED, judge, judge_unanswered
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.measures import names
from retrieval.evaluation.results import by_class, gather, measured
from retrieval.evaluation.thresholds import thresholds
from retrieval.intervals import bootstrap_mean
from tests.retrieval.evaluation.tables import gallery, matches, queries
from tests.retrieval.vectors import METRICS, quick

GALLERY = Labels(gallery(cat=2, dog=1))


def ranked(**rankings):
    """Make results from {query: its matches}, "cd" a cat, then a dog; c… queries are cats."""
    kinds = {"c": "cat", "d": "dog"}
    rows = [
        (q, kinds[q[0]], rank, f"{kind}{rank}", kinds[kind])
        for q, order in rankings.items()
        for rank, kind in enumerate(order, 1)
    ]
    return judge(matches(*rows), GALLERY)


ONE = gather([ranked(c1="cdc", c2="ddc", d1="dcc")], names())


def test_parts_are_put_together_and_unanswered_queries_are_among_them():
    parts = [ranked(c1="cdc"), ranked(c2="ddc", d1="dcc"), judge_unanswered(
        queries(c9="cat", x=None), GALLERY)]  # fmt: skip
    whole = gather(parts, names())
    assert whole.queries["query_id"].to_pylist() == ["c1", "c2", "d1", "c9"]
    assert whole.queries["matches"].to_pylist() == [3, 3, 3, 0]
    assert whole.queries["relevant"].to_pylist() == [2, 2, 1, 2]
    assert whole.values("map").ravel() == pytest.approx([(1 + 2 / 3) / 2, (1 / 3) / 2, 1, 0])
    assert whole.scored["query"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert whole.left_out == 1


def test_means_have_seeded_intervals_over_queries():
    found = {one.name: one for one in measured(ONE, seed=3)}
    assert tuple(found) == names()
    assert found["top1"].value == 2 / 3
    expected = bootstrap_mean(ONE.values("map").ravel(), seed=3)
    assert (found["map"].low, found["map"].high) == pytest.approx(expected, rel=1e-12)
    assert measured(ONE, seed=3) == measured(ONE, seed=3)


def test_classes_come_worst_first_and_have_the_intervals_they_have_alone(monkeypatch):
    monkeypatch.setattr(results_of, "_COLUMNS", 3)
    generator = np.random.default_rng(0)
    sizes = [1, 5, 5, 5, 8, 12]
    labels = np.repeat([f"k{n}" for n in range(6)], sizes)
    values = generator.random((len(labels), 2))
    order = generator.permutation(len(labels))
    table = pa.table({"label": labels[order], "top1": values[order, 0], "map": values[order, 1]})
    found = by_class(results_of.Results(table, SCORED.empty_table(), ("top1", "map"), 0, 0), seed=1)
    assert [one.measures[1].value for one in found] == sorted(
        one.measures[1].value for one in found
    )
    for one in found:
        own = table.filter(pa.array(labels[order] == one.label))
        assert one.queries == len(own)
        for measure in one.measures:
            alone = own[measure.name].to_numpy()
            assert measure.value == pytest.approx(alone.mean())
            ends = bootstrap_mean(alone, seed=1) if len(alone) > 1 else (np.nan, np.nan)
            assert (measure.low, measure.high) == pytest.approx(ends, rel=1e-9, nan_ok=True)


def test_some_classes_alone():
    cats = ONE.of_labels(["cat"])
    assert cats.queries["query_id"].to_pylist() == ["c1", "c2"]
    assert len(cats.scored) == 6
    assert cats.left_out == 1


def test_a_comparison_is_paired_by_query_and_signed():
    other = gather([ranked(c2="cdd", c1="cdc", d7="d")], names())
    found = compare(ONE, other, seed=0)
    assert (found.queries, found.only_here, found.only_there) == (2, 1, 1)
    difference = {one.name: one for one in found.differences}
    assert difference["top1"].value == (0 - 1) / 2
    change = (1 / 3) / 2 - (1 / 1) / 2
    assert difference["map"].value == pytest.approx(change / 2)
    expected = bootstrap_mean(np.array([0.0, change]), seed=0)
    assert (difference["map"].low, difference["map"].high) == pytest.approx(expected)
    assert found.changed["query_id"].to_pylist() == ["c2"]
    assert found.changed["here"].to_pylist() == pytest.approx([(1 / 3) / 2])
    assert found.changed["there"].to_pylist() == pytest.approx([(1 / 1) / 2])


def test_a_ranking_differs_in_nothing_from_itself():
    found = compare(ONE, ONE, seed=0)
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in found.differences)
    assert len(found.changed) == 0


def test_rankings_without_a_common_query_are_not_compared():
    found = compare(ONE, gather([ranked(d8="d")], names()), seed=0)
    assert (found.queries, found.only_here, found.only_there) == (0, 3, 1)


scores = st.sampled_from([0.1, 0.25, 0.251, 0.3, 0.50001, 0.50002, 0.7, 0.9])
scored = st.lists(st.tuples(scores, st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


@quick
@given(rows=scored, metric=st.sampled_from(METRICS))
def test_a_threshold_is_the_loosest_that_gives_the_precision(rows, metric):
    wanted = (0.5, 0.75, 1.0)
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, schema=SCORED)
    found = {one.wanted: one for one in thresholds(table, metric, seed=0, wanted=wanted)}

    def kept(cut):
        return [r for s, _, r in rows if (s <= cut if metric == "l2" else s >= cut)]

    def precision(cut):
        return sum(kept(cut)) / len(kept(cut))

    loosest = {}
    for share in wanted:
        cuts = [s for s in columns[0] if precision(s) >= share]
        if cuts:
            loosest[max(cuts) if metric == "l2" else min(cuts)] = share
    assert sorted(found) == sorted(loosest.values())
    for cut, share in loosest.items():
        one = found[share]
        assert kept(one.score) == kept(cut), "a shorter decimal keeps the same"
        assert one.precision == pytest.approx(precision(cut))
        assert one.kept == len(kept(cut)) / len(rows)
        assert one.matches == len(kept(cut))
        assert one.found == pytest.approx(sum(kept(cut)) / max(1, sum(columns[2])))
        assert one.low <= one.precision + 1e-9
        assert one.high >= one.precision - 1e-9


def test_nothing_right_gives_no_threshold():
    table = pa.table([[0.5, 0.6], [0, 1], [False, False]], schema=SCORED)
    assert thresholds(table, "cosine", seed=0) == ()
    assert thresholds(SCORED.empty_table(), "cosine", seed=0) == ()
