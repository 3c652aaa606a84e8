"""Tests of measures against hand-computed values and against trec_eval."""

from math import log2

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation import measures
from retrieval.evaluation.measures import (
    MEASURES,
    average_precision,
    compute_measures,
    find_measure,
    measure_keys,
)
from retrieval.evaluation.qrels import QRELS, build_qrels
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance, grade_rankings
from tests.retrieval.evaluation.tables import matches


def make_rankings(*rankings, counts, levels=(1,)):
    """Return graded rankings from strings of grades; `counts` are relevant images per level."""
    width = max(map(len, rankings))
    grades = np.array(
        [[int(digit) for digit in row.ljust(width, "0")] for row in rankings], np.int16
    )
    ids = pa.array([f"q{number}" for number in range(len(rankings))])
    filled = np.array([len(row) for row in rankings])
    table = np.array(counts, np.int64).reshape(len(rankings), -1)
    return RankingRelevance(
        ids, pa.nulls(len(ids), pa.string()), grades, filled, np.array(levels, np.int16), table,
        SCORED_MATCHES.empty_table(), 0, 0,
    )  # fmt: skip


def mean(name, rankings):
    return find_measure(name).values(rankings).mean()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("top1", (1 + 0 + 0) / 3),
        ("top3", (1 + 1 + 0) / 3),
        ("top10", (1 + 1 + 0) / 3),
        ("p2", (1 / 2 + 1 / 2 + 0 / 2) / 3),
        ("p10", (3 / 10 + 1 / 10 + 0 / 10) / 3),
        ("recall3", (2 / 4 + 1 / 2 + 0 / 5) / 3),
        ("recall10", (3 / 4 + 1 / 2 + 0 / 5) / 3),
        # relevant matches: three of 4 at ranks 1, 3 and 4; one of 2 at rank 2; none of 5
        ("map", ((1 / 1 + 2 / 3 + 3 / 4) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
        ("map_cut_3", ((1 / 1 + 2 / 3) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
        # three ranks can hold three of the 4, both of the 2, three of the 5 relevant images
        ("map3", ((1 / 1 + 2 / 3) / 3 + (1 / 2) / 2 + 0 / 3) / 3),
        ("map10", ((1 / 1 + 2 / 3 + 3 / 4) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
        ("mrr", (1 / 1 + 1 / 2 + 0) / 3),
        (
            "ndcg3",
            (
                (1 / log2(2) + 1 / log2(4)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))
                + (1 / log2(3)) / (1 / log2(2) + 1 / log2(3))
                + 0
            )
            / 3,
        ),
    ],
)
def test_measures_equal_hand_computed_values(name, expected):
    rankings = make_rankings("1011", "0100", "0000", counts=[4, 2, 5])
    assert mean(name, rankings) == pytest.approx(expected, abs=1e-12)


def test_ndcg_uses_grades_and_ideal_order_of_all_relevant_images():
    """The ranking holds a 1, then a 3; relevant are two images of grade 3 and one of grade 1."""
    rankings = make_rankings("103", counts=[[2, 1]], levels=(3, 1))
    best = 3 / log2(2) + 3 / log2(3) + 1 / log2(4)
    assert mean("ndcg", rankings) == pytest.approx((1 / log2(2) + 3 / log2(4)) / best, abs=1e-12)
    best = 3 / log2(2) + 3 / log2(3)
    assert mean("ndcg2", rankings) == pytest.approx((1 / log2(2)) / best, abs=1e-12)


def test_relevant_images_first_give_perfect_measures():
    rankings = make_rankings("11000", "11100", counts=[2, 3])
    for name in ("map", "ndcg", "mrr", "recall10"):
        assert find_measure(name).values(rankings).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_measures_without_relevant_images_are_zero():
    rankings = make_rankings("000", counts=[0])
    assert compute_measures(rankings, measure_keys()).tolist() == [[0] * len(measure_keys())]


def test_missing_matches_below_k_count_as_wrong():
    rankings = make_rankings("11", counts=[2])
    assert mean("p10", rankings) == 2 / 10
    assert mean("top10", rankings) == 1


def test_average_precision_equals_its_definition_on_random_rankings():
    generator = np.random.default_rng(0)
    hits = generator.random((40, 30)) < 0.2
    relevant = hits.sum(1) + generator.integers(0, 5, 40)
    rankings = make_rankings(*("".join(map(str, row.astype(int))) for row in hits), counts=relevant)
    for row, total, value in zip(hits, relevant, average_precision(rankings), strict=True):
        ranks = np.flatnonzero(row) + 1
        sums = sum((index + 1) / rank for index, rank in enumerate(ranks))
        assert value == pytest.approx(sums / total if total else 0.0, abs=1e-12)


def test_map10_is_perfect_for_ten_relevant_matches_of_fifty():
    """map10 divides by at most 10 relevant images, map_cut_10 by all 50."""
    rankings = make_rankings("1111111111", "1111101111", counts=[50, 50])
    assert mean("map10", rankings) > 0.9
    assert find_measure("map10").values(rankings)[0] == 1
    assert mean("map_cut_10", rankings) == pytest.approx(mean("map10", rankings) * 10 / 50)


UNNAMED_KEYS = {"map{k}"}
"""Keys of measures for which ir-measures has no name."""

KEYS_BY_NAME = {
    find_measure(key).name: key
    for key in measure_keys((5, 10)) if key not in ("map5", "map10")
}  # fmt: skip
"""Keys by their names in ir-measures."""


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_measures_equal_trec_eval(data):
    """Cover ties, short and empty rankings, grades, junk, and all matches wrong or relevant.

    trec_eval has no junk grade and sorts by score: junk is removed from its run, and the scores of
    the run decrease with the rank.
    """
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    images = [f"x{number}" for number in range(data.draw(st.integers(1, 25)))]
    grade = st.sampled_from([-1, 0, 0, 1, 1, 2, 5])
    graded = {
        f"q{query}": {image: data.draw(grade) for image in images if data.draw(st.booleans())}
        for query in range(data.draw(st.integers(1, 6)))
    }
    graded["q0"]["x0"] = 1
    ranked = {query: data.draw(st.lists(st.sampled_from(images), unique=True)) for query in graded}
    pairs = [
        (query, image, relevance)
        for query, grades in graded.items()
        for image, relevance in grades.items()
    ]
    ground_truth = build_qrels(
        pa.table([list(column) for column in zip(*pairs, strict=True)], schema=QRELS)
    )
    rows = [
        (query, None, rank, image, None, 0.5)
        for query in ranked
        for rank, image in enumerate(ranked[query], 1)
    ]
    rankings = grade_rankings(matches(*rows), ground_truth)
    run = [
        ir_measures.ScoredDoc(query, image, float(-rank))
        for query, order in ranked.items()
        for rank, image in enumerate(order)
        if graded[query].get(image) != -1
    ]
    qrels = [ir_measures.Qrel(query, image, max(relevance, 0)) for query, image, relevance in pairs]
    actual = dict(
        zip(
            rankings.query_ids.to_pylist(),
            compute_measures(rankings, list(KEYS_BY_NAME.values())),
            strict=True,
        )
    )
    for column, name in enumerate(KEYS_BY_NAME):
        reference_values = ir_measures.parse_measure(name).iter_calc(qrels, run)
        expected = {
            value.query_id: value.value for value in reference_values if value.query_id in actual
        }
        assert {query: values[column] for query, values in actual.items()} == pytest.approx(
            expected, abs=1e-9
        ), name


def test_measures_are_between_0_and_1_and_increase_for_better_rankings():
    generator = np.random.default_rng(3)
    hits = generator.random((50, 12)) < 0.3
    relevant = hits.sum(1) + 1
    rankings = ["".join(map(str, row.astype(int))) for row in hits]
    sorted_rankings = ["".join(sorted(text, reverse=True)) for text in rankings]
    keys = measure_keys((1, 5, 10))
    values = compute_measures(make_rankings(*rankings, counts=relevant), keys)
    best = compute_measures(make_rankings(*sorted_rankings, counts=relevant), keys)
    assert ((values >= 0) & (values <= best + 1e-12) & (best <= 1 + 1e-12)).all()


def test_query_block_size_does_not_change_measures(monkeypatch):
    rankings = make_rankings("1010", "0001", "1111", "0000", "0110", counts=[2, 3, 4, 1, 2])
    expected = compute_measures(rankings, measure_keys())
    monkeypatch.setattr(measures, "_CELLS", 8)
    assert compute_measures(rankings, measure_keys()).tolist() == expected.tolist()


def test_measures_have_names_titles_meanings_and_sources():
    assert measure_keys((10,)) == (
        "top1", "top3", "top10", "p10", "recall10", "map10", "map", "map_cut_10", "ndcg", "ndcg10",
        "mrr",
    )  # fmt: skip
    assert [find_measure(key).name for key in measure_keys((10,))] == [
        "Success@1", "Success@3", "Success@10", "P@10", "R@10", "mAP@10", "AP", "AP@10", "nDCG",
        "nDCG@10", "RR",
    ]  # fmt: skip
    assert len(set(measure_keys((1, 10, 5)))) == len(measure_keys((1, 10, 5))) == 3 + 1 + 3 * 5 + 3
    for key in measure_keys((1, 100)):
        measure = find_measure(key)
        assert (measure.key, measure.title != "") == (key, True)
        assert measure.meaning.endswith(".")
        assert find_measure(measure.name).key == key
    assert all(definition.source for definition in MEASURES)


def test_six_measures_are_shown_by_default():
    shown_by_default = [key for key in measure_keys() if find_measure(key).shown_by_default]
    assert shown_by_default == ["top1", "top3", "top10", "p10", "map10", "map"]


def test_names_equal_those_of_ir_measures():
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    for definition in MEASURES:
        name = definition.name.format(k=7)
        if definition.key not in UNNAMED_KEYS:
            assert str(ir_measures.parse_measure(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "top", "map0", "f1", "mrr10", "top-1", "ndcg99999999", "AP@", "Success", "{k}", "top{k}"],
)
def test_unknown_measure_name_raises_key_error(name):
    with pytest.raises(KeyError):
        find_measure(name)
