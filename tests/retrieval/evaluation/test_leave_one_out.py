"""Tests of leave-one-out rankings against brute force: order, ties, eligible queries."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation import leave_one_out as leave_one_out_module
from retrieval.evaluation.leave_one_out import class_numbers, eligible_queries, leave_one_out
from retrieval.evaluation.results import measure_rankings
from retrieval.vectors.scoring import block
from tests.retrieval.sample_vectors import METRICS, quick, seeds

MEASURES = ("top1", "top3", "top10", "map")
NAMES = ["cat", "dog", "owl", "distractor", "", None]


def brute_force_measures(vectors, labels, query, metric):
    """Return `MEASURES` of one query from a float64 ranking computed pair by pair."""
    query_vector, scores = vectors[query].astype(np.float64), []
    for position, row in enumerate(vectors.astype(np.float64)):
        if position == query:
            continue
        score = -((query_vector - row) ** 2).sum() if metric == "l2" else (query_vector * row).sum()
        if metric == "cosine":
            norms = np.sqrt((query_vector**2).sum() * (row**2).sum())
            score = score / norms if norms else 0.0
        scores.append((-score, position))
    hits = [labels[position] == labels[query] for _, position in sorted(scores)]
    precisions = [sum(hits[: index + 1]) / (index + 1) for index, hit in enumerate(hits) if hit]
    return [*(float(any(hits[:k])) for k in (1, 3, 10)), sum(precisions) / sum(hits)]


def random_gallery(seed, count, dimension):
    """Return integer vectors with exact ties, duplicates and zero vectors, and random labels."""
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, dimension)).astype(np.float32)
    return vectors, [NAMES[position] for position in generator.integers(0, len(NAMES), count)]


@pytest.mark.parametrize("metric", METRICS)
@quick
@given(seed=seeds, count=st.integers(4, 40), dimension=st.integers(1, 5), cells=st.integers(1, 99))
def test_measures_equal_brute_force_for_any_block_size(metric, seed, count, dimension, cells):
    vectors, label_list = random_gallery(seed, count, dimension)
    if metric == "cosine":  # exact norms, so that brute force has the same ties
        vectors = np.sign(vectors) * 2
    labels = pa.array(label_list, pa.string())
    queries = eligible_queries(class_numbers(labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leave_one_out_module, "_CELLS", cells)
        ids = pa.array([f"{position}.jpg" for position in range(count)])
        parts = list(leave_one_out(block(vectors, metric), ids, labels, queries))
    results = measure_rankings(parts, MEASURES)
    assert results.queries["query_id"].to_pylist() == [f"{position}.jpg" for position in queries]
    expected = [brute_force_measures(vectors, label_list, int(query), metric) for query in queries]
    if expected:
        np.testing.assert_allclose(results.values(), expected, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_near_ties_are_ordered_by_exact_score(metric):
    """The vectors differ only in their last bits, and three of them are equal."""
    generator = np.random.default_rng(7)
    base = generator.normal(size=300).astype(np.float32)
    steps = generator.integers(0, 3, (24, 300))
    vectors = (base.view(np.int32) + steps).astype(np.int32).view(np.float32)
    vectors[5] = vectors[11] = vectors[20]
    label_list = ["cat", "dog"] * 12
    [graded] = leave_one_out(
        block(vectors, metric), pa.array(map(str, range(24))), pa.array(label_list), np.arange(24)
    )
    rows = block(vectors, metric)
    for query in range(24):
        gallery = np.array([position for position in range(24) if position != query])
        scores = leave_one_out_module.score_pairs(rows, rows, np.full(23, query), gallery)
        keys = leave_one_out_module.scores_to_keys(scores, metric)
        order = gallery[np.lexsort((gallery, -keys))]
        assert graded.grades[query].tolist() == [
            int((position - query) % 2 == 0) for position in order
        ]


def test_eligible_queries_have_another_image_of_their_class():
    labels = pa.array(["cat", "dog", "cat", "owl", None, "distractor", ""])
    classes = class_numbers(labels)
    assert classes[0] == classes[2]
    assert classes.tolist()[4:] == [-1, -1, -1]
    assert eligible_queries(classes).tolist() == [0, 2]  # one dog and one owl only
    vectors = np.eye(7, dtype=np.float32)
    [graded] = leave_one_out(block(vectors, "ip"), pa.array("abcdefg"), labels, np.array([2]))
    assert graded.relevant.tolist() == [1]
    assert graded.filled.tolist() == [6]


def test_unlabelled_images_are_not_queries():
    assert (
        eligible_queries(class_numbers(pa.array([None, "", "distractor"], pa.string()))).tolist()
        == []
    )
    assert eligible_queries(class_numbers(pa.nulls(3, pa.string()))).tolist() == []
