"""Tests that scores and top-k equal brute force in float64 for any block size and order."""

from __future__ import annotations

import itertools
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.vectors import matmul, pair_collector, scoring, topk
from retrieval.vectors.matmul import FLOAT32_PRODUCT, choose_centre
from retrieval.vectors.pair_collector import PairCollector, prepare_rows
from retrieval.vectors.scoring import (
    VectorBlock,
    block,
    compute_squared_norms,
    score_pairs,
    scores_to_keys,
)
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
short = settings(quick, max_examples=60)


def float32(rows: object) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def assert_same(result: TopK, keys: NDArray[np.float64], positions: NDArray[np.int64]) -> None:
    np.testing.assert_array_equal(result.positions, positions)
    np.testing.assert_array_equal(result.keys, keys)  # to the last bit


# --- top-k ----------------------------------------------------------------------------------------


def assert_top_k_equals_brute_force(
    case: Case, metric: Metric, k: int, seed: int, product: int, block_rows: int
) -> None:
    """Assert that top_k equals brute force, with ties ordered by random numbers."""
    ties = np.random.default_rng(seed).permutation(len(case.rows))
    expected = brute_force(exact_keys(case.queries, case.rows, metric), ties, k)
    with mock.patch.multiple(pair_collector, _PRODUCT_ELEMENTS=product, _BLOCK_ROWS=block_rows):
        best = top_k(block(case.queries, metric), block(case.rows, metric), k, ties)
    assert_same(best, *expected)


product_sizes = (st.sampled_from([1, 700, 1 << 23]), st.sampled_from([16, 32, 1 << 10]))


@quick
@given(cases(), metrics, st.integers(1, 45), seeds, *product_sizes)
def test_top_k_equals_brute_force(case, metric, k, seed, product, block_rows):
    assert_top_k_equals_brute_force(case, metric, k, seed, product, block_rows)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, st.integers(1, 45), seeds, *product_sizes)
def test_top_k_equals_brute_force_many_times(case, metric, k, seed, product, block_rows):
    assert_top_k_equals_brute_force(case, metric, k, seed, product, block_rows)


def assert_pushes_equal_brute_force(
    case: Case, metric: Metric, k: int, seed: int, cuts: int
) -> None:
    """Assert that pushing blocks of rows equals brute force.

    The blocks are shuffled, and each is pushed to a subset of the queries.
    """
    generator = np.random.default_rng(seed)
    count = len(case.rows)
    ties, positions = generator.permutation(count), generator.permutation(1000)[:count]
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    keys = exact_keys(case.queries, case.rows, metric)
    best = TopK(queries, k)
    for part in np.array_split(generator.permutation(count), cuts):
        selected = np.flatnonzero(generator.random(len(queries)) < 0.7)
        query_positions = None if len(selected) == len(queries) else generator.permutation(selected)
        best.push(rows.take(part), ties[part], positions[part], query_positions)
        others = np.setdiff1d(np.arange(len(queries)), selected)
        keys[np.ix_(others, part)] = -np.inf
    expected_keys, best_positions = brute_force(keys, ties, k)
    expected = np.where(best_positions < 0, -1, positions[best_positions])
    assert_same(best, expected_keys, expected)


cuts = st.integers(1, 12)


@quick
@given(cases(), metrics, st.integers(1, 12), seeds, cuts)
def test_top_k_does_not_depend_on_blocks_or_query_subsets(case, metric, k, seed, cuts):
    assert_pushes_equal_brute_force(case, metric, k, seed, cuts)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, st.integers(1, 12), seeds, cuts)
