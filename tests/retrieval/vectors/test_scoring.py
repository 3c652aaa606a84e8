"""Tests that top-k equals brute force in float64 for any product, block size and order."""

from __future__ import annotations

from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.vectors import matmul, scoring, topk
from retrieval.vectors.matmul import FLOAT32_PRODUCT
from retrieval.vectors.scoring import VectorBlock, block, compute_squared_norms, score_pairs
from retrieval.vectors.topk import TopK, nearest_centroids, top_k
from tests.retrieval.sample_vectors import (
    METRICS,
    Case,
    brute_force,
    call_with_flushed_subnormals,
    cases,
    exact_keys,
    metrics,
    nightly,
    quick,
    seeds,
)

every_metric = pytest.mark.parametrize("metric", METRICS)
brief = settings(quick, max_examples=60)


def float32(rows: object) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def assert_same(best: TopK, keys: NDArray[np.float64], places: NDArray[np.int64]) -> None:
    np.testing.assert_array_equal(best.positions, places)
    np.testing.assert_array_equal(best.keys, keys)  # to the last bit


# --- top-k is brute force -----------------------------------------------------------------------


def top_k_is_brute_force(case: Case, metric: Metric, k: int, seed: int, product: int) -> None:
    """All rows at once, ties by a shuffled number."""
    ties = np.random.default_rng(seed).permutation(len(case.rows))
    expected = brute_force(exact_keys(case.queries, case.rows, metric), ties, k)
    with mock.patch.object(topk, "_PRODUCT_ELEMENTS", product):
        best = top_k(block(case.queries, metric), block(case.rows, metric), k, ties)
    assert_same(best, *expected)


pairs_at_once = st.sampled_from([1, 30, 1 << 23])


@quick
@given(cases(), metrics, st.integers(1, 45), seeds, pairs_at_once)
def test_top_k_is_brute_force(case, metric, k, seed, product):
    top_k_is_brute_force(case, metric, k, seed, product)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, st.integers(1, 45), seeds, pairs_at_once)
def test_top_k_is_brute_force_many_times(case, metric, k, seed, product):
    top_k_is_brute_force(case, metric, k, seed, product)


def pushes_do_not_matter(case: Case, metric: Metric, k: int, seed: int, cuts: int) -> None:
    """Rows come in shuffled blocks of any size, each to some of the queries."""
    generator = np.random.default_rng(seed)
    count = len(case.rows)
    ties, positions = generator.permutation(count), generator.permutation(1000)[:count]
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    keys = exact_keys(case.queries, case.rows, metric)
    best = TopK(queries, k)
    for part in np.array_split(generator.permutation(count), cuts):
        asked = np.flatnonzero(generator.random(len(queries)) < 0.7)
        which = None if len(asked) == len(queries) else generator.permutation(asked)
        best.push(rows.take(part), ties[part], positions[part], which)
        unasked = np.setdiff1d(np.arange(len(queries)), asked)
        keys[np.ix_(unasked, part)] = -np.inf
    expected_keys, places = brute_force(keys, ties, k)
    expected = np.where(places < 0, -1, positions[places])
    assert_same(best, expected_keys, expected)


cuts = st.integers(1, 12)


@quick
@given(cases(), metrics, st.integers(1, 12), seeds, cuts)
def test_blocks_and_query_subsets_do_not_matter(case, metric, k, seed, cuts):
    pushes_do_not_matter(case, metric, k, seed, cuts)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, st.integers(1, 12), seeds, cuts)
def test_blocks_and_query_subsets_do_not_matter_many_times(case, metric, k, seed, cuts):
    pushes_do_not_matter(case, metric, k, seed, cuts)


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_tie_at_the_kth_place_are_kept_by_their_tie_alone(metric, dtype):
    """Every row is the same, so that ties decide everything."""
    rows = np.full((50, 33), 0.3, dtype)
    ties = np.random.default_rng(0).permutation(50)
    best = top_k(block(rows[:2], metric), block(rows, metric), 7, ties)
    np.testing.assert_array_equal(best.positions, [np.argsort(ties)[:7]] * 2)


