"""Test means, intervals, classes, comparison and thresholds against plain loops."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.confidence import (
    MIN_SAMPLE_SIZE,
    class_means,
    difference_intervals,
    score_intervals,
)
from retrieval.core.errors import InputError
from retrieval.evaluation import results as results_of
from retrieval.evaluation.comparison import compare_results
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.measures import measure_keys
from retrieval.evaluation.relevance import SCORED_MATCHES, grade_rankings, grade_unanswered
from retrieval.evaluation.results import measure_rankings, summarize, summarize_by_class
from retrieval.evaluation.thresholds import find_thresholds
from tests.retrieval.evaluation.tables import gallery, matches, queries
from tests.retrieval.sample_vectors import METRICS, quick

GALLERY = Labels(gallery(cat=2, dog=1))


def ranked(**rankings):
    """Make results from {query: its matches}, "cd" a cat, then a dog; c… queries are cats."""
    kinds = {"c": "cat", "d": "dog"}
    rows = [
        (q, kinds[q[0]], rank, f"{kind}{rank}", kinds[kind])
        for q, order in rankings.items()
        for rank, kind in enumerate(order, 1)
    ]
    return grade_rankings(matches(*rows), GALLERY)


ONE = measure_rankings([ranked(c1="cdc", c2="ddc", d1="dcc")], measure_keys())


def test_parts_are_put_together_and_unanswered_queries_are_among_them():
    parts = [ranked(c1="cdc"), ranked(c2="ddc", d1="dcc"), grade_unanswered(
        queries(c9="cat", x=None), GALLERY)]  # fmt: skip
    whole = measure_rankings(parts, measure_keys())
    assert whole.queries["query_id"].to_pylist() == ["c1", "c2", "d1", "c9"]
    assert whole.queries["matches"].to_pylist() == [3, 3, 3, 0]
    assert whole.queries["relevant"].to_pylist() == [2, 2, 1, 2]
    assert whole.values("map").ravel() == pytest.approx([(1 + 2 / 3) / 2, (1 / 3) / 2, 1, 0])
    assert whole.scored["query"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert whole.left_out == 1


def drawn(sizes, seed=0):
    """Make results of classes of some sizes, with top1 and map at random, in random order."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([f"k{n}" for n in range(len(sizes))], sizes)
    order = generator.permutation(len(labels))
    columns = {
        "query_id": [f"q{n}" for n in range(len(labels))], "label": labels[order],
        "top1": (generator.random(len(labels)) < 0.6).astype(float)[order],
        "map": generator.random(len(labels))[order],
    }  # fmt: skip
    return results_of.Results(
        pa.table(columns), SCORED_MATCHES.empty_table(), ("top1", "map"), 0, 0
    )


def ends_of(*values, weights=None):
    intervals = score_intervals if len(values) == 1 else difference_intervals
    low, high = intervals(*(np.asarray(each)[:, None] for each in values), weights)
    return pytest.approx((low[0], high[0]), rel=1e-9, nan_ok=True)


def test_a_handful_of_queries_has_means_and_no_interval():
    found = {one.key: one for one in summarize(ONE)}
    assert tuple(found) == measure_keys()
    assert found["top1"].value == 2 / 3
    assert not any(one.has_interval for one in found.values())
    assert np.isnan(found["map"].low)


def test_means_have_intervals_over_queries():
    results = drawn([20, 10])
    for one in summarize(results):
        values = results.values(one.key).ravel()
        assert one.value == pytest.approx(values.mean())
        assert (one.low, one.high) == ends_of(values)


def test_over_classes_a_class_is_what_is_drawn():
    results = drawn([3, 9, 5, 5, 8, 12, 4, 6, 7, 5, 9, 2])
    codes = results.queries["label"].combine_chunks().dictionary_encode().indices.to_numpy()
    for one in summarize(results, over="classes"):
        values = results.values(one.key)
        means, sizes = class_means(values, codes.astype(int))
        assert one.value == pytest.approx(values.mean())
        assert (one.low, one.high) == ends_of(means.ravel(), weights=sizes)
    few = summarize(drawn([20] * (MIN_SAMPLE_SIZE - 1)), over="classes")
    assert not any(one.has_interval for one in few)


def test_over_classes_queries_need_a_class():
    results = drawn([3, 9])
    table = results.queries.set_column(1, "label", pa.array(["cat", None] * 6))
    unlabelled = results_of.Results(table, SCORED_MATCHES.empty_table(), ("top1", "map"), 0, 0)
    with pytest.raises(InputError, match="--intervals-over classes: 6 queries have no class"):
        summarize(unlabelled, over="classes")