def test_top_k_does_not_depend_on_blocks_or_query_subsets_many_times(case, metric, k, seed, cuts):
    assert_pushes_equal_brute_force(case, metric, k, seed, cuts)


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_rows_are_selected_by_their_tie_breaker(metric, dtype):
    """All rows are equal, so that ties decide the order."""
    rows = np.full((50, 33), 0.3, dtype)
    ties = np.random.default_rng(0).permutation(50)
    best = top_k(block(rows[:2], metric), block(rows, metric), 7, ties)
    np.testing.assert_array_equal(best.positions, [np.argsort(ties)[:7]] * 2)


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("k", [1, 10, 150, 700])
def test_more_equal_rows_than_a_buffer_holds_equal_brute_force(metric, dtype, k):
    """Rows hold copies, near copies, zero vectors, outliers and subnormal numbers."""
    generator = np.random.default_rng(k)
    rows = generator.normal(size=(600, 24))
    rows[100:320] = rows[100]
    rows[320:400] = rows[100] * (1 + 1e-7 * generator.normal(size=(80, 24)))
    rows[400:500] = 0
    rows[500:503] *= 1e4 if dtype == "float16" else 1e17
    rows[503:506] *= 1e-7 if dtype == "float16" else 1e-42
    limit = float(np.finfo(dtype).max)
    values = np.clip(rows, -limit, limit).astype(dtype)[generator.permutation(600)]
    queries = np.concatenate([values[:40], rows[[100, 350, 450, 501, 504]].astype(dtype)])
    ties = generator.permutation(600)
    expected = brute_force(exact_keys(queries, values, metric), ties, k)
    left, right = block(queries, metric), block(values, metric)
    assert_same(top_k(left, right, k, ties), *expected)
    _, positions = brute_force(exact_keys(queries, values, metric), np.arange(600), min(k, 600))
    result = topk.top_k_positions(left, right, min(k, 600))
    np.testing.assert_array_equal(np.sort(result, axis=1), np.sort(positions, axis=1))
    assert nearest_centroids(left, right).tolist() == positions[:, 0].tolist()


@quick
@given(cases(), metrics, st.integers(1, 12), seeds, st.sampled_from([1, 700, 1 << 18]))
def test_parts_of_rows_equal_brute_force(case, metric, k, seed, elements):
    """Queries are compared with some parts of the rows, as with inverted lists."""
    generator = np.random.default_rng(seed)
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    bounds = np.sort([0, *generator.integers(0, len(rows) + 1, 3), len(rows)])
    reads = generator.random((len(queries), len(bounds) - 1)) < 0.6
    keys = exact_keys(case.queries, case.rows, metric)
    keys[~np.repeat(reads, np.diff(bounds), axis=1)] = -np.inf
    best = TopK(queries, k)

    def decide(query, numbers):
        scored = scores_to_keys(score_pairs(queries, rows, query, numbers), metric)
        best.merge(query, scored, numbers, numbers)
        return best.kth_keys(query)

    prepared = prepare_rows(rows, choose_centre(rows))
    collector = PairCollector(queries, k, len(rows), decide, centre=prepared.centre)
    parts = [
        (slice(int(first), int(last)), np.flatnonzero(reads[:, number]))
        for number, (first, last) in enumerate(itertools.pairwise(bounds))
    ]
    with mock.patch.object(pair_collector, "_PRODUCT_ELEMENTS", elements):
        collector.multiply_parts(prepared, 0, parts)
    collector.decide_pending()
    assert_same(best, *brute_force(keys, np.arange(len(rows)), k))


@every_metric
@pytest.mark.parametrize("step", [300, 40, 7, 1])
def test_near_ties_are_ordered_in_float64(metric, step):
    generator = np.random.default_rng(5)
    centre = generator.normal(size=(1, 257))
    values = (centre * (1 + 1e-7 * generator.normal(size=(300, 257)))).astype(np.float32)
    queries, rows = block(centre.astype(np.float32), metric), block(values, metric)
    keys = exact_keys(queries.values, values, metric)
    float32_keys = FLOAT32_PRODUCT.keys(
        FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows)
    )
    # float32 orders the rows differently
    assert not np.array_equal(np.argsort(-float32_keys[0]), np.argsort(-keys[0]))
    best, positions = TopK(queries, 10), np.arange(300)
    for part in scoring.split_range(300, step):
        best.push(rows.take(part), positions[part], positions[part])
    assert_same(best, *brute_force(keys, positions, 10))


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_pairs_with_float32_overflow_are_decided_in_float64(metric):
    generator = np.random.default_rng(1)
    values = (generator.normal(size=(60, 40)) * 1e19).astype(np.float32)
    values[::7] *= np.float32(1e18)  # up to 1e37: their products reach 1e74
    values[::5] *= np.float32(1e-18)
    queries, rows = block(values[:4], metric), block(values, metric)
    float32_keys = FLOAT32_PRODUCT.keys(
        FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows)
    )
    # some products overflow, some do not
    assert 0 < np.isfinite(float32_keys).sum() < float32_keys.size
    expected = brute_force(exact_keys(values[:4], values, metric), np.arange(60), 9)
    assert_same(top_k(queries, rows, 9), *expected)


