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
from retrieval.index.recall_curve import (
    choose_nprobe,
    drop_self,
    merge_neighbours,
    probe_grid,
    recall_at,
    recall_curve,
    required_nprobe,
    smallest_sufficient_nprobe,
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
    nprobe: int,
    own_rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the recall@k of each query by searching `nprobe` lists and all rows by brute force.

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
        probed_lists = np.lexsort((np.arange(len(centroids)), -centroid_keys[query]))[:nprobe]
        searched = allowed & np.isin(lists, probed_lists)
        _, exact = brute_force(np.where(allowed, keys[[query]], -np.inf), ties, k)
        _, result = brute_force(np.where(searched, keys[[query]], -np.inf), ties, k)
        expected = set(exact[0].tolist()) - {-1}
        values.append(len(expected & set(result[0].tolist())) / len(expected) if expected else 1.0)
    return np.array(values)


def neighbours_of(
    queries: Vectors, rows: Vectors, centroids: NDArray[np.float32], metric: Metric, k: int
) -> Neighbours:
    keys, positions = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), k)
    measure = assignment_metric(metric)
    lists = nearest_centroids(block(rows, measure), block(centroids, measure))
    return Neighbours(keys, positions, np.where(positions < 0, -1, lists[positions]))


@quick
@given(cases(max_rows=30), metrics, st.integers(1, 8), st.integers(1, 8), seeds)
def test_recall_from_required_nprobe_equals_counted_recall(case, metric, k, nlist, seed):
    nlist = min(nlist, len(case.rows))
    centroids = train_centroids(case.rows, nlist, metric, seed=seed)
    exact_neighbours = neighbours_of(case.queries, case.rows, centroids, metric, k)
    measure = assignment_metric(metric)
    required = required_nprobe(
        block(case.queries, measure), block(centroids, measure), exact_neighbours
    )
    for nprobe in range(1, nlist + 1):
        expected = naive_recall(case.queries, case.rows, centroids, metric, k, nprobe)
        np.testing.assert_array_equal(recall_at(*required, nprobe), expected)
    assert (recall_at(*required, nlist) == 1).all()


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
    assert [(row["k"], row["nprobe"]) for row in rows] == [
        (k, nprobe) for k in (1, 10, 100, 119) for nprobe in (1, 2, 3, 4, 6, 8, 9)
    ]
    for row in rows:
        positions = sample_positions[::4] if row["k"] == 119 else sample_positions
        values = naive_recall(
            vectors[positions], vectors, index.centroids, metric, row["k"], row["nprobe"], positions
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
        rows_of_k = [row for row in curve.to_pylist() if row["k"] == k]
        recalls = [row["recall"] for row in rows_of_k]
        assert recalls == sorted(recalls)
        assert recalls[0] < 1
        assert recalls[-1] == 1
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


def test_query_without_neighbours_has_recall_one():
    required = np.array([[1, 1], [3, 1], [1, 1]])
    is_present = np.array([[False, False], [True, True], [True, False]])
    assert recall_at(required, is_present, 1).tolist() == [1, 1 / 2, 1]


def test_required_nprobe_of_a_small_example():
    """Three centroids on a line; the query probes lists 0, 1, 2 in this order."""
    centroids = block(np.array([[0], [10], [20]], np.float32), "l2")
    query = block(np.array([[1]], np.float32), "l2")
    exact_neighbours = Neighbours(
        np.zeros((1, 4)), np.array([[7, 8, 9, -1]]), np.array([[2, 0, 1, -1]])
    )
    required, is_present = required_nprobe(query, centroids, exact_neighbours)
    assert required[is_present].tolist() == [3, 1, 2]
    assert recall_at(required, is_present, 2).tolist() == [2 / 3]


# --- choosing nprobe ------------------------------------------------------------------------------


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


def curve_of(*rows: tuple[int, int, float]) -> pa.Table:
    """Return a recall curve with one row per (k, nprobe, recall)."""
    columns = zip(*[(k, nprobe, mean, 0.0, 1.0, 5) for k, nprobe, mean in rows], strict=True)
    return pa.table([list(column) for column in columns], schema=RECALL.schema)


CURVE = curve_of(
    (1, 1, 0.80), (1, 2, 0.90), (1, 12, 1.0),
    (10, 1, 0.70), (10, 2, 0.80), (10, 12, 1.0),
    (100, 1, 0.40), (100, 2, 0.60), (100, 12, 0.80),
)  # fmt: skip


@pytest.mark.parametrize(
    ("k", "goal", "nprobe"),
    [
        (1, 0.80, 1),
        (1, 0.81, 2),  # interpolated: 1.1 lists
        (1, 0.90, 2),
        (1, 0.95, 7),  # halfway from 2 to 12
        (10, 0.88, 6),  # 2 + 10 x 0.08 / 0.2
        (3.1622776601683795, 0.85, 2),  # halfway between k = 1 and 10 by its logarithm
        (100, 0.80, 12),
        (100, 0.81, 99),  # not reached by the curve: all lists
        (101, 0.80, 13),  # beyond the measured k: in proportion
        (200, 0.60, 4),
        (900, 0.80, 99),  # at most all lists
    ],
)
def test_choose_nprobe_interpolates_the_curve(k, goal, nprobe):
    target = (goal - 0.4) / 0.6  # a first search leaves two fifths of the allowed loss unused
    assert choose_nprobe(CURVE, k, target + 1e-12 * (goal < 0.8), 99) == nprobe


def test_choose_nprobe_does_not_depend_on_row_order():
    shuffled = CURVE.take(np.random.default_rng(0).permutation(len(CURVE)))
    assert choose_nprobe(shuffled, 10, 0.8, 99) == choose_nprobe(CURVE, 10, 0.8, 99)


@quick
@given(seeds, st.floats(0.05, 1))
def test_smallest_sufficient_nprobe_is_the_first_of_the_grid(seed, target):
    required = np.random.default_rng(seed).integers(1, 21, (30, 5))
    is_present = np.ones((30, 5), bool)
    chosen = smallest_sufficient_nprobe(
        required, is_present, 20, lambda recalls: recalls.mean() >= target
    )
    assert recall_at(required, is_present, chosen).mean() >= target
    smaller = [nprobe for nprobe in probe_grid(20) if nprobe < chosen]
    assert all(recall_at(required, is_present, nprobe).mean() < target for nprobe in smaller)


def test_smallest_sufficient_nprobe_is_nlist_if_none_suffices():
    required, is_present = np.full((3, 2), 4), np.ones((3, 2), bool)
    assert smallest_sufficient_nprobe(required, is_present, 20, lambda recalls: False) == 20
