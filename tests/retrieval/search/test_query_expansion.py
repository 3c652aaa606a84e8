"""Expanded queries are the sum that the paper says, for each query by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config.expansion import Expansion, parse_expansion
from retrieval.core.errors import UsageError
from retrieval.search.query_expansion import check_expansion, expand
from retrieval.vectors.scoring import block, pair_scores
from tests.retrieval.sample_vectors import dtypes, quick, seeds

alphas = st.sampled_from([0.0, 0.5, 1.0, 3.0, 40.0])
similar = st.sampled_from(["cosine", "ip"])


def drawn(seed, dtype, metric, n=7, d=5, most=4):
    """Draw queries, neighbours with their true scores, and which of these are there."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(n, d)).astype(dtype)
    neighbours = (queries[:, None] + rng.normal(size=(n, most, d))).astype(dtype)
    queries[rng.random(n) < 0.1] = 0
    neighbours[rng.random((n, most)) < 0.1] = 0
    q = np.repeat(np.arange(n), most)
    flat = block(neighbours.reshape(-1, d), metric)
    scores = pair_scores(block(queries, metric), flat, q, np.arange(n * most)).reshape(n, most)
    there = np.arange(most) < rng.integers(0, most + 1, n)[:, None]
    return queries, neighbours, scores, there


def unit(vector):
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def oracle(query, neighbours, scores, there, alpha, metric):
    """Expand one query, as the docstring has it."""
    query = query.astype(np.float64)
    ready = unit if metric == "cosine" else np.asarray
    total, mass = ready(query), 1.0
    own = query @ query if metric == "ip" and alpha else 1.0
    for x, score, present in zip(neighbours, scores, there, strict=True):
        if present:
            likeness = max(0.0, score) / own if own else 0.0
            total = total + likeness**alpha * ready(x.astype(np.float64))
            mass += likeness**alpha
    return unit(total) if metric == "cosine" else total / mass


@quick
@given(seeds, dtypes, similar, alphas)
def test_a_query_is_expanded_as_the_paper_says(seed, dtype, metric, alpha):
    drawn_ones = drawn(seed, dtype, metric)
    found = expand(*drawn_ones, alpha, metric)
    assert found.dtype == np.float32
    expected = [oracle(*one, alpha, metric) for one in zip(*drawn_ones, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@quick
@given(seeds, dtypes, similar, alphas, st.lists(st.integers(0, 7), max_size=4).map(sorted),
       st.integers(1, 40))  # fmt: skip
def test_a_query_is_expanded_the_same_beside_any_others(seed, dtype, metric, alpha, cuts, d):
    arrays = drawn(seed, dtype, metric, d=d)
    whole = expand(*arrays, alpha, metric)
    parts = [
        expand(*(array[first:last] for array in arrays), alpha, metric)
        for first, last in zip([0, *cuts], [*cuts, 7], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    alone = [expand(*(array[[at]] for array in arrays), alpha, metric)[0] for at in range(7)]
    np.testing.assert_array_equal(alone, whole)
    spread = [np.asfortranarray(array) for array in arrays]
    np.testing.assert_array_equal(expand(*spread, alpha, metric), whole)


X, Y = [1.0, 0.0], [0.0, 1.0]


def hand(query, neighbours, scores, alpha, metric, there=None):
    """Expand one query, from lists."""
    count = len(neighbours)
    found = expand(
        np.array([query], np.float32),
        np.array([neighbours], np.float32).reshape(1, count, 2),
        np.array([scores], np.float64).reshape(1, count),
        np.array([[True] * count if there is None else there]).reshape(1, count),
        alpha,
        metric,
    )
    return found[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([2.0, 0.0], [], [], 3, "cosine"), X),  # nothing to add
        (([2.0, 0.0], [], [], 3, "ip"), [2.0, 0.0]),
        ((X, [[0.0, 5.0]], [0.5], 1, "cosine"), unit(np.array([1, 0.5]))),
        ((X, [[0.0, 5.0]], [0.5], 3, "cosine"), unit(np.array([1, 0.5**3]))),
        ((X, [[0.0, 5.0]], [-0.5], 3, "cosine"), X),  # what is unlike adds nothing
        ((X, [[0.0, 5.0]], [-0.5], 0, "cosine"), unit(np.array([1, 1]))),  # but for alpha 0
        ((X, [Y, Y], [0.0, 0.0], 0, "ip"), [1 / 3, 2 / 3]),
        ((X, [Y, [4.0, 0.0]], [0.0, 4.0], 1, "ip"), [(1 + 4 * 4) / (1 + 4), 0]),
        ((X, [Y, [4.0, 0.0]], [0.0, 4.0], 2, "ip"), [(1 + 16 * 4) / (1 + 16), 0]),
        ((X, [[3.0, 4.0]], [20.0], 0, "l2"), [(1 + 3) / 2, 4 / 2]),  # plain average
        (([0.0, 0.0], [Y], [0.0], 3, "cosine"), [0.0, 0.0]),  # no length, no direction
        (([0.0, 0.0], [[0.0, 3.0]], [0.0], 0, "cosine"), Y),
        (([0.0, 0.0], [Y], [0.0], 3, "ip"), [0.0, 0.0]),
        ((X, [[0.0, 0.0]], [0.0], 0, "cosine"), X),
        ((X, [[-1.0, 0.0]], [-1.0], 0, "cosine"), [0.0, 0.0]),  # they cancel
        ((X, [Y, [np.nan, np.inf]], [0.5, np.nan], 1, "cosine", [True, False]),
         unit(np.array([1, 0.5]))),  # who is not there is not looked at
        ((X, [Y], [1 + 1e-9], 1e300, "cosine"), unit(np.array([1, 1]))),  # rounded above 1
    ],
)  # fmt: skip
def test_by_hand(arguments, expected):
    assert hand(*arguments) == pytest.approx(list(expected), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_vectors_in_another_unit_are_expanded_alike(scale):
    query, near, far = [0.6, 0.8], [1.0, 1.0], [50.0, -10.0]
    vectors = np.array([query, near, far]) * scale
    scores = (vectors[1:] @ vectors[0]).tolist()
    found = hand(vectors[0].tolist(), vectors[1:].tolist(), scores, 3, "ip")
    plain = hand(query, [near, far], [1.4, 22.0], 3, "ip")
    assert found == pytest.approx([number * scale for number in plain], rel=1e-5)


def test_a_distance_is_no_likeness():
    with pytest.raises(UsageError, match=r"^--expand-queries with alpha 3 .*: write alpha 0"):
        hand(X, [Y], [2.0], 3, "l2")
    for alpha, metric in ((0.0, "l2"), (3.0, "cosine"), (3.0, "ip")):
        check_expansion(alpha, metric)


# --- the option ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "alpha"),
    [("10", 10, 3.0), (" 1 ", 1, 3.0), ("10,0", 10, 0.0), ("5,2.5", 5, 2.5), ("007,3", 7, 3.0)],
)
def test_an_expansion_is_read(text, count, alpha):
    assert parse_expansion(text) == Expansion(count, alpha)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "10,", ",3", "10,-1", "10,nan", "10,inf", "2.5", "10;3", "10,3,1", "ten",
     "10,1e3", "٣", "10, 3", "10," + "9" * 400],
)  # fmt: skip
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match="is not an expansion; write 10 or 10,3"):
        parse_expansion(text)