def test_best_row_with_float32_overflow_is_found():
    rows = float32([[1, 0]] * 20 + [[1e30, 0], [-1e30, 0]])
    best = top_k(block(float32([[1e10, 0]]), "ip"), block(rows, "ip"), 3)
    assert best.positions.tolist() == [[20, 0, 1]]


@every_metric
def test_subnormal_rows_are_ordered_exactly(metric):
    tiny = np.arange(1, 9, dtype=np.float32)[:, None] * np.float32(1e-45)
    rows = np.concatenate([tiny, -tiny, tiny * np.float32(1e30), np.zeros((2, 1), np.float32)])
    queries = float32([[3e-45], [1e38], [-2e-16]])
    expected = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), 6)
    assert_same(top_k(block(queries, metric), block(rows, metric), 6), *expected)


@every_metric
def test_gallery_larger_than_one_slice_is_searched_completely(metric):
    generator = np.random.default_rng(2)
    rows = generator.integers(-9, 10, ((1 << 16) + 4000, 2)).astype(np.float32)
    rows[-1] = (0, 1e-3)
    queries = float32([[0, 1e-3], [9, 9], [0, 0]])
    keys = exact_keys(queries, rows, metric)
    best = top_k(block(queries, metric), block(rows, metric), 5)
    for query in range(3):
        expected = np.lexsort((np.arange(len(rows)), -keys[query]))[:5]
        np.testing.assert_array_equal(best.positions[query], expected)


@every_metric
def test_top_k_of_a_query_does_not_depend_on_other_queries(metric):
    generator = np.random.default_rng(3)
    queries = block(generator.normal(size=(30, 20)).astype(np.float32), metric)
    rows = block(generator.normal(size=(200, 20)).astype(np.float32), metric)
    expected = top_k(queries, rows, 8)
    for position in range(len(queries)):
        result = top_k(queries.take(np.array([position])), rows, 8)
        np.testing.assert_array_equal(result.positions[0], expected.positions[position])
        np.testing.assert_array_equal(result.keys[0], expected.keys[position])


@every_metric
def test_fewer_rows_than_k_leave_positions_empty(metric):
    best = top_k(block(float32([[1, 2]]), metric), block(float32([[1, 2], [0, 1]]), metric), 4)
    assert best.positions.tolist() == [[0, 1, -1, -1]]
    worst = np.inf if metric == "l2" else -np.inf
    assert best.scores()[0, 2:].tolist() == [worst, worst]


@every_metric
def test_empty_push_has_no_effect(metric):
    queries, rows = block(float32([[1, 2]]), metric), block(float32([[1, 2]]), metric)
    zero = np.array([0])
    best = TopK(queries, 2)
    best.push(rows.take(slice(0, 0)), zero[:0], zero[:0])
    best.push(rows, zero, zero, query_positions=zero[:0])
    assert best.positions.tolist() == [[-1, -1]]


# --- scores ---------------------------------------------------------------------------------------


def test_scores_equal_hand_computed_values():
    queries, rows = float32([[3, 4]]), float32([[4, 3], [0, 0], [-6, -8]])
    pairs = np.zeros(3, np.int64), np.arange(3)
    scores = {m: score_pairs(block(queries, m), block(rows, m), *pairs).tolist() for m in METRICS}
    assert scores == {
        "cosine": [24 / 25, 0, -1],
        "ip": [24, 0, -50],
        "l2": [1 + 1, 9 + 16, 81 + 144],
    }


def test_l2_scores_are_squared_distances():
    best = top_k(block(float32([[1, 0]]), "l2"), block(float32([[1, 3], [1, 0]]), "l2"), 2)
    assert best.scores().tolist() == [[0, 9]]
    assert best.keys.tolist() == [[0, -9]]