def test_classes_come_worst_first_and_have_the_intervals_they_have_alone():
    generator = np.random.default_rng(0)
    sizes = [1, 5, 15, 15, 15, 12]
    labels = np.repeat([f"k{n}" for n in range(6)], sizes)
    values = generator.random((len(labels), 2))
    order = generator.permutation(len(labels))
    table = pa.table({"label": labels[order], "top1": values[order, 0], "map": values[order, 1]})
    found = summarize_by_class(
        results_of.Results(table, SCORED_MATCHES.empty_table(), ("top1", "map"), 0, 0)
    )
    assert [one.measures[1].value for one in found] == sorted(
        one.measures[1].value for one in found
    )
    for one in found:
        own = table.filter(pa.array(labels[order] == one.label))
        assert one.queries == len(own)
        for measure in one.measures:
            alone = own[measure.key].to_numpy()
            assert measure.value == pytest.approx(alone.mean())
            assert (measure.low, measure.high) == ends_of(alone)
            assert measure.has_interval == (len(alone) >= MIN_SAMPLE_SIZE)


def test_some_classes_alone():
    cats = ONE.of_labels(["cat"])
    assert cats.queries["query_id"].to_pylist() == ["c1", "c2"]
    assert len(cats.scored) == 6
    assert cats.left_out == 1


def test_a_comparison_is_paired_by_query_and_signed():
    other = measure_rankings([ranked(c2="cdd", c1="cdc", d7="d")], measure_keys())
    found = compare_results(ONE, other)
    assert (found.queries, found.only_first, found.only_second) == (2, 1, 1)
    difference = {one.key: one for one in found.differences}
    assert difference["top1"].value == (0 - 1) / 2
    change = (1 / 3) / 2 - (1 / 1) / 2
    assert difference["map"].value == pytest.approx(change / 2)
    assert np.isnan(difference["map"].low), "two queries are too few"
    assert found.changed["query_id"].to_pylist() == ["c2"]
    assert found.changed["here"].to_pylist() == pytest.approx([(1 / 3) / 2])
    assert found.changed["there"].to_pylist() == pytest.approx([(1 / 1) / 2])


def test_a_ranking_differs_in_nothing_from_itself():
    results = drawn([20, 20])
    found = compare_results(results, results)
    assert len(found.changed) == 0
    for one in found.differences:
        assert (one.value, f"{one.value}") == (0, "0.0")
        assert -0.1 < one.low < 0 < one.high < 0.1, "which is no proof that it never would"


def test_differences_have_paired_intervals():
    here, there = drawn([12, 28], 1), drawn([12, 28], 2)
    there = results_of.Results(
        there.queries.set_column(1, "label", here.queries["label"]), there.scored,
        there.measures, 0, 0,
    )  # fmt: skip
    for one in compare_results(here, there).differences:
        values = here.values(one.key).ravel(), there.values(one.key).ravel()
        assert one.value == pytest.approx((values[0] - values[1]).mean())
        assert (one.low, one.high) == ends_of(*values)
    over = compare_results(here, there, "classes").differences
    assert np.isnan([one.low for one in over]).all(), "two classes are too few"


def test_rankings_without_a_common_query_are_not_compared():
    found = compare_results(ONE, measure_rankings([ranked(d8="d")], measure_keys()))
    assert (found.queries, found.only_first, found.only_second) == (0, 3, 1)


scores = st.sampled_from([0.1, 0.25, 0.251, 0.3, 0.50001, 0.50002, 0.7, 0.9])
scored = st.lists(st.tuples(scores, st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


@quick
@given(rows=scored, metric=st.sampled_from(METRICS))
def test_a_threshold_is_the_loosest_that_gives_the_precision(rows, metric):
    wanted = (0.5, 0.75, 1.0)
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, schema=SCORED_MATCHES)
    found = {one.wanted: one for one in find_thresholds(table, metric, wanted=wanted)}

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
        assert np.isnan([one.low, one.high]).all(), "no more than five queries"


def test_the_precision_at_a_threshold_has_an_interval_over_queries():
    """20 queries of 1 to 4 matches at one score; a query is right in all or in none of them."""
    sizes = np.resize([1, 2, 3, 4], 20)
    right = np.resize([True, True, False], 20)
    rows = [np.full(sizes.sum(), 0.5), np.repeat(np.arange(20), sizes), np.repeat(right, sizes)]
    [one] = find_thresholds(pa.table(rows, schema=SCORED_MATCHES), "cosine", wanted=(0.5,))
    assert one.precision == (sizes * right).sum() / sizes.sum()
    assert (one.low, one.high) == ends_of(right.astype(float), weights=sizes[:, None].astype(float))
    assert one.high - one.low > 0.35, "as wide as 17 witnesses are, not 50"


def test_nothing_right_gives_no_threshold():
    table = pa.table([[0.5, 0.6], [0, 1], [False, False]], schema=SCORED_MATCHES)
    assert find_thresholds(table, "cosine") == ()
    assert find_thresholds(SCORED_MATCHES.empty_table(), "cosine") == ()
