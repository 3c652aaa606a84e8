"""Tests of query expansion against the formula of its paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import UsageError
from retrieval.search.query_expansion import check_expansion, expand_queries
from retrieval.vectors.scoring import block, score_pairs
from tests.retrieval.sample_vectors import dtypes, quick, seeds

alphas = st.sampled_from([0.0, 0.5, 1.0, 3.0, 40.0])
similar = st.sampled_from(["cosine", "ip"])


def draw_queries(seed, dtype, metric, n=7, d=5, max_neighbours=4):
    """Draw queries, their neighbours with exact scores, and a mask of present neighbours."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(n, d)).astype(dtype)
    neighbours = (queries[:, None] + rng.normal(size=(n, max_neighbours, d))).astype(dtype)
    queries[rng.random(n) < 0.1] = 0
    neighbours[rng.random((n, max_neighbours)) < 0.1] = 0
    q = np.repeat(np.arange(n), max_neighbours)
    flat = block(neighbours.reshape(-1, d), metric)
    scores = score_pairs(block(queries, metric), flat, q, np.arange(n * max_neighbours)).reshape(
        n, max_neighbours
    )
    present = np.arange(max_neighbours) < rng.integers(0, max_neighbours + 1, n)[:, None]
    return queries, neighbours, scores, present


def normalize(vector):
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def expand_by_definition(query, neighbours, scores, present, alpha, metric):
    """Expand one query by the formula in the docstring of `expand_queries`."""
    query = query.astype(np.float64)
    prepare = normalize if metric == "cosine" else np.asarray
    total, total_weight = prepare(query), 1.0
    query_weight = query @ query if metric == "ip" and alpha else 1.0
    for neighbour, score, is_present in zip(neighbours, scores, present, strict=True):
        if is_present:
            similarity = max(0.0, score) / query_weight if query_weight else 0.0
            total = total + similarity**alpha * prepare(neighbour.astype(np.float64))
            total_weight += similarity**alpha
    return normalize(total) if metric == "cosine" else total / total_weight


@quick
@given(seeds, dtypes, similar, alphas)
def test_expansion_equals_the_formula_of_the_paper(seed, dtype, metric, alpha):
    drawn = draw_queries(seed, dtype, metric)
    expanded = expand_queries(*drawn, alpha, metric)
    assert expanded.dtype == np.float32
    expected = [
        expand_by_definition(*arguments, alpha, metric) for arguments in zip(*drawn, strict=True)
    ]
    np.testing.assert_allclose(expanded, expected, rtol=2e-6, atol=1e-6)


@quick
@given(seeds, dtypes, similar, alphas, st.lists(st.integers(0, 7), max_size=4).map(sorted),
       st.integers(1, 40))  # fmt: skip
def test_result_of_a_query_does_not_depend_on_other_queries(seed, dtype, metric, alpha, cuts, d):
    arrays = draw_queries(seed, dtype, metric, d=d)
    whole = expand_queries(*arrays, alpha, metric)
    parts = [
        expand_queries(*(array[first:last] for array in arrays), alpha, metric)
        for first, last in zip([0, *cuts], [*cuts, 7], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    alone = [
        expand_queries(*(array[[position]] for array in arrays), alpha, metric)[0]
        for position in range(7)
    ]
    np.testing.assert_array_equal(alone, whole)
    fortran_ordered = [np.asfortranarray(array) for array in arrays]
    np.testing.assert_array_equal(expand_queries(*fortran_ordered, alpha, metric), whole)


X, Y = [1.0, 0.0], [0.0, 1.0]


def expand_lists(query, neighbours, scores, alpha, metric, present=None):
    """Expand one query given as lists."""
    count = len(neighbours)
    expanded = expand_queries(
        np.array([query], np.float32),
        np.array([neighbours], np.float32).reshape(1, count, 2),
        np.array([scores], np.float64).reshape(1, count),
        np.array([[True] * count if present is None else present]).reshape(1, count),
        alpha,
        metric,
    )
    return expanded[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([2.0, 0.0], [], [], 3, "cosine"), X),  # nothing to add
        (([2.0, 0.0], [], [], 3, "ip"), [2.0, 0.0]),
        ((X, [[0.0, 5.0]], [0.5], 1, "cosine"), normalize(np.array([1, 0.5]))),
        ((X, [[0.0, 5.0]], [0.5], 3, "cosine"), normalize(np.array([1, 0.5**3]))),
        ((X, [[0.0, 5.0]], [-0.5], 3, "cosine"), X),  # negative similarity adds nothing
        ((X, [[0.0, 5.0]], [-0.5], 0, "cosine"), normalize(np.array([1, 1]))),  # except for alpha 0
        ((X, [Y, Y], [0.0, 0.0], 0, "ip"), [1 / 3, 2 / 3]),
        ((X, [Y, [4.0, 0.0]], [0.0, 4.0], 1, "ip"), [(1 + 4 * 4) / (1 + 4), 0]),
        ((X, [Y, [4.0, 0.0]], [0.0, 4.0], 2, "ip"), [(1 + 16 * 4) / (1 + 16), 0]),
        ((X, [[3.0, 4.0]], [20.0], 0, "l2"), [(1 + 3) / 2, 4 / 2]),  # plain average
        (([0.0, 0.0], [Y], [0.0], 3, "cosine"), [0.0, 0.0]),  # a zero vector has no direction
        (([0.0, 0.0], [[0.0, 3.0]], [0.0], 0, "cosine"), Y),
        (([0.0, 0.0], [Y], [0.0], 3, "ip"), [0.0, 0.0]),
        ((X, [[0.0, 0.0]], [0.0], 0, "cosine"), X),
        ((X, [[-1.0, 0.0]], [-1.0], 0, "cosine"), [0.0, 0.0]),  # they cancel
        ((X, [Y, [np.nan, np.inf]], [0.5, np.nan], 1, "cosine", [True, False]),
         normalize(np.array([1, 0.5]))),  # values of absent neighbours are ignored
        ((X, [Y], [1 + 1e-9], 1e300, "cosine"), normalize(np.array([1, 1]))),  # rounded above 1
    ],
)  # fmt: skip
def test_expansion_equals_hand_computed_values(arguments, expected):
    assert expand_lists(*arguments) == pytest.approx(list(expected), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_scaling_all_vectors_scales_the_result(scale):
    query, close, distant = [0.6, 0.8], [1.0, 1.0], [50.0, -10.0]
    vectors = np.array([query, close, distant]) * scale
    scores = (vectors[1:] @ vectors[0]).tolist()
    expanded = expand_lists(vectors[0].tolist(), vectors[1:].tolist(), scores, 3, "ip")
    unscaled = expand_lists(query, [close, distant], [1.4, 22.0], 3, "ip")
    assert expanded == pytest.approx([number * scale for number in unscaled], rel=1e-5)


def test_alpha_with_l2_is_refused():
    with pytest.raises(UsageError, match=r"^--rerank expand with alpha 3 .*: use alpha 0"):
        expand_lists(X, [Y], [2.0], 3, "l2")
    for alpha, metric in ((0.0, "l2"), (3.0, "cosine"), (3.0, "ip")):
        check_expansion(alpha, metric)
