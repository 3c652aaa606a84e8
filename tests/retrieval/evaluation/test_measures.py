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


def test_intervals_hold_the_value_and_are_seeded():
    generator = np.random.default_rng(1)
    rankings = Judged(
        tuple(map(str, range(200))), generator.random((200, 10)) < 0.1, np.full(200, 9), 0
    )
    one, other = measure(rankings, seed=3), measure(rankings, seed=3)
    assert one == other
    assert all(each.low <= each.value <= each.high for each in one)
    assert any(each.high > each.low for each in one)
