"""Measures, each against arithmetic that a reader can check by eye, and against trec_eval."""

from math import log2

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation import measures
from retrieval.evaluation.judged import SCORED, Judged, judge
from retrieval.evaluation.measures import average_precision, measure_of, names, values_of
from retrieval.evaluation.qrels import QRELS, qrels_of
from tests.retrieval.evaluation.tables import matches


def judged(*rankings, counts, levels=(1,)):
    """Rankings from strings of grades: 0 is wrong, `counts` images of each level to be found."""
    width = max(map(len, rankings))
    grades = np.array([[int(mark) for mark in row.ljust(width, "0")] for row in rankings], np.int16)
    ids = pa.array([f"q{number}" for number in range(len(rankings))])
    filled = np.array([len(row) for row in rankings])
    table = np.array(counts, np.int64).reshape(len(rankings), -1)
    return Judged(
        ids, pa.nulls(len(ids), pa.string()), grades, filled, np.array(levels, np.int16), table,
        SCORED.empty_table(), 0, 0,
    )  # fmt: skip


def mean(name, rankings):
    return measure_of(name).values(rankings).mean()


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
        ("map3", ((1 / 1 + 2 / 3) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
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
        assert measure_of(name).values(rankings).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_a_gallery_without_a_relevant_image_gives_nothing():
    rankings = judged("000", counts=[0])
    assert values_of(rankings, names()).tolist() == [[0] * len(names())]


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


THEIRS = {
    "top1": "Success@1", "top3": "Success@3", "top10": "Success@10", "p10": "P@10", "p5": "P@5",
    "recall5": "R@5", "recall10": "R@10", "map": "AP", "map5": "AP@5", "map10": "AP@10",
    "ndcg": "nDCG", "ndcg5": "nDCG@5", "ndcg10": "nDCG@10", "mrr": "RR",
}  # fmt: skip


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
    truth = qrels_of(pa.table([list(c) for c in zip(*pairs, strict=True)], schema=QRELS))
    rows = [(q, None, r, x, None, 0.5) for q in ranked for r, x in enumerate(ranked[q], 1)]
    found = judge(matches(*rows), truth)
    run = [
        ir_measures.ScoredDoc(q, x, float(-rank))
        for q, order in ranked.items()
        for rank, x in enumerate(order)
        if graded[q].get(x) != -1
    ]
    qrels = [ir_measures.Qrel(q, x, max(g, 0)) for q, x, g in pairs]
    ours = dict(zip(found.query_ids.to_pylist(), values_of(found, list(THEIRS)), strict=True))
    for place, (name, theirs) in enumerate(THEIRS.items()):
        of_theirs = ir_measures.parse_measure(theirs).iter_calc(qrels, run)
        expected = {value.query_id: value.value for value in of_theirs if value.query_id in ours}
        assert {q: values[place] for q, values in ours.items()} == pytest.approx(
            expected, abs=1e-9
        ), name


def test_all_measures_lie_between_0_and_1_and_rise_with_a_better_ranking():
    generator = np.random.default_rng(3)
    hits = generator.random((50, 12)) < 0.3
    relevant = hits.sum(1) + 1
    texts = ["".join(map(str, row.astype(int))) for row in hits]
    better = ["".join(sorted(text, reverse=True)) for text in texts]
    wanted = names((1, 5, 10))
    values = values_of(judged(*texts, counts=relevant), wanted)
    best = values_of(judged(*better, counts=relevant), wanted)
    assert ((values >= 0) & (values <= best + 1e-12) & (best <= 1 + 1e-12)).all()


def test_blocks_of_queries_do_not_matter(monkeypatch):
    rankings = judged("1010", "0001", "1111", "0000", "0110", counts=[2, 3, 4, 1, 2])
    whole = values_of(rankings, names())
    monkeypatch.setattr(measures, "_CELLS", 8)
    assert values_of(rankings, names()).tolist() == whole.tolist()


def test_names_say_what_is_told_and_each_has_a_meaning():
    assert names((10,)) == (
        "top1", "top3", "top10", "p10", "recall10", "map", "map10", "ndcg", "ndcg10", "mrr",
    )  # fmt: skip
    assert len(set(names((1, 10, 5)))) == len(names((1, 10, 5))) == 3 + 1 + 3 * 4 + 3
    for name in names((1, 100)):
        assert measure_of(name).title
        assert measure_of(name).meaning.endswith(".")


@pytest.mark.parametrize("name", ["", "top", "map0", "f1", "mrr10", "top-1", "ndcg99999999"])
def test_there_is_no_measure_of_another_name(name):
    with pytest.raises(KeyError):
        measure_of(name)
