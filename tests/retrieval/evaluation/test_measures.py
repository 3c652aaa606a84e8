"""Measures, each against arithmetic that a reader can check by eye."""

import numpy as np
import pytest

from retrieval.evaluation.measures import MEASURES, average_precision, measure, precision, top
from retrieval.evaluation.truth import Judged


def judged(*hits, relevant, left_out=0):
    """Rankings from strings: x is right, . is wrong."""
    width = max(map(len, hits))
    table = np.array([[mark == "x" for mark in row.ljust(width, ".")] for row in hits])
    return Judged(tuple(map(str, range(len(hits)))), table, np.array(relevant), left_out)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("top1", (1 + 0 + 0) / 3),
        ("top3", (1 + 1 + 0) / 3),
        ("top10", (1 + 1 + 0) / 3),
        ("p10", (3 / 10 + 1 / 10 + 0 / 10) / 3),
        # of 4 relevant images three are found, at ranks 1, 3 and 4; of 2 one, at rank 2; of 5 none
        ("map", ((1 / 1 + 2 / 3 + 3 / 4) / 4 + (1 / 2) / 2 + 0 / 5) / 3),
        ("mrr", (1 / 1 + 1 / 2 + 0) / 3),
    ],
)
def test_each_measure(name, expected):
    rankings = judged("x.xx", ".x..", "....", relevant=[4, 2, 5])
    assert MEASURES[name].values(rankings).mean() == pytest.approx(expected, abs=1e-12)


def test_all_right_ones_first_is_perfect():
    rankings = judged("xx...", "xxx..", relevant=[2, 3])
    assert average_precision(rankings).tolist() == [1.0, 1.0]


def test_a_gallery_without_a_relevant_image_gives_nothing():
    assert average_precision(judged("...", relevant=[0])).tolist() == [0.0]


def test_fewer_matches_than_k_count_as_wrong_places():
    rankings = judged("xx", relevant=[2])
    assert precision(10)(rankings).tolist() == [2 / 10]
    assert top(10)(rankings).tolist() == [1.0]


def test_average_precision_equals_its_definition_on_random_rankings():
    generator = np.random.default_rng(0)
    hits = generator.random((40, 30)) < 0.2
    relevant = hits.sum(1) + generator.integers(0, 5, 40)
    found = average_precision(Judged(tuple(map(str, range(40))), hits, relevant, 0))
    for row, total, value in zip(hits, relevant, found, strict=True):
        ranks = np.flatnonzero(row) + 1
        sums = sum((place + 1) / rank for place, rank in enumerate(ranks))
        assert value == pytest.approx(sums / total if total else 0.0, abs=1e-12)


def test_measures_equal_those_of_trec_eval():
    """On random rankings of 12 matches among 40 images, some queries without any right one."""
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures to compare")
    generator = np.random.default_rng(2)
    truth = generator.random((60, 40)) < 0.15
    truth[:5, :20] = False  # their right images are those that are not ranked, or none
    ranked = np.stack([generator.permutation(40)[:12] for _ in range(60)])
    qrels = [
        ir_measures.Qrel(f"q{q:02d}", f"x{x}", int(truth[q, x])) for q, x in np.ndindex(60, 40)
    ]
    run = [
        ir_measures.ScoredDoc(f"q{q:02d}", f"x{x}", float(-rank))
        for q in range(60)
        for rank, x in enumerate(ranked[q])
    ]
    names = tuple(f"q{q:02d}" for q in range(60))
    hits = np.take_along_axis(truth, ranked, 1)
    found = Judged(names, hits, truth.sum(1), 0)
    for name, theirs in (
        ("map", ir_measures.AP),
        ("mrr", ir_measures.RR),
        ("p10", ir_measures.P @ 10),
        ("top1", ir_measures.Success @ 1),
        ("top3", ir_measures.Success @ 3),
        ("top10", ir_measures.Success @ 10),
    ):
        expected = {value.query_id: value.value for value in theirs.iter_calc(qrels, run)}
        values = dict(zip(names, MEASURES[name].values(found), strict=True))
        assert values == pytest.approx(expected, abs=1e-9), name


def test_all_measures_lie_between_0_and_1_and_rise_with_a_better_ranking():
    generator = np.random.default_rng(3)
    hits = generator.random((50, 12)) < 0.3
    better = np.sort(hits, axis=1)[:, ::-1]  # the right ones first
    relevant = hits.sum(1) + 1
    names = tuple(map(str, range(50)))
    for each in MEASURES.values():
        values = each.values(Judged(names, hits, relevant, 0))
        best = each.values(Judged(names, better, relevant, 0))
        assert ((values >= 0) & (values <= best) & (best <= 1)).all()


def test_what_is_measured_is_named_in_one_order():
    measured = measure(judged("x.", relevant=[1]), seed=0)
    assert [each.name for each in measured] == list(MEASURES)
    assert all(each.title and each.meaning for each in measured)


def test_intervals_hold_the_value_and_are_seeded():
    generator = np.random.default_rng(1)
    rankings = Judged(
        tuple(map(str, range(200))), generator.random((200, 10)) < 0.1, np.full(200, 9), 0
    )
    one, other = measure(rankings, seed=3), measure(rankings, seed=3)
    assert one == other
    assert all(each.low <= each.value <= each.high for each in one)
    assert any(each.high > each.low for each in one)