@quick
@given(cases(), metrics, st.sampled_from([1, 2, 3, 7, 64]))
def test_scores_do_not_depend_on_how_pairs_are_batched(case, metric, pairs):
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    q, x = (part.ravel() for part in np.indices((len(queries), len(rows))))
    expected = score_pairs(queries, rows, q, x)
    with mock.patch.object(scoring, "_SCORED_PAIRS", pairs):
        assert score_pairs(queries, rows, q, x).tobytes() == expected.tobytes()
        assert compute_squared_norms(case.rows).tobytes() == rows.squared_norms.tobytes()
    single_pairs = [score_pairs(queries, rows, q[[i]], x[[i]])[0] for i in range(0, len(q), 7)]
    assert np.array(single_pairs).tobytes() == expected[::7].tobytes()


@quick
@given(cases(dims=st.integers(1, 12)), metrics)
def test_scores_are_accurate_to_float64(case, metric):
    """The reference is computed with rational numbers, independently of the code under test."""
    scores = score_pairs(*make_blocks(case, metric), *first_pair())
    q = [Fraction(float(value)) for value in case.queries[0]]
    x = [Fraction(float(value)) for value in case.rows[0]]
    squared_lengths = sum(a * a for a in q) * sum(b * b for b in x)
    if metric == "l2":
        exact = sum((a - b) ** 2 for a, b in zip(q, x, strict=True))
        tolerance = exact * Fraction(20, 2**52)
    else:
        exact = sum(a * b for a, b in zip(q, x, strict=True))
        tolerance = sum(abs(a * b) for a, b in zip(q, x, strict=True)) * Fraction(20, 2**52)
    if metric == "cosine" and squared_lengths:  # compare squares: roots are not rational
        score = Fraction(float(scores[0]))
        assert abs(score * abs(score) - exact * abs(exact) / squared_lengths) <= Fraction(60, 2**52)
    else:
        assert abs(Fraction(float(scores[0])) - exact) <= tolerance


def make_blocks(case: Case, metric: Metric) -> tuple[VectorBlock, VectorBlock]:
    return block(case.queries, metric), block(case.rows, metric)


def first_pair() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.zeros(1, np.int64), np.zeros(1, np.int64)


# --- error bound ----------------------------------------------------------------------------------


def worst_relative_error(
    case: Case, metric: Metric, keys: NDArray[np.float64] | None = None
) -> float:
    """Return the largest error of a float32 key relative to its bound; at most 1 is expected."""
    queries, rows = make_blocks(case, metric)
    left, right = FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows)
    float32_keys, bound = FLOAT32_PRODUCT.keys(left, right), FLOAT32_PRODUCT.key_error(left, right)
    keys = exact_keys(case.queries, case.rows, metric) if keys is None else keys
    if metric == "l2":
        keys = keys + (queries.norms**2)[:, None]  # the float32 key omits it
    with np.errstate(invalid="ignore"):
        error = np.abs(float32_keys.astype(np.float64) - keys)
    decided = np.isfinite(float32_keys)
    return float((error / bound[:, None])[decided].max(initial=0.0))


@quick
@given(cases(), metrics)
def test_float32_key_is_within_its_bound(case, metric):
    error = worst_relative_error(case, metric)
    target(error)
    assert error <= 1


@pytest.mark.nightly
@nightly
@given(cases(), metrics)
def test_float32_key_is_within_its_bound_many_times(case, metric):
    test_float32_key_is_within_its_bound.hypothesis.inner_test(case, metric)


def same_direction_rounding(d: int) -> Vectors:
    """Return a vector whose partial sums are all rounded in the same direction, shape (1, d)."""
    values = np.full(d, 1 + 2.0**-12, np.float32)
    values[0] = 2**11
    return values[None]


def cancelling_terms(d: int) -> Vectors:
    """Return a vector of alternating signs whose sum is far below its values, shape (1, d)."""
    signs = np.where(np.arange(d) % 2, -1, 1)
    values = signs * (1 + np.random.default_rng(d).random(d) * 1e-3)
    return values.astype(np.float32)[None]


