"""Test measures against hand-checked arithmetic and against trec_eval."""

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


def judged(*rankings, counts, levels=(1,)):
    """Rankings from strings of grades: 0 is wrong, `counts` images of each level to be found."""
    width = max(map(len, rankings))
    grades = np.array([[int(mark) for mark in row.ljust(width, "0")] for row in rankings], np.int16)
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
        # of 4 relevant images three are found, at ranks 1, 3 and 4; of 2 one, at rank 2; of 5 none
        ("map", ((1 / 1 + 2 / 3 + 3 / 4) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
        ("map_cut_3", ((1 / 1 + 2 / 3) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
        # three places can hold three of the four, both of the two, three of the five
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
def test_each_measure(name, expected):
    rankings = judged("1011", "0100", "0000", counts=[4, 2, 5])
    assert mean(name, rankings) == pytest.approx(expected, abs=1e-12)


def test_gain_counts_grades_and_the_best_order_of_all_there_is():
    """Found are a 1 and a 3, in that order; there are two of 3 and one of 1."""
    rankings = judged("103", counts=[[2, 1]], levels=(3, 1))
    best = 3 / log2(2) + 3 / log2(3) + 1 / log2(4)
    assert mean("ndcg", rankings) == pytest.approx((1 / log2(2) + 3 / log2(4)) / best, abs=1e-12)
    best = 3 / log2(2) + 3 / log2(3)
    assert mean("ndcg2", rankings) == pytest.approx((1 / log2(2)) / best, abs=1e-12)


def test_all_right_ones_first_is_perfect():
    rankings = judged("11000", "11100", counts=[2, 3])
    for name in ("map", "ndcg", "mrr", "recall10"):
        assert find_measure(name).values(rankings).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_a_gallery_without_a_relevant_image_gives_nothing():
    rankings = judged("000", counts=[0])
    assert compute_measures(rankings, measure_keys()).tolist() == [[0] * len(measure_keys())]


def test_fewer_matches_than_k_count_as_wrong_places():
    rankings = judged("11", counts=[2])
    assert mean("p10", rankings) == 2 / 10
    assert mean("top10", rankings) == 1


def test_average_precision_equals_its_definition_on_random_rankings():
    generator = np.random.default_rng(0)
    hits = generator.random((40, 30)) < 0.2
    relevant = hits.sum(1) + generator.integers(0, 5, 40)
    rankings = judged(*("".join(map(str, row.astype(int))) for row in hits), counts=relevant)
    for row, total, value in zip(hits, relevant, average_precision(rankings), strict=True):
        ranks = np.flatnonzero(row) + 1
        sums = sum((place + 1) / rank for place, rank in enumerate(ranks))
        assert value == pytest.approx(sums / total if total else 0.0, abs=1e-12)


def test_ten_right_places_are_perfect_however_many_more_there_are():
    """9.4 of the first ten are right on average and 50 are relevant: map10 was 0.18."""
    rankings = judged("1111111111", "1111101111", counts=[50, 50])
    assert mean("map10", rankings) > 0.9
    assert find_measure("map10").values(rankings)[0] == 1
    assert mean("map_cut_10", rankings) == pytest.approx(mean("map10", rankings) * 10 / 50)


OURS_ALONE = {"map{k}"}
"""What ir-measures has no name for."""

THEIRS = {
    find_measure(key).name: key
    for key in measure_keys((5, 10)) if key not in ("map5", "map10")
}  # fmt: skip
"""Keys by the names that ir-measures has for them."""


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_measures_equal_those_of_trec_eval(data):
    """Ties, queries with few matches or none, grades, junk, all wrong, all right.

    trec_eval knows neither junk nor the rank: what is junk is taken from its run, and scores fall
    with the rank however they were tied.
    """
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    images = [f"x{number}" for number in range(data.draw(st.integers(1, 25)))]
    grade = st.sampled_from([-1, 0, 0, 1, 1, 2, 5])
    graded = {
        f"q{q}": {x: data.draw(grade) for x in images if data.draw(st.booleans())}
        for q in range(data.draw(st.integers(1, 6)))
    }
    graded["q0"]["x0"] = 1
    ranked = {q: data.draw(st.lists(st.sampled_from(images), unique=True)) for q in graded}
    pairs = [(q, x, g) for q, named in graded.items() for x, g in named.items()]
    ground_truth = build_qrels(pa.table([list(c) for c in zip(*pairs, strict=True)], schema=QRELS))
    rows = [(q, None, r, x, None, 0.5) for q in ranked for r, x in enumerate(ranked[q], 1)]
    found = grade_rankings(matches(*rows), ground_truth)
    run = [
        ir_measures.ScoredDoc(q, x, float(-rank))
        for q, order in ranked.items()
        for rank, x in enumerate(order)
        if graded[q].get(x) != -1
    ]
    qrels = [ir_measures.Qrel(q, x, max(g, 0)) for q, x, g in pairs]
    ours = dict(
        zip(
            found.query_ids.to_pylist(), compute_measures(found, list(THEIRS.values())), strict=True
        )
    )
    for place, theirs in enumerate(THEIRS):
        of_theirs = ir_measures.parse_measure(theirs).iter_calc(qrels, run)
        expected = {value.query_id: value.value for value in of_theirs if value.query_id in ours}
        assert {q: values[place] for q, values in ours.items()} == pytest.approx(
            expected, abs=1e-9
        ), theirs


def test_all_measures_lie_between_0_and_1_and_rise_with_a_better_ranking():
    generator = np.random.default_rng(3)
    hits = generator.random((50, 12)) < 0.3
    relevant = hits.sum(1) + 1
    texts = ["".join(map(str, row.astype(int))) for row in hits]
    better = ["".join(sorted(text, reverse=True)) for text in texts]
    wanted = measure_keys((1, 5, 10))
    values = compute_measures(judged(*texts, counts=relevant), wanted)
    best = compute_measures(judged(*better, counts=relevant), wanted)
    assert ((values >= 0) & (values <= best + 1e-12) & (best <= 1 + 1e-12)).all()


def test_blocks_of_queries_do_not_matter(monkeypatch):
    rankings = judged("1010", "0001", "1111", "0000", "0110", counts=[2, 3, 4, 1, 2])
    whole = compute_measures(rankings, measure_keys())
    monkeypatch.setattr(measures, "_CELLS", 8)
    assert compute_measures(rankings, measure_keys()).tolist() == whole.tolist()


def test_names_say_what_is_told_and_each_has_a_meaning():
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


def test_a_person_is_told_six():
    shown_by_default = [key for key in measure_keys() if find_measure(key).shown_by_default]
    assert shown_by_default == ["top1", "top3", "top10", "p10", "map10", "map"]


def test_names_are_those_of_ir_measures():
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    for definition in MEASURES:
        name = definition.name.format(k=7)
        if definition.key not in OURS_ALONE:
            assert str(ir_measures.parse_measure(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "top", "map0", "f1", "mrr10", "top-1", "ndcg99999999", "AP@", "Success", "{k}", "top{k}"],
)
def test_there_is_no_measure_of_another_name(name):
    with pytest.raises(KeyError):
        find_measure(name)
