"""Tests of the recall curve against recall counted from actual searches."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.records import Neighbours
from retrieval.core.schemas import RECALL, Metric, Vectors
from retrieval.index import recall_curve as recall_curve_module
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing
from retrieval.index.recall_curve import (
    RequiredProbing,
    choose_probing,
    drop_self,
    expected_lists,
    gap_grid,
    merge_neighbours,
    probe_grid,
    recall_curve,
    required_probing,
    smallest_sufficient_probing,
)
from retrieval.index.recall_interval import mean_intervals
from retrieval.index.shard import RECALL_TABLE
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids
from tests.retrieval.index.training_cases import train_centroids
from tests.retrieval.sample_vectors import (
    METRICS,
    IndexBuilder,
    brute_force,
    cases,
    exact_keys,
    make_store,
    metrics,
    quick,
    seeds,
)

every_metric = pytest.mark.parametrize("metric", METRICS)


def naive_recall(
    queries: Vectors,
    rows: Vectors,
    centroids: NDArray[np.float32],
    metric: Metric,
    k: int,
    probing: Probing,
    own_rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the recall@k of each query by searching its lists and all rows by brute force.

    `own_rows` holds for each query the position of the same vector in `rows`, which is no result.
    """
    measure = assignment_metric(metric)
    lists = exact_keys(rows, centroids, measure).argmax(1)
    keys, centroid_keys = exact_keys(queries, rows, metric), exact_keys(queries, centroids, measure)
    ties, values = np.arange(len(rows)), []
    for query in range(len(queries)):
        allowed = np.ones(len(rows), bool)
        if own_rows is not None:
            allowed[own_rows[query]] = False
        length = np.sqrt((queries[query].astype(np.float64) ** 2).sum())
        probed_lists = naive_lists(centroid_keys[query], length, measure, probing)
        searched = allowed & np.isin(lists, probed_lists)
        _, exact = brute_force(np.where(allowed, keys[[query]], -np.inf), ties, k)
        _, result = brute_force(np.where(searched, keys[[query]], -np.inf), ties, k)
        expected = set(exact[0].tolist()) - {-1}
        values.append(len(expected & set(result[0].tolist())) / len(expected) if expected else 1.0)
    return np.array(values)


def naive_lists(
    keys: NDArray[np.float64], length: float, measure: Metric, probing: Probing
) -> NDArray[np.int64]:
    """Return the lists that one query reads, closest first, by the keys of the centroids."""
    if measure == "l2":
        gaps = np.sqrt(-keys) - np.sqrt(-keys).min()
    else:
        gaps = (keys.max() - keys) / (length or 1)
    order = np.lexsort((np.arange(len(keys)), -keys))
    return order[gaps[order] <= probing.gap][: probing.nprobe]


def neighbours_of(
    queries: Vectors, rows: Vectors, centroids: NDArray[np.float32], metric: Metric, k: int
) -> Neighbours:
    keys, positions = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), k)
    measure = assignment_metric(metric)
    lists = nearest_centroids(block(rows, measure), block(centroids, measure))
    return Neighbours(keys, positions, np.where(positions < 0, -1, lists[positions]))


@quick
@given(cases(max_rows=30), metrics, st.integers(1, 8), st.integers(1, 8), seeds)
def test_recall_from_required_probing_equals_counted_recall(case, metric, k, nlist, seed):
    nlist = min(nlist, len(case.rows))
    centroids = train_centroids(case.rows, nlist, metric, seed=seed)
    exact_neighbours = neighbours_of(case.queries, case.rows, centroids, metric, k)
    measure = assignment_metric(metric)
    queries = block(case.queries, measure)
    required = required_probing(queries, block(centroids, measure), exact_neighbours)
    probings = [Probing(nprobe) for nprobe in range(1, nlist + 1)]
    probings += [Probing(2, gap) for gap in gap_grid(required, [k])]
    probings += [required.limited(gap) for gap in gap_grid(required, [k])]
    centroid_keys = exact_keys(case.queries, centroids, measure)
    for probing in probings:
        expected = naive_recall(case.queries, case.rows, centroids, metric, k, probing)
        np.testing.assert_array_equal(required.recall(probing), expected)
        counts = [
            len(naive_lists(keys, length, measure, probing))
            for keys, length in zip(centroid_keys, queries.norms, strict=True)
        ]
        assert required.lists_read(probing).tolist() == counts
    assert (required.recall(Probing(nlist)) == 1).all()