@every_metric
@pytest.mark.parametrize("d", [1, 2, 31, 513, 4096])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1, 1e15, 3e18])
def test_bound_holds_where_rounding_errors_add_up(metric, d, scale):
    same_direction, cancelling = same_direction_rounding(d), cancelling_terms(d)
    rows = np.concatenate(
        [same_direction, cancelling, np.abs(cancelling), -same_direction, same_direction * 0]
    )
    rows = (rows * np.float32(scale)).astype(np.float32)
    queries = np.concatenate([same_direction, np.abs(cancelling), cancelling])
    assert worst_relative_error(Case(queries, rows), metric) <= 1
    assert worst_relative_error(Case(rows, rows), metric) <= 1


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_bound_is_nearly_reached_by_the_worst_case(metric):
    """In one dimension, with mantissas just above 1, a rounding error nearly reaches the bound."""
    generator = np.random.default_rng(0)
    mantissas = (1 + generator.random((2, 1000)) * 1e-3).astype(np.float32)
    small = mantissas[1] * np.float32(2**-23)  # its square is half of the last bit of 2 q x
    case = Case(mantissas[0][:, None], small[:, None])
    assert 0.9 < worst_relative_error(case, metric) <= 1


@every_metric
def test_bound_excludes_nearly_all_other_pairs(metric):
    generator = np.random.default_rng(0)
    rows = block(generator.normal(size=(5000, 128)).astype(np.float32), metric)
    queries = rows.take(slice(0, 20))
    kth = top_k(queries, rows, 10).keys[:, -1]
    for known_keys in (None, kth):
        collector = PairCollector(queries, 10, 5000, no_decision, known_keys=known_keys)
        collector.multiply(prepare_rows(rows), 0, np.arange(20))
        assert 20 * 10 <= collector.raise_thresholds() <= 20 * 12  # the requested 10, and few more


def no_decision(query, numbers):
    raise AssertionError("no buffer is full")


# --- nearest centroids, invalid vectors -----------------------------------------------------------


@every_metric
def test_nearest_centroid_of_ties_is_the_smaller_number(metric):
    centroids = float32([[0, 1], [1, 0], [1, 0], [0, 1]])
    queries = float32([[1, 0], [0, 1], [1, 1], [0, 0]])
    result = nearest_centroids(block(queries, metric), block(centroids, metric))
    assert result.tolist() == [1, 0, 0, 0]


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_row_is_refused_by_row_number(metric, dtype, value):
    values = np.ones((1500, 3), dtype)
    values[1300, 1] = value
    with pytest.raises(ValueError, match="row 1300 holds NaN or infinity"):
        block(values, metric)


@pytest.mark.parametrize("values", [np.ones((2, 2)), np.ones(2, np.float32), np.ones((2, 2), int)])
def test_other_dtypes_and_shapes_are_refused(values):
    with pytest.raises(ValueError, match="float16 or float32"):
        block(values, "ip")


@every_metric
def test_top_k_does_not_depend_on_memory_layout(metric):
    values = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    expected = top_k(block(values[:5], metric), block(values, metric), 6)
    strided = np.repeat(values, 2, axis=1)[:, ::2]
    result = top_k(block(np.asfortranarray(values[:5]), metric), block(strided, metric), 6)
    assert_same(result, expected.keys, expected.positions)


# --- equal vectors, independence of other rows, subnormal numbers ---------------------------------


@short
@given(cases(), metrics)
def test_equal_vectors_have_the_best_possible_score(case, metric):
    """A cosine is 1 (0 for zero vectors), a distance 0; scores are symmetric."""
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    positions = np.arange(len(rows))
    self_scores = score_pairs(rows, block(case.rows.copy(), metric), positions, positions)
    if metric == "cosine":
        np.testing.assert_array_equal(self_scores, case.rows.astype(bool).any(1).astype(float))
    elif metric == "l2":
        np.testing.assert_array_equal(self_scores, 0)
    q, x = (part.ravel() for part in np.indices((len(queries), len(rows))))
    scores = score_pairs(queries, rows, q, x)
    assert scores.tobytes() == score_pairs(rows, queries, x, q).tobytes()
    if metric == "cosine":
        assert np.abs(scores).max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_cosine_of_each_vector_with_itself_is_one(dtype, scale):
    rows = block((np.random.default_rng(0).normal(size=(800, 64)) * scale).astype(dtype), "cosine")
    positions = np.arange(800)
    assert score_pairs(rows, rows, positions, positions).tolist() == [1.0] * 800
    best = top_k(rows, rows, 1)
    assert best.positions[:, 0].tolist() == positions.tolist()
    assert best.scores()[:, 0].tolist() == [1.0] * 800