@every_metric
@pytest.mark.parametrize("step", [300, 40, 7, 1])
def test_near_ties_that_float32_cannot_tell_apart_are_ordered_in_float64(metric, step):
    generator = np.random.default_rng(5)
    centre = generator.normal(size=(1, 257))
    values = (centre * (1 + 1e-7 * generator.normal(size=(300, 257)))).astype(np.float32)
    queries, rows = block(centre.astype(np.float32), metric), block(values, metric)
    keys = exact_keys(queries.values, values, metric)
    cheap = FLOAT32_PRODUCT.keys(FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows))
    assert not np.array_equal(np.argsort(-cheap[0]), np.argsort(-keys[0]))  # the case is hard
    best, places = TopK(queries, 10), np.arange(300)
    for part in scoring.split_range(300, step):
        best.push(rows.take(part), places[part], places[part])
    assert_same(best, *brute_force(keys, places, 10))


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_pairs_whose_float32_product_overflows_are_decided_in_float64(metric):
    generator = np.random.default_rng(1)
    values = (generator.normal(size=(60, 40)) * 1e19).astype(np.float32)
    values[::7] *= np.float32(1e18)  # up to 1e37: their products reach 1e74
    values[::5] *= np.float32(1e-18)
    queries, rows = block(values[:4], metric), block(values, metric)
    cheap = FLOAT32_PRODUCT.keys(FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows))
    assert 0 < np.isfinite(cheap).sum() < cheap.size  # the case has both
    expected = brute_force(exact_keys(values[:4], values, metric), np.arange(60), 9)
    assert_same(top_k(queries, rows, 9), *expected)


def test_a_best_row_whose_product_overflows_is_found_beside_k_that_do_not():
    rows = float32([[1, 0]] * 20 + [[1e30, 0], [-1e30, 0]])
    best = top_k(block(float32([[1e10, 0]]), "ip"), block(rows, "ip"), 3)
    assert best.positions.tolist() == [[20, 0, 1]]


@every_metric
def test_rows_of_the_size_of_subnormal_numbers_are_told_apart(metric):
    tiny = np.arange(1, 9, dtype=np.float32)[:, None] * np.float32(1e-45)
    rows = np.concatenate([tiny, -tiny, tiny * np.float32(1e30), np.zeros((2, 1), np.float32)])
    queries = float32([[3e-45], [1e38], [-2e-16]])
    expected = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), 6)
    assert_same(top_k(block(queries, metric), block(rows, metric), 6), *expected)


@every_metric
def test_galleries_longer_than_one_slice_are_searched_whole(metric):
    generator = np.random.default_rng(2)
    rows = generator.integers(-9, 10, ((1 << 16) + 4000, 2)).astype(np.float32)
    rows[-1] = (0, 1e-3)
    queries = float32([[0, 1e-3], [9, 9], [0, 0]])
    keys = exact_keys(queries, rows, metric)
    best = top_k(block(queries, metric), block(rows, metric), 5)
    for query in range(3):
        places = np.lexsort((np.arange(len(rows)), -keys[query]))[:5]
        np.testing.assert_array_equal(best.positions[query], places)


@every_metric
def test_the_number_of_queries_asked_at_once_does_not_matter(metric):
    generator = np.random.default_rng(3)
    queries = block(generator.normal(size=(30, 20)).astype(np.float32), metric)
    rows = block(generator.normal(size=(200, 20)).astype(np.float32), metric)
    together = top_k(queries, rows, 8)
    for place in range(len(queries)):
        alone = top_k(queries.take(np.array([place])), rows, 8)
        np.testing.assert_array_equal(alone.positions[0], together.positions[place])
        np.testing.assert_array_equal(alone.keys[0], together.keys[place])


@every_metric
def test_where_there_are_fewer_rows_than_k_the_rest_has_no_position(metric):
    best = top_k(block(float32([[1, 2]]), metric), block(float32([[1, 2], [0, 1]]), metric), 4)
    assert best.positions.tolist() == [[0, 1, -1, -1]]
    worst = np.inf if metric == "l2" else -np.inf
    assert best.scores()[0, 2:].tolist() == [worst, worst]