@every_metric
def test_curve_of_an_index_equals_counted_recall_of_its_sample(tmp_path, metric, monkeypatch):
    """The gallery has four shards, holes and duplicates; neighbours are merged from all shards."""
    monkeypatch.setattr(recall_curve_module, "SAMPLE_SIZE", 25)
    vectors = np.random.default_rng(1).normal(size=(120, 6)).astype(np.float16)
    vectors[30:60] = vectors[:30]
    store = make_store(tmp_path / "store", vectors, rows=range(10, 130), images=140, chunk_rows=32)
    builder = IndexBuilder(tmp_path / "index", store, metric, nlist=9, rows_per_shard=40)
    index = builder.finish()
    sample_positions = builder.rows - 10  # positions among the vectors
    assert 12 < len(sample_positions) < 40
    curve = pq.read_table(io.BytesIO(index.folder.read(RECALL_TABLE)))
    assert curve.schema.equals(RECALL.schema)
    rows = curve.to_pylist()
    assert [(row["k"], row["nprobe"]) for row in rows if np.isinf(row["gap"])] == [
        (k, nprobe) for k in (1, 10, 100, 119) for nprobe in (1, 2, 3, 4, 6, 8, 9)
    ]
    assert len({row["gap"] for row in rows}) > 20
    order = [(row["k"], row["gap"], row["nprobe"]) for row in rows]
    assert order == sorted(set(order))
    for row in rows:
        probing = Probing(row["nprobe"], row["gap"])
        positions = sample_positions[::4] if row["k"] == 119 else sample_positions
        values = naive_recall(
            vectors[positions], vectors, index.centroids, metric, row["k"], probing, positions
        )
        assert row["recall"] == pytest.approx(values.mean(), abs=1e-12)
        interval = [bound[0] for bound in mean_intervals(values[:, None])]
        assert (row["low"], row["high"]) == pytest.approx(interval, abs=1e-12)
        assert row["sample"] == len(positions)


@every_metric
def test_curve_is_monotonic_and_reaches_one(metric):
    rows = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    centroids = train_centroids(rows, 20, metric, seed=0)
    queries = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    exact = neighbours_of(queries, rows, centroids, metric, 100)
    measure = assignment_metric(metric)
    curve = recall_curve(
        block(queries, measure), block(centroids, measure), exact, (1, 10, 100), seed=0
    )
    for k in (1, 10, 100):
        for by_gap in (False, True):
            rows_of_k = [
                row
                for row in curve.to_pylist()
                if row["k"] == k and np.isfinite(row["gap"]) == by_gap
            ]
            for name in ("recall", "lists", "nprobe"):
                values = [row[name] for row in rows_of_k]
                assert values == sorted(values)
            assert rows_of_k[0]["recall"] < 1
            assert rows_of_k[-1]["recall"] == 1
            assert all(row["low"] <= row["recall"] <= row["high"] for row in rows_of_k)


# --- merging --------------------------------------------------------------------------------------


@quick
@given(cases(max_rows=30), metrics, st.integers(1, 8), st.integers(1, 5), seeds)
def test_merged_neighbours_of_shards_equal_those_of_the_gallery(case, metric, k, cuts, seed):
    keys = exact_keys(case.queries, case.rows, metric)
    shard_of_row = np.random.default_rng(seed).integers(0, cuts, len(case.rows))
    parts = []
    for number in range(cuts):
        shard_rows = np.flatnonzero(shard_of_row == number)
        best, positions = brute_force(keys[:, shard_rows], shard_rows, k)
        if len(shard_rows):
            positions = np.where(positions < 0, -1, shard_rows[positions])
        parts.append(Neighbours(best, positions, np.where(positions < 0, -1, positions * 7)))
    merged = merge_neighbours(parts, k)
    expected, positions = brute_force(keys, np.arange(len(case.rows)), k)
    np.testing.assert_array_equal(merged.keys, expected)
    np.testing.assert_array_equal(merged.rows, positions)
    np.testing.assert_array_equal(merged.lists, np.where(positions < 0, -1, positions * 7))