@short
@given(cases(), metrics, seeds)
def test_matmul_input_of_a_row_depends_on_that_row_alone(case, metric, seed):
    positions = np.flatnonzero(np.random.default_rng(seed).random(len(case.rows)) < 0.5)
    expected = block(case.rows, metric).matmul_input
    assert (
        block(case.rows[positions], metric).matmul_input.tobytes() == expected[positions].tobytes()
    )
    squared_norms = compute_squared_norms(case.rows)
    # without cached values
    subset = VectorBlock(metric, case.rows[positions], squared_norms[positions])
    assert subset.matmul_input.tobytes() == expected[positions].tobytes()


def test_tiny_vector_does_not_change_other_rows():
    values = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    with_tiny_row = np.concatenate([values, np.full((1, 8), 1e-20, np.float32)])
    assert (
        block(with_tiny_row, "cosine").matmul_input[:100].tobytes()
        == block(values, "cosine").matmul_input.tobytes()
    )


def output_bytes(case: Case, metric: Metric) -> list[bytes]:
    """Return the bytes of all scores, norms and float32 copies of a case."""
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    q, x = (output.ravel() for output in np.indices((len(queries), len(rows))))
    scores = score_pairs(queries, rows, q, x)
    best = top_k(queries, rows, 5)
    outputs = (
        scores,
        rows.squared_norms,
        rows.matmul_input,
        rows.float32_values,
        best.keys,
        best.positions,
    )
    return [output.tobytes() for output in outputs]


@short
@given(cases(), metrics)
def test_results_do_not_depend_on_flushed_subnormals(case, metric):
    assert call_with_flushed_subnormals(lambda: output_bytes(case, metric)) == output_bytes(
        case, metric
    )


def test_small_float16_scores_do_not_depend_on_flushed_subnormals():
    """Regression: such cosines differed by 1.6e-4."""
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(60, 32)) * 1e-4).astype(np.float16)
    queries, rows = values[:5], values[5:]
    expected = exact_keys(queries, rows, "cosine")
    q, x = (part.ravel() for part in np.indices(expected.shape))
    result = call_with_flushed_subnormals(
        lambda: score_pairs(block(queries, "cosine"), block(rows, "cosine"), q, x)
    )
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


@short
@given(cases(), metrics)
def test_float32_key_is_within_its_bound_with_flushed_subnormals(case, metric):
    keys = exact_keys(case.queries, case.rows, metric)  # numpy's casts would flush subnormals
    assert call_with_flushed_subnormals(lambda: worst_relative_error(case, metric, keys)) <= 1


# --- undecided pairs are proposed by a float64 product --------------------------------------------


@pytest.fixture
def pairs_scored(monkeypatch):
    """Record the number of pairs of each call of score_pairs."""
    counted = []

    def count_pairs(queries, rows, q, x):
        counted.append(len(q))
        return score_pairs(queries, rows, q, x)

    monkeypatch.setattr(topk, "score_pairs", count_pairs)
    return counted


def vectors_with_outlier(outlier: str) -> tuple[Vectors, Vectors]:
    """Draw 30 queries and 2,000 rows; one is an outlier, or all lie far from the origin."""
    generator = np.random.default_rng(0)
    queries, rows = (generator.normal(size=(n, 16)).astype(np.float32) for n in (30, 2000))
    if outlier == "a row beyond float32's squares":
        rows[77] *= np.float32(1e19)
    elif outlier == "a long row":
        rows[77] *= np.float32(1e12)
    elif outlier == "a query beyond float32's squares":
        queries[7] *= np.float32(1e19)
    else:
        queries, rows = queries + np.float32(300), rows + np.float32(300)
    return queries, rows