@every_metric
def test_empty_push_changes_nothing(metric):
    queries, rows = block(float32([[1, 2]]), metric), block(float32([[1, 2]]), metric)
    one = np.array([0])
    best = TopK(queries, 2)
    best.push(rows.take(slice(0, 0)), one[:0], one[:0])
    best.push(rows, one, one, query_positions=one[:0])
    assert best.positions.tolist() == [[-1, -1]]


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_what_their_metric_says():
    queries, rows = float32([[3, 4]]), float32([[4, 3], [0, 0], [-6, -8]])
    pairs = np.zeros(3, np.int64), np.arange(3)
    scores = {m: score_pairs(block(queries, m), block(rows, m), *pairs).tolist() for m in METRICS}
    assert scores == {
        "cosine": [24 / 25, 0, -1],
        "ip": [24, 0, -50],
        "l2": [1 + 1, 9 + 16, 81 + 144],
    }


def test_scores_of_l2_are_distances_and_not_keys():
    best = top_k(block(float32([[1, 0]]), "l2"), block(float32([[1, 3], [1, 0]]), "l2"), 2)
    assert best.scores().tolist() == [[0, 9]]
    assert best.keys.tolist() == [[0, -9]]


@quick
@given(cases(), metrics, st.sampled_from([1, 2, 3, 7, 64]))
def test_a_score_has_the_same_bits_however_pairs_are_cut(case, metric, pairs):
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    q, x = (part.ravel() for part in np.indices((len(queries), len(rows))))
    whole = score_pairs(queries, rows, q, x)
    with mock.patch.object(scoring, "_PAIRS", pairs):
        assert score_pairs(queries, rows, q, x).tobytes() == whole.tobytes()
        assert compute_squared_norms(case.rows).tobytes() == rows.squared_norms.tobytes()
    alone = [score_pairs(queries, rows, q[[i]], x[[i]])[0] for i in range(0, len(q), 7)]
    assert np.array(alone).tobytes() == whole[::7].tobytes()


@quick
@given(cases(dims=st.integers(1, 12)), metrics)
def test_scores_are_right_to_float64(case, metric):
    """Against rational numbers, so that the definition itself is not its own oracle."""
    scores = score_pairs(*ready(case, metric), *first_pair())
    q = [Fraction(float(value)) for value in case.queries[0]]
    x = [Fraction(float(value)) for value in case.rows[0]]
    size = sum(a * a for a in q) * sum(b * b for b in x)
    if metric == "l2":
        exact = sum((a - b) ** 2 for a, b in zip(q, x, strict=True))
        allowed = exact * Fraction(20, 2**52)
    else:
        exact = sum(a * b for a, b in zip(q, x, strict=True))
        allowed = sum(abs(a * b) for a, b in zip(q, x, strict=True)) * Fraction(20, 2**52)
    if metric == "cosine" and size:  # compare squares: roots are not rational
        score = Fraction(float(scores[0]))
        assert abs(score * abs(score) - exact * abs(exact) / size) <= Fraction(60, 2**52)
    else:
        assert abs(Fraction(float(scores[0])) - exact) <= allowed


def ready(case: Case, metric: Metric) -> tuple[VectorBlock, VectorBlock]:
    return block(case.queries, metric), block(case.rows, metric)


def first_pair() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.zeros(1, np.int64), np.zeros(1, np.int64)


# --- the bound ----------------------------------------------------------------------------------


def worst_of_bound(case: Case, metric: Metric, keys: NDArray[np.float64] | None = None) -> float:
    """Give the largest share of the bound that an error takes up; more than 1 would break it."""
    queries, rows = ready(case, metric)
    left, right = FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows)
    cheap, slack = FLOAT32_PRODUCT.keys(left, right), FLOAT32_PRODUCT.key_error(left, right)
    keys = exact_keys(case.queries, case.rows, metric) if keys is None else keys
    if metric == "l2":
        keys = keys + (queries.norms**2)[:, None]  # the cheap key lacks it
    with np.errstate(invalid="ignore"):
        error = np.abs(cheap.astype(np.float64) - keys)
    decided = np.isfinite(cheap)
    return float((error / slack[:, None])[decided].max(initial=0.0))


@quick
@given(cases(), metrics)
def test_the_cheap_key_is_within_its_bound(case, metric):
    worst = worst_of_bound(case, metric)
    target(worst)
    assert worst <= 1


@pytest.mark.nightly
@nightly
@given(cases(), metrics)
def test_the_cheap_key_is_within_its_bound_many_times(case, metric):
    test_the_cheap_key_is_within_its_bound.hypothesis.inner_test(case, metric)