def neighbours(rows: list[list[int]]) -> Neighbours:
    row_numbers = np.array(rows)
    return Neighbours(-row_numbers.astype(float), row_numbers, row_numbers * 10)


def test_drop_self_removes_the_sampled_row():
    result = drop_self(neighbours([[5, 1, 2], [1, 5, 2], [1, 2, 5]]), np.array([5, 5, 5]))
    assert result.rows.tolist() == [[1, 2]] * 3
    assert result.lists.tolist() == [[10, 20]] * 3
    assert result.keys.tolist() == [[-1, -2]] * 3


def test_drop_self_removes_the_last_neighbour_if_self_is_missing():
    """Duplicates with smaller row numbers displace the row itself from its neighbours."""
    assert drop_self(neighbours([[1, 2, 3]]), np.array([9])).rows.tolist() == [[1, 2]]


def requirement(ranks, is_present, nlist: int) -> RequiredProbing:
    """Return a requirement in which the list of rank r has the gap r - 1."""
    ranks = np.array(ranks)
    list_gaps = np.tile(np.arange(nlist, dtype=float), (len(ranks), 1))
    return RequiredProbing(ranks, ranks - 1.0, np.array(is_present), list_gaps)


def test_query_without_neighbours_has_recall_one():
    is_present = [[False, False], [True, True], [True, False]]
    required = requirement([[1, 1], [3, 1], [1, 1]], is_present, 3)
    assert required.recall(Probing(1)).tolist() == [1, 1 / 2, 1]
    assert required.recall(Probing(3, 1.5)).tolist() == [1, 1 / 2, 1]


def test_required_probing_of_a_small_example():
    """Three centroids on a line; the query reads lists 0, 1, 2 in this order."""
    centroids = block(np.array([[0], [10], [20]], np.float32), "l2")
    query = block(np.array([[1]], np.float32), "l2")
    exact_neighbours = Neighbours(
        np.zeros((1, 4)), np.array([[7, 8, 9, -1]]), np.array([[2, 0, 1, -1]])
    )
    required = required_probing(query, centroids, exact_neighbours)
    assert required.nprobe[required.is_neighbour].tolist() == [3, 1, 2]
    assert required.gaps[required.is_neighbour].tolist() == [18, 0, 8]  # distances 19, 1, 9
    assert required.list_gaps.tolist() == [[0, 8, 18]]
    assert required.recall(Probing(2)).tolist() == [2 / 3]
    assert required.recall(Probing(3, 8.0)).tolist() == [2 / 3]
    assert required.recall(Probing(3, 7.9)).tolist() == [1 / 3]
    assert required.recall(Probing(1, 18.0)).tolist() == [1 / 3]


# --- choosing lists -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nlist", "grid"),
    [
        (1, [1]),
        (2, [1, 2]),
        (5, [1, 2, 3, 4, 5]),
        (16, [1, 2, 3, 4, 6, 8, 12, 16]),
        (20, [1, 2, 3, 4, 6, 8, 12, 16, 20]),
    ],
)
def test_probe_grid_grows_by_halves_and_ends_with_nlist(nlist, grid):
    assert probe_grid(nlist) == grid


def curve_of(*rows: tuple[int, float, float]) -> pa.Table:
    """Return a recall curve with one row per (k, gap, recall); a gap of g reads 10 g lists."""
    columns = zip(
        *[(k, gap, int(20 * gap), 10 * gap, mean, 0.0, 1.0, 5) for k, gap, mean in rows],
        strict=True,
    )
    return pa.table([list(column) for column in columns], schema=RECALL.schema)


CURVE = curve_of(
    (1, 0.1, 0.80), (1, 0.2, 0.90), (1, 1.2, 1.0),
    (10, 0.1, 0.70), (10, 0.2, 0.80), (10, 1.2, 1.0),
    (100, 0.1, 0.40), (100, 0.2, 0.60), (100, 1.2, 0.80),
)  # fmt: skip