OUTLIERS = [
    ("ip", "a row beyond float32's squares"),
    ("l2", "a row beyond float32's squares"),
    ("ip", "a long row"),
    ("l2", "a long row"),
    ("ip", "a query beyond float32's squares"),  # not l2: all its distances are equal in float64
    ("l2", "an offset"),
]


@pytest.mark.parametrize(("metric", "outlier"), OUTLIERS)
def test_outlier_or_offset_leaves_few_pairs_to_score(metric, outlier, pairs_scored):
    """Regression: all 60,000 pairs were scored, which takes a hundred times as long."""
    values, vectors = vectors_with_outlier(outlier)
    queries, rows = block(values, metric), block(vectors, metric)
    keys = exact_keys(values, vectors, metric)
    best = top_k(queries, rows, 10)
    assert_same(best, *brute_force(keys, np.arange(2000), 10))
    assert nearest_centroids(queries, rows).tolist() == best.positions[:, 0].tolist()
    result = topk.top_k_positions(queries, rows, 10)
    np.testing.assert_array_equal(np.sort(result, axis=1), np.sort(best.positions, axis=1))
    assert sum(pairs_scored) < 3 * 30 * 10 * 4


@short
@given(cases(), metrics, st.integers(1, 12), st.booleans())
def test_float64_proposals_equal_brute_force(case, metric, k, flush):
    """It is used here wherever a pair is undecided."""

    def search() -> TopK:
        with mock.patch.multiple(matmul, _MIN_UNDECIDED=-1, _PAIRS_PER_UNDECIDED=1 << 40):
            queries, rows = block(case.queries, metric), block(case.rows, metric)
            best = top_k(queries, rows, k)
            assert (
                nearest_centroids(queries, rows).tolist()
                == top_k(queries, rows, 1).positions[:, 0].tolist()
            )
            return best

    positions = np.arange(len(case.rows))
    expected = brute_force(exact_keys(case.queries, case.rows, metric), positions, k)
    assert_same(call_with_flushed_subnormals(search) if flush else search(), *expected)


@short
@given(cases(), metrics, st.booleans())
def test_float64_keys_are_within_their_bound_per_pair(case, metric, centred):
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    centre = rows.float32_values[0] if centred and metric == "l2" else None
    proposed = matmul.propose_in_float64(
        queries, rows, np.full(len(queries), -np.inf), None, centre
    )
    assert len(proposed.q) == len(queries) * len(rows)
    keys = exact_keys(case.queries, case.rows, metric)
    if metric == "l2":
        offsets = matmul.key_offsets(FLOAT32_PRODUCT.prepare(queries, centre))
        keys = keys + offsets[:, None]
    error = np.abs(proposed.keys.astype(np.float64) - keys[proposed.q, proposed.x])
    assert (error <= proposed.slack).all()


@short
@given(cases())
def test_bound_holds_with_a_centre(case):
    """Any centre is allowed; here it is a row, which is far from some of the others."""
    queries, rows = block(case.queries, "l2"), block(case.rows, "l2")
    centre = rows.float32_values[0]
    left, right = FLOAT32_PRODUCT.prepare(queries, centre), FLOAT32_PRODUCT.prepare(rows, centre)
    is_bounded = matmul.fits_float32(left)[:, None] & matmul.fits_float32(right)
    keys, bound = FLOAT32_PRODUCT.keys(left, right), FLOAT32_PRODUCT.key_error(left, right)
    exact = exact_keys(case.queries, case.rows, "l2") + matmul.key_offsets(left)[:, None]
    error = np.abs(keys.astype(np.float64) - exact)
    assert (error[is_bounded] <= np.broadcast_to(bound[:, None], error.shape)[is_bounded]).all()


def test_centre_is_chosen_far_from_the_origin_and_is_robust():
    values = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    shifted = values + np.float32(300)
    assert matmul.choose_centre(block(values, "l2")) is None
    assert matmul.choose_centre(block(shifted, "ip")) is None
    shifted[::20] *= np.float32(1e30)
    centre = matmul.choose_centre(block(shifted, "l2"))
    assert centre is not None
    np.testing.assert_allclose(centre, 300, atol=2)