def rounding_up(d: int) -> Vectors:
    """Numbers whose every partial sum rounds the same way, which is what the bound allows for."""
    values = np.full(d, 1 + 2.0**-12, np.float32)
    values[0] = 2**11
    return values[None]


def cancelling(d: int) -> Vectors:
    """Terms of alternating sign whose sum is far smaller than any of them."""
    signs = np.where(np.arange(d) % 2, -1, 1)
    values = signs * (1 + np.random.default_rng(d).random(d) * 1e-3)
    return values.astype(np.float32)[None]


@every_metric
@pytest.mark.parametrize("d", [1, 2, 31, 513, 4096])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1, 1e15, 3e18])
def test_the_bound_holds_where_rounding_adds_up(metric, d, scale):
    straight, crossed = rounding_up(d), cancelling(d)
    rows = np.concatenate([straight, crossed, np.abs(crossed), -straight, straight * 0])
    rows = (rows * np.float32(scale)).astype(np.float32)
    queries = np.concatenate([straight, np.abs(crossed), crossed])
    assert worst_of_bound(Case(queries, rows), metric) <= 1
    assert worst_of_bound(Case(rows, rows), metric) <= 1


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_the_bound_holds_for_numbers_whose_rounding_is_worst(metric):
    """One dimension, mantissas just above 1: a rounding may then take all that the bound has."""
    generator = np.random.default_rng(0)
    mantissas = (1 + generator.random((2, 1000)) * 1e-3).astype(np.float32)
    small = mantissas[1] * np.float32(2**-23)  # its square is half of the last bit of 2 q x
    case = Case(mantissas[0][:, None], small[:, None])
    assert 0.9 < worst_of_bound(case, metric) <= 1


@every_metric
def test_the_bound_is_narrow_enough_to_spare_nearly_all_pairs(metric):
    generator = np.random.default_rng(0)
    rows = block(generator.normal(size=(5000, 128)).astype(np.float32), metric)
    queries = rows.take(slice(0, 20))
    near = topk._PreparedRows(rows)
    fresh, _ = topk._survivors(queries, near, np.full(20, -np.inf), 10)
    kth = top_k(queries, rows, 10).keys[:, -1]
    later, _ = topk._survivors(queries, near, kth, 10)
    for survivors in (fresh, later):  # the 10 that are asked for, and hardly more
        assert 20 * 10 <= len(survivors) <= 20 * 12


# --- nearest, refusals --------------------------------------------------------------------------


@every_metric
def test_nearest_gives_ties_to_the_smaller_number(metric):
    centroids = float32([[0, 1], [1, 0], [1, 0], [0, 1]])
    queries = float32([[1, 0], [0, 1], [1, 1], [0, 0]])
    found = nearest_centroids(block(queries, metric), block(centroids, metric))
    assert found.tolist() == [1, 0, 0, 0]


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused_by_number(metric, dtype, bad):
    values = np.ones((1500, 3), dtype)
    values[1300, 1] = bad
    with pytest.raises(ValueError, match="row 1300 holds NaN or infinity"):
        block(values, metric)


@pytest.mark.parametrize("values", [np.ones((2, 2)), np.ones(2, np.float32), np.ones((2, 2), int)])
def test_only_matrices_of_float16_or_float32_are_vectors(values):
    with pytest.raises(ValueError, match="float16 or float32"):
        block(values, "ip")


@every_metric
def test_the_layout_in_memory_does_not_matter(metric):
    values = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    plain = top_k(block(values[:5], metric), block(values, metric), 6)
    wide = np.repeat(values, 2, axis=1)[:, ::2]
    odd = top_k(block(np.asfortranarray(values[:5]), metric), block(wide, metric), 6)
    assert_same(odd, plain.keys, plain.positions)


# --- equal vectors, rows by themselves, subnormal numbers ---------------------------------------