@pytest.mark.parametrize(
    ("k", "goal", "gap", "limit"),
    [
        (1, 0.80, 0.1, 2),
        (1, 0.81, 0.11, 3),  # interpolated; the limit 2.2 is rounded up
        (1, 0.90, 0.2, 4),
        (1, 0.95, 0.7, 14),  # halfway from 0.2 to 1.2
        (10, 0.88, 0.6, 12),  # 0.2 + 0.08 / 0.2
        (3.1622776601683795, 0.85, 0.2, 4),  # halfway between k = 1 and 10 by its logarithm
        (100, 0.80, 1.2, 24),
        (100, 0.81, np.inf, 99),  # not reached by the curve: all lists
        (150, 0.60, 0.3, 6),  # beyond the measured k: lists in proportion
        (300, 0.60, 0.6, 12),
        (900, 0.80, np.inf, 99),  # more lists than were measured
    ],
)
def test_choose_probing_interpolates_the_curve(k, goal, gap, limit):
    target = (goal - 0.4) / 0.6  # a first search leaves two fifths of the allowed loss unused
    chosen = choose_probing(CURVE, k, target - 1e-12, 99)
    assert chosen.gap == pytest.approx(gap, abs=1e-9)
    assert chosen.nprobe == limit


def test_choose_probing_limits_the_lists_to_those_of_the_index():
    assert choose_probing(CURVE, 100, (0.8 - 0.4) / 0.6 - 1e-12, 7).nprobe == 7


def test_samples_with_other_gaps_are_interpolated():
    """Half of the way from k = 10 to 1000, at gap 0.15, is (0.5 + 0.25) / 2."""
    curve = curve_of((10, 0.1, 0.4), (10, 0.2, 0.6), (1000, 0.05, 0.15), (1000, 0.25, 0.35))
    target = (0.375 - 0.4) / 0.6
    assert choose_probing(curve, 100, target, 99).gap == pytest.approx(0.15, abs=1e-9)


def test_choose_probing_does_not_depend_on_row_order():
    shuffled = CURVE.take(np.random.default_rng(0).permutation(len(CURVE)))
    assert choose_probing(shuffled, 10, 0.8, 99) == choose_probing(CURVE, 10, 0.8, 99)


def test_expected_lists_are_interpolated():
    assert expected_lists(CURVE, Probing(99, 0.7)) == pytest.approx(7)
    assert expected_lists(CURVE, Probing(5)) == 5


@quick
@given(seeds, st.floats(0.05, 1))
def test_smallest_sufficient_probing_is_the_first_of_the_grid(seed, target):
    ranks = np.random.default_rng(seed).integers(1, 21, (30, 5))
    required = requirement(ranks, np.ones((30, 5), bool), 20)
    chosen = smallest_sufficient_probing(required, lambda recalls: recalls.mean() >= target)
    assert required.recall(chosen).mean() >= target
    smaller = [gap for gap in gap_grid(required, [5]) if gap < chosen.gap]
    assert all(required.recall(Probing(20, gap)).mean() < target for gap in smaller)


def test_smallest_sufficient_probing_reads_all_lists_if_no_gap_suffices():
    required = requirement(np.full((3, 2), 4), np.ones((3, 2), bool), 20)
    assert smallest_sufficient_probing(required, lambda recalls: False) == Probing(20)


def test_a_query_reads_at_most_four_times_the_mean_number_of_lists():
    """One of 20 queries has all 100 lists at gap 0, the others one list: the mean is 5.95."""
    list_gaps = np.tile(np.arange(100.0), (20, 1))
    list_gaps[0] = 0
    ranks = np.ones((20, 1), np.int64)
    required = RequiredProbing(ranks, ranks - 1.0, ranks > 0, list_gaps)
    assert required.limited(0.0) == Probing(24, 0.0)
    assert required.lists_read(required.limited(0.0)).tolist() == [24] + [1] * 19
    assert required.limited(50.0) == Probing(100, 50.0)
