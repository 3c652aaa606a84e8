"""Tests of means, intervals, classes, comparisons and thresholds against plain loops."""

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
from retrieval.evaluation import results as results_module
from retrieval.evaluation.comparison import compare_results
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.measures import measure_keys
from retrieval.evaluation.relevance import SCORED_MATCHES, grade_rankings, grade_unanswered
from retrieval.evaluation.results import measure_rankings, summarize, summarize_by_class
from retrieval.evaluation.thresholds import find_thresholds
from tests.retrieval.evaluation.tables import gallery, matches, queries
from tests.retrieval.sample_vectors import METRICS, quick

GALLERY = Labels(gallery(cat=2, dog=1))


def make_rankings(**rankings):
    """Return graded rankings from query_id="cd": first a cat, then a dog; c… queries are cats."""
    class_names = {"c": "cat", "d": "dog"}
    rows = [
        (query, class_names[query[0]], rank, f"{letter}{rank}", class_names[letter])
        for query, order in rankings.items()
        for rank, letter in enumerate(order, 1)
    ]
    return grade_rankings(matches(*rows), GALLERY)


RESULTS = measure_rankings([make_rankings(c1="cdc", c2="ddc", d1="dcc")], measure_keys())


def test_measures_are_concatenated_with_unanswered_queries():
    parts = [make_rankings(c1="cdc"), make_rankings(c2="ddc", d1="dcc"), grade_unanswered(
        queries(c9="cat", x=None), GALLERY)]  # fmt: skip
    results = measure_rankings(parts, measure_keys())
    assert results.queries["query_id"].to_pylist() == ["c1", "c2", "d1", "c9"]
    assert results.queries["matches"].to_pylist() == [3, 3, 3, 0]
    assert results.queries["relevant"].to_pylist() == [2, 2, 1, 2]
    assert results.values("map").ravel() == pytest.approx([(1 + 2 / 3) / 2, (1 / 3) / 2, 1, 0])
    assert results.scored["query"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert results.left_out == 1


def random_results(sizes, seed=0):
    """Return results of classes of given sizes with random top1 and map, in random order."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([f"k{n}" for n in range(len(sizes))], sizes)
    order = generator.permutation(len(labels))
    columns = {
        "query_id": [f"q{n}" for n in range(len(labels))], "label": labels[order],
        "top1": (generator.random(len(labels)) < 0.6).astype(float)[order],
        "map": generator.random(len(labels))[order],
    }  # fmt: skip
    return results_module.Results(
        pa.table(columns), SCORED_MATCHES.empty_table(), ("top1", "map"), 0, 0
    )


def approx_interval(*values, weights=None):
    intervals = score_intervals if len(values) == 1 else difference_intervals
    low, high = intervals(*(np.asarray(column)[:, None] for column in values), weights)
    return pytest.approx((low[0], high[0]), rel=1e-9, nan_ok=True)


def test_too_few_queries_have_means_without_intervals():
    measures = {measure.key: measure for measure in summarize(RESULTS)}
    assert tuple(measures) == measure_keys()
    assert measures["top1"].value == 2 / 3
    assert not any(measure.has_interval for measure in measures.values())
    assert np.isnan(measures["map"].low)


def test_means_have_intervals_over_queries():
    results = random_results([20, 10])
    for measure in summarize(results):
        values = results.values(measure.key).ravel()
        assert measure.value == pytest.approx(values.mean())
        assert (measure.low, measure.high) == approx_interval(values)


def test_intervals_over_classes_sample_class_means():
    results = random_results([3, 9, 5, 5, 8, 12, 4, 6, 7, 5, 9, 2])
    codes = results.queries["label"].combine_chunks().dictionary_encode().indices.to_numpy()
    for measure in summarize(results, over="classes"):
        values = results.values(measure.key)
        means, sizes = class_means(values, codes.astype(int))
        assert measure.value == pytest.approx(values.mean())
        assert (measure.low, measure.high) == approx_interval(means.ravel(), weights=sizes)
    too_few = summarize(random_results([20] * (MIN_SAMPLE_SIZE - 1)), over="classes")
    assert not any(measure.has_interval for measure in too_few)


def test_intervals_over_classes_require_labels():
    results = random_results([3, 9])
    table = results.queries.set_column(1, "label", pa.array(["cat", None] * 6))
    unlabelled = results_module.Results(table, SCORED_MATCHES.empty_table(), ("top1", "map"), 0, 0)
    with pytest.raises(InputError, match="--intervals-over classes: 6 queries have no class"):
        summarize(unlabelled, over="classes")


def test_classes_are_sorted_by_map_with_intervals_of_own_queries():
    generator = np.random.default_rng(0)
    sizes = [1, 5, 15, 15, 15, 12]
    labels = np.repeat([f"k{n}" for n in range(6)], sizes)
    values = generator.random((len(labels), 2))
    order = generator.permutation(len(labels))
    table = pa.table({"label": labels[order], "top1": values[order, 0], "map": values[order, 1]})
    class_results = summarize_by_class(
        results_module.Results(table, SCORED_MATCHES.empty_table(), ("top1", "map"), 0, 0)
    )
    assert [result.measures[1].value for result in class_results] == sorted(
        result.measures[1].value for result in class_results
    )
    for result in class_results:
        class_queries = table.filter(pa.array(labels[order] == result.label))
        assert result.queries == len(class_queries)
        for measure in result.measures:
            class_values = class_queries[measure.key].to_numpy()
            assert measure.value == pytest.approx(class_values.mean())
            assert (measure.low, measure.high) == approx_interval(class_values)
            assert measure.has_interval == (len(class_values) >= MIN_SAMPLE_SIZE)


def test_results_are_restricted_to_labels():
    cats = RESULTS.of_labels(["cat"])
    assert cats.queries["query_id"].to_pylist() == ["c1", "c2"]
    assert len(cats.scored) == 6
    assert cats.left_out == 1


def test_comparison_pairs_queries_and_signs_differences():
    other = measure_rankings([make_rankings(c2="cdd", c1="cdc", d7="d")], measure_keys())
    comparison = compare_results(RESULTS, other)
    assert (comparison.queries, comparison.only_first, comparison.only_second) == (2, 1, 1)
    differences = {difference.key: difference for difference in comparison.differences}
    assert differences["top1"].value == (0 - 1) / 2
    map_change = (1 / 3) / 2 - (1 / 1) / 2
    assert differences["map"].value == pytest.approx(map_change / 2)
    assert np.isnan(differences["map"].low), "two queries are too few"
    assert comparison.changed["query_id"].to_pylist() == ["c2"]
    assert comparison.changed["here"].to_pylist() == pytest.approx([(1 / 3) / 2])
    assert comparison.changed["there"].to_pylist() == pytest.approx([(1 / 1) / 2])


def test_comparison_with_itself_has_zero_differences():
    results = random_results([20, 20])
    comparison = compare_results(results, results)
    assert len(comparison.changed) == 0
    for difference in comparison.differences:
        assert (difference.value, f"{difference.value}") == (0, "0.0")
        assert -0.1 < difference.low < 0 < difference.high < 0.1, (
            "the interval has a positive width"
        )


def test_differences_have_paired_intervals():
    first, second = random_results([12, 28], 1), random_results([12, 28], 2)
    second = results_module.Results(
        second.queries.set_column(1, "label", first.queries["label"]), second.scored,
        second.measures, 0, 0,
    )  # fmt: skip
    for difference in compare_results(first, second).differences:
        values = first.values(difference.key).ravel(), second.values(difference.key).ravel()
        assert difference.value == pytest.approx((values[0] - values[1]).mean())
        assert (difference.low, difference.high) == approx_interval(*values)
    over_classes = compare_results(first, second, "classes").differences
    assert np.isnan([difference.low for difference in over_classes]).all(), (
        "two classes are too few"
    )


def test_comparison_without_common_queries_counts_both_sides():
    comparison = compare_results(RESULTS, measure_rankings([make_rankings(d8="d")], measure_keys()))
    assert (comparison.queries, comparison.only_first, comparison.only_second) == (0, 3, 1)


scores = st.sampled_from([0.1, 0.25, 0.251, 0.3, 0.50001, 0.50002, 0.7, 0.9])
scored = st.lists(st.tuples(scores, st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


@quick
@given(rows=scored, metric=st.sampled_from(METRICS))
def test_thresholds_are_loosest_with_requested_precision(rows, metric):
    targets = (0.5, 0.75, 1.0)
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, schema=SCORED_MATCHES)
    thresholds = {
        threshold.wanted: threshold for threshold in find_thresholds(table, metric, wanted=targets)
    }

    def accepted(cut):
        """Return the relevance of the matches whose score reaches the cut."""
        return [
            relevant
            for score, _, relevant in rows
            if (score <= cut if metric == "l2" else score >= cut)
        ]

    def precision(cut):
        return sum(accepted(cut)) / len(accepted(cut))

    loosest = {}
    for target in targets:
        cuts = [score for score in columns[0] if precision(score) >= target]
        if cuts:
            loosest[max(cuts) if metric == "l2" else min(cuts)] = target
    assert sorted(thresholds) == sorted(loosest.values())
    for cut, target in loosest.items():
        threshold = thresholds[target]
        assert accepted(threshold.score) == accepted(cut), (
            "rounding the score must not change the kept matches"
        )
        assert threshold.precision == pytest.approx(precision(cut))
        assert threshold.kept == len(accepted(cut)) / len(rows)
        assert threshold.matches == len(accepted(cut))
        assert threshold.found == pytest.approx(sum(accepted(cut)) / max(1, sum(columns[2])))
        assert np.isnan([threshold.low, threshold.high]).all(), "at most five queries"


def test_threshold_precision_has_interval_over_queries():
    """Use 20 queries of 1 to 4 matches of equal score, all relevant or none per query."""
    sizes = np.resize([1, 2, 3, 4], 20)
    relevant = np.resize([True, True, False], 20)
    rows = [np.full(sizes.sum(), 0.5), np.repeat(np.arange(20), sizes), np.repeat(relevant, sizes)]
    [threshold] = find_thresholds(pa.table(rows, schema=SCORED_MATCHES), "cosine", wanted=(0.5,))
    assert threshold.precision == (sizes * relevant).sum() / sizes.sum()
    assert (threshold.low, threshold.high) == approx_interval(
        relevant.astype(float), weights=sizes[:, None].astype(float)
    )
    assert threshold.high - threshold.low > 0.35, "queries are sampled, not the 50 matches"


def test_no_relevant_match_gives_no_thresholds():
    table = pa.table([[0.5, 0.6], [0, 1], [False, False]], schema=SCORED_MATCHES)
    assert find_thresholds(table, "cosine") == ()
    assert find_thresholds(SCORED_MATCHES.empty_table(), "cosine") == ()