@brief
@given(cases(), metrics)
def test_equal_vectors_score_as_equal_and_none_scores_above(case, metric):
    """cosine: 1, or 0 without length; l2: 0. And a score is that of the swapped pair."""
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    each = np.arange(len(rows))
    own = score_pairs(rows, block(case.rows.copy(), metric), each, each)
    if metric == "cosine":
        np.testing.assert_array_equal(own, case.rows.astype(bool).any(1).astype(float))
    elif metric == "l2":
        np.testing.assert_array_equal(own, 0)
    q, x = (part.ravel() for part in np.indices((len(queries), len(rows))))
    scores = score_pairs(queries, rows, q, x)
    assert scores.tobytes() == score_pairs(rows, queries, x, q).tobytes()
    if metric == "cosine":
        assert np.abs(scores).max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_cosine_of_every_vector_with_itself_is_one(dtype, scale):
    rows = block((np.random.default_rng(0).normal(size=(800, 64)) * scale).astype(dtype), "cosine")
    each = np.arange(800)
    assert score_pairs(rows, rows, each, each).tolist() == [1.0] * 800
    best = top_k(rows, rows, 1)
    assert best.positions[:, 0].tolist() == each.tolist()
    assert best.scores()[:, 0].tolist() == [1.0] * 800


@brief
@given(cases(), metrics, seeds)
def test_matmul_input_of_a_row_depends_on_that_row_alone(case, metric, seed):
    which = np.flatnonzero(np.random.default_rng(seed).random(len(case.rows)) < 0.5)
    whole = block(case.rows, metric).matmul_input
    assert block(case.rows[which], metric).matmul_input.tobytes() == whole[which].tobytes()
    known = compute_squared_norms(case.rows)
    fresh = VectorBlock(metric, case.rows[which], known[which])  # nothing was computed of it before
    assert fresh.matmul_input.tobytes() == whole[which].tobytes()


def test_one_tiny_vector_changes_nothing_of_its_neighbours():
    values = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    beside = np.concatenate([values, np.full((1, 8), 1e-20, np.float32)])
    assert (
        block(beside, "cosine").matmul_input[:100].tobytes()
        == block(values, "cosine").matmul_input.tobytes()
    )


def bits_of(case: Case, metric: Metric) -> list[bytes]:
    """Score all pairs, and the copies that k-means sums."""
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    q, x = (part.ravel() for part in np.indices((len(queries), len(rows))))
    scores = score_pairs(queries, rows, q, x)
    best = top_k(queries, rows, 5)
    parts = (
        scores,
        rows.squared_norms,
        rows.matmul_input,
        rows.float32_values,
        best.keys,
        best.positions,
    )
    return [part.tobytes() for part in parts]


@brief
@given(cases(), metrics)
def test_subnormal_numbers_count_where_the_processor_takes_them_for_zero(case, metric):
    assert call_with_flushed_subnormals(lambda: bits_of(case, metric)) == bits_of(case, metric)


def test_float16_of_small_numbers_scores_the_same_where_subnormals_are_zero():
    """Such a query had another cosine by 1.6e-4."""
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(60, 32)) * 1e-4).astype(np.float16)
    queries, rows = values[:5], values[5:]
    expected = exact_keys(queries, rows, "cosine")
    q, x = (part.ravel() for part in np.indices(expected.shape))
    found = call_with_flushed_subnormals(
        lambda: score_pairs(block(queries, "cosine"), block(rows, "cosine"), q, x)
    )
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@brief
@given(cases(), metrics)
def test_the_cheap_key_is_within_its_bound_where_subnormals_are_zero(case, metric):
    keys = exact_keys(case.queries, case.rows, metric)  # numpy's casts would lose subnormals
    assert call_with_flushed_subnormals(lambda: worst_of_bound(case, metric, keys)) <= 1


# --- what float32 cannot tell goes to a product in float64 --------------------------------------


@pytest.fixture
def pairs_scored(monkeypatch):
    """Count the pairs that are scored one by one."""
    counted = []

    def counting(queries, rows, q, x):
        counted.append(len(q))
        return score_pairs(queries, rows, q, x)

    monkeypatch.setattr(topk, "score_pairs", counting)
    return counted


def spoiled(what: str) -> tuple[Vectors, Vectors]:
    """Draw 30 queries and 2,000 rows, of which one is odd or which lie far from the origin."""
    generator = np.random.default_rng(0)
    queries, rows = (generator.normal(size=(n, 16)).astype(np.float32) for n in (30, 2000))
    if what == "a row beyond float32's squares":
        rows[77] *= np.float32(1e19)
    elif what == "a long row":
        rows[77] *= np.float32(1e12)
    elif what == "a query beyond float32's squares":
        queries[7] *= np.float32(1e19)
    else:
        queries, rows = queries + np.float32(300), rows + np.float32(300)
    return queries, rows


