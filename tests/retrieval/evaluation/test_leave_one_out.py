"""Test leave-one-out rankings against a plain loop: order, ties, eligible queries."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation import leave_one_out as module
from retrieval.evaluation.leave_one_out import class_numbers, eligible_queries, leave_one_out
from retrieval.evaluation.results import measure_rankings
from retrieval.vectors.scoring import block
from tests.retrieval.sample_vectors import METRICS, quick, seeds

MEASURES = ("top1", "top3", "top10", "map")
NAMES = ["cat", "dog", "owl", "distractor", "", None]


def by_hand(vectors, labels, query, metric):
    """Rank in plain numpy, a pair at a time, and measure by the definitions."""
    ours, scores = vectors[query].astype(np.float64), []
    for other, row in enumerate(vectors.astype(np.float64)):
        if other == query:
            continue
        score = -((ours - row) ** 2).sum() if metric == "l2" else (ours * row).sum()
        if metric == "cosine":
            lengths = np.sqrt((ours**2).sum() * (row**2).sum())
            score = score / lengths if lengths else 0.0
        scores.append((-score, other))
    hits = [labels[other] == labels[query] for _, other in sorted(scores)]
    precisions = [sum(hits[: at + 1]) / (at + 1) for at, hit in enumerate(hits) if hit]
    return [*(float(any(hits[:k])) for k in (1, 3, 10)), sum(precisions) / sum(hits)]


def drawn(seed, count, dimension):
    """Small whole numbers, so that scores tie exactly; some images twice, some without length."""
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, dimension)).astype(np.float32)
    return vectors, [NAMES[place] for place in generator.integers(0, len(NAMES), count)]


@pytest.mark.parametrize("metric", METRICS)
@quick
@given(seed=seeds, count=st.integers(4, 40), dimension=st.integers(1, 5), cells=st.integers(1, 99))
def test_measures_equal_a_plain_loop_whatever_the_blocks(metric, seed, count, dimension, cells):
    vectors, names = drawn(seed, count, dimension)
    if metric == "cosine":  # lengths that no rounding blurs, so that the loop ties where we do
        vectors = np.sign(vectors) * 2
    labels = pa.array(names, pa.string())
    queries = eligible_queries(class_numbers(labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CELLS", cells)
        ids = pa.array([f"{place}.jpg" for place in range(count)])
        parts = list(leave_one_out(block(vectors, metric), ids, labels, queries))
    results = measure_rankings(parts, MEASURES)
    assert results.queries["query_id"].to_pylist() == [f"{place}.jpg" for place in queries]
    expected = [by_hand(vectors, names, int(query), metric) for query in queries]
    if expected:
        np.testing.assert_allclose(results.values(), expected, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_near_ties_are_decided_by_the_score(metric):
    """Vectors that differ in their last bits, and some not at all."""
    generator = np.random.default_rng(7)
    base = generator.normal(size=300).astype(np.float32)
    steps = generator.integers(0, 3, (24, 300))
    vectors = (base.view(np.int32) + steps).astype(np.int32).view(np.float32)
    vectors[5] = vectors[11] = vectors[20]
    names = ["cat", "dog"] * 12
    [judged] = leave_one_out(
        block(vectors, metric), pa.array(map(str, range(24))), pa.array(names), np.arange(24)
    )
    ready = block(vectors, metric)
    for query in range(24):
        others = np.array([place for place in range(24) if place != query])
        scores = module.score_pairs(ready, ready, np.full(23, query), others)
        keys = module.scores_to_keys(scores, metric)
        order = others[np.lexsort((others, -keys))]
        assert judged.grades[query].tolist() == [int((o - query) % 2 == 0) for o in order]


def test_who_is_asked_and_what_counts():
    labels = pa.array(["cat", "dog", "cat", "owl", None, "distractor", ""])
    classes = class_numbers(labels)
    assert classes[0] == classes[2]
    assert classes.tolist()[4:] == [-1, -1, -1]
    assert eligible_queries(classes).tolist() == [0, 2]  # of dogs and owls there is one
    vectors = np.eye(7, dtype=np.float32)
    [judged] = leave_one_out(block(vectors, "ip"), pa.array("abcdefg"), labels, np.array([2]))
    assert judged.relevant.tolist() == [1]
    assert judged.filled.tolist() == [6]


def test_images_without_any_label_ask_nothing():
    assert (
        eligible_queries(class_numbers(pa.array([None, "", "distractor"], pa.string()))).tolist()
        == []
    )
    assert eligible_queries(class_numbers(pa.nulls(3, pa.string()))).tolist() == []