SPOILED = [
    ("ip", "a row beyond float32's squares"),
    ("l2", "a row beyond float32's squares"),
    ("ip", "a long row"),
    ("l2", "a long row"),
    ("ip", "a query beyond float32's squares"),  # of l2 all its distances are one float64
    ("l2", "an offset"),
]


@pytest.mark.parametrize(("metric", "what"), SPOILED)
def test_one_odd_vector_or_an_offset_leaves_few_pairs_to_score_one_by_one(
    metric, what, pairs_scored
):
    """Of 60,000 pairs; before, all of them were scored so, which takes a hundred times as long."""
    values, vectors = spoiled(what)
    queries, rows = block(values, metric), block(vectors, metric)
    keys = exact_keys(values, vectors, metric)
    best = top_k(queries, rows, 10)
    assert_same(best, *brute_force(keys, np.arange(2000), 10))
    assert nearest_centroids(queries, rows).tolist() == best.positions[:, 0].tolist()
    found = topk.top_k_positions(queries, rows, 10)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(best.positions, axis=1))
    assert sum(pairs_scored) < 3 * 30 * 10 * 4


@brief
@given(cases(), metrics, st.integers(1, 12), st.booleans())
def test_a_product_in_float64_proposes_no_worse(case, metric, k, flush):
    """It is taken here wherever a pair is undecided."""

    def found() -> TopK:
        with mock.patch.multiple(matmul, _FEW_DOUBTFUL=-1, _DOUBTFUL=1 << 40):
            queries, rows = block(case.queries, metric), block(case.rows, metric)
            best = top_k(queries, rows, k)
            assert (
                nearest_centroids(queries, rows).tolist()
                == top_k(queries, rows, 1).positions[:, 0].tolist()
            )
            return best

    places = np.arange(len(case.rows))
    expected = brute_force(exact_keys(case.queries, case.rows, metric), places, k)
    assert_same(call_with_flushed_subnormals(found) if flush else found(), *expected)


@brief
@given(cases(), metrics, st.booleans())
def test_keys_in_float64_are_within_their_bound_pair_by_pair(case, metric, centred):
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    centre = rows.float32_values[0] if centred and metric == "l2" else None
    proposed = matmul.propose_in_float64(
        queries, rows, np.full(len(queries), -np.inf), None, centre
    )
    assert len(proposed.q) == len(queries) * len(rows)
    keys = exact_keys(case.queries, case.rows, metric)
    if metric == "l2":
        shift = matmul.key_offsets(FLOAT32_PRODUCT.prepare(queries, centre))
        keys = keys + shift[:, None]
    error = np.abs(proposed.keys.astype(np.float64) - keys[proposed.q, proposed.x])
    assert (error <= proposed.slack).all()


@brief
@given(cases())
def test_the_bound_holds_from_a_centre(case):
    """Any centre: here a row, which is far from some of the others."""
    queries, rows = block(case.queries, "l2"), block(case.rows, "l2")
    centre = rows.float32_values[0]
    left, right = FLOAT32_PRODUCT.prepare(queries, centre), FLOAT32_PRODUCT.prepare(rows, centre)
    safe = matmul.fits_float32(left)[:, None] & matmul.fits_float32(right)
    keys, slack = FLOAT32_PRODUCT.keys(left, right), FLOAT32_PRODUCT.key_error(left, right)
    exact = exact_keys(case.queries, case.rows, "l2") + matmul.key_offsets(left)[:, None]
    error = np.abs(keys.astype(np.float64) - exact)
    assert (error[safe] <= np.broadcast_to(slack[:, None], error.shape)[safe]).all()


def test_a_centre_is_taken_only_far_from_the_origin_and_no_odd_row_moves_it():
    values = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    far = values + np.float32(300)
    assert matmul.choose_centre(block(values, "l2")) is None
    assert matmul.choose_centre(block(far, "ip")) is None
    far[::20] *= np.float32(1e30)
    centre = matmul.choose_centre(block(far, "l2"))
    assert centre is not None
    np.testing.assert_allclose(centre, 300, atol=2)
