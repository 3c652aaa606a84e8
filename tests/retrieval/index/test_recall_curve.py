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
    own: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Search `nprobe` lists and all rows, and count, query by query; `own` rows are no answer."""
    measure = assignment_metric(metric)
    lists = exact_keys(rows, centroids, measure).argmax(1)
    keys, near = exact_keys(queries, rows, metric), exact_keys(queries, centroids, measure)
    ties, values = np.arange(len(rows)), []
    for query in range(len(queries)):
        allowed = np.ones(len(rows), bool)
        if own is not None:
            allowed[own[query]] = False
        probed = np.lexsort((np.arange(len(centroids)), -near[query]))[:nprobe]
        read = allowed & np.isin(lists, probed)
        _, exact = brute_force(np.where(allowed, keys[[query]], -np.inf), ties, k)
        _, found = brute_force(np.where(read, keys[[query]], -np.inf), ties, k)
        wanted = set(exact[0].tolist()) - {-1}
        values.append(len(wanted & set(found[0].tolist())) / len(wanted) if wanted else 1.0)
    return np.array(values)


def neighbours_of(
    queries: Vectors, rows: Vectors, centroids: NDArray[np.float32], metric: Metric, k: int
) -> Neighbours:
    keys, places = brute_force(exact_keys(queries, rows, metric), np.arange(len(rows)), k)
    measure = assignment_metric(metric)
    lists = nearest_centroids(block(rows, measure), block(centroids, measure))
    return Neighbours(keys, places, np.where(places < 0, -1, lists[places]))


@quick
@given(cases(max_rows=30), metrics, st.integers(1, 8), st.integers(1, 8), seeds)
def test_recall_from_required_nprobe_equals_counted_recall(case, metric, k, nlist, seed):
    nlist = min(nlist, len(case.rows))
    centroids = train_centroids(case.rows, nlist, metric, seed=seed)
    found = neighbours_of(case.queries, case.rows, centroids, metric, k)
    measure = assignment_metric(metric)
    needed = required_nprobe(block(case.queries, measure), block(centroids, measure), found)
    for nprobe in range(1, nlist + 1):
        counted = naive_recall(case.queries, case.rows, centroids, metric, k, nprobe)
        np.testing.assert_array_equal(recall_at(*needed, nprobe), counted)
    assert (recall_at(*needed, nlist) == 1).all()


@every_metric
def test_the_curve_of_an_index_is_that_of_the_sample_without_itself(tmp_path, metric, monkeypatch):
    """Of four shards, with holes and duplicates, from what was put beside each."""
    monkeypatch.setattr(recall_curve_module, "SAMPLE_SIZE", 25)
    vectors = np.random.default_rng(1).normal(size=(120, 6)).astype(np.float16)
    vectors[30:60] = vectors[:30]
    store = make_store(tmp_path / "store", vectors, rows=range(10, 130), images=140, chunk_rows=32)
    building = IndexBuilder(tmp_path / "index", store, metric, nlist=9, rows_per_shard=40)
    index = building.finish()
    own = building.rows - 10  # place among the vectors
    assert 12 < len(own) < 40
    curve = pq.read_table(io.BytesIO(index.folder.read(RECALL_TABLE)))
    assert curve.schema.equals(RECALL.schema)
    lines = curve.to_pylist()
    assert [(line["k"], line["nprobe"]) for line in lines] == [
        (k, nprobe) for k in (1, 10, 100, 119) for nprobe in (1, 2, 3, 4, 6, 8, 9)
    ]
    for line in lines:
        sampled = own[::4] if line["k"] == 119 else own
        values = naive_recall(
            vectors[sampled], vectors, index.centroids, metric, line["k"], line["nprobe"], sampled
        )
        assert line["recall"] == pytest.approx(values.mean(), abs=1e-12)
        ends = [end[0] for end in mean_intervals(values[:, None])]
        assert (line["low"], line["high"]) == pytest.approx(ends, abs=1e-12)
        assert line["sample"] == len(sampled)


@every_metric
def test_the_curve_rises_to_one(metric):
    rows = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    centroids = train_centroids(rows, 20, metric, seed=0)
    queries = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    found = neighbours_of(queries, rows, centroids, metric, 100)
    measure = assignment_metric(metric)
    curve = recall_curve(
        block(queries, measure), block(centroids, measure), found, (1, 10, 100), seed=0
    )
    for k in (1, 10, 100):
        own = [line for line in curve.to_pylist() if line["k"] == k]
        shares = [line["recall"] for line in own]
        assert shares == sorted(shares)
        assert shares[0] < 1
        assert shares[-1] == 1
        assert all(line["low"] <= line["recall"] <= line["high"] for line in own)


# --- merging ------------------------------------------------------------------------------------


@quick
@given(cases(max_rows=30), metrics, st.integers(1, 8), st.integers(1, 5), seeds)
def test_neighbours_of_shards_merge_to_those_of_the_whole(case, metric, k, cuts, seed):
    keys = exact_keys(case.queries, case.rows, metric)
    owner = np.random.default_rng(seed).integers(0, cuts, len(case.rows))
    parts = []
    for number in range(cuts):
        own = np.flatnonzero(owner == number)
        best, places = brute_force(keys[:, own], own, k)
        if len(own):
            places = np.where(places < 0, -1, own[places])
        parts.append(Neighbours(best, places, np.where(places < 0, -1, places * 7)))
    merged = merge_neighbours(parts, k)
    expected, places = brute_force(keys, np.arange(len(case.rows)), k)
    np.testing.assert_array_equal(merged.keys, expected)
    np.testing.assert_array_equal(merged.rows, places)
    np.testing.assert_array_equal(merged.lists, np.where(places < 0, -1, places * 7))


def neighbours(rows: list[list[int]]) -> Neighbours:
    at = np.array(rows)
    return Neighbours(-at.astype(float), at, at * 10)


def test_a_sampled_row_is_no_neighbour_of_itself():
    others = drop_self(neighbours([[5, 1, 2], [1, 5, 2], [1, 2, 5]]), np.array([5, 5, 5]))
    assert others.rows.tolist() == [[1, 2]] * 3
    assert others.lists.tolist() == [[10, 20]] * 3
    assert others.keys.tolist() == [[-1, -2]] * 3


def test_where_a_row_is_not_among_its_own_neighbours_the_last_one_goes():
    """More copies of it than neighbours were asked for come first by row."""
    assert drop_self(neighbours([[1, 2, 3]]), np.array([9])).rows.tolist() == [[1, 2]]


def test_a_query_without_neighbours_misses_nothing():
    needed = np.array([[1, 1], [3, 1], [1, 1]])
    there = np.array([[False, False], [True, True], [True, False]])
    assert recall_at(needed, there, 1).tolist() == [1, 1 / 2, 1]


def test_required_nprobe_of_a_small_example():
    """Three centroids on a line; the query reads 0, then 1, then 2."""
    centroids = block(np.array([[0], [10], [20]], np.float32), "l2")
    query = block(np.array([[1]], np.float32), "l2")
    found = Neighbours(np.zeros((1, 4)), np.array([[7, 8, 9, -1]]), np.array([[2, 0, 1, -1]]))
    needed, there = required_nprobe(query, centroids, found)
    assert needed[there].tolist() == [3, 1, 2]
    assert recall_at(needed, there, 2).tolist() == [2 / 3]


# --- choosing -----------------------------------------------------------------------------------


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
def test_the_grid_grows_by_halves_and_ends_with_all(nlist, grid):
    assert probe_grid(nlist) == grid


def curve_of(*lines: tuple[int, int, float]) -> pa.Table:
    """Make a curve of (k, nprobe, recall)."""
    columns = zip(*[(k, nprobe, mean, 0.0, 1.0, 5) for k, nprobe, mean in lines], strict=True)
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
        (1, 0.81, 2),  # between two nprobe: 1.1 lists
        (1, 0.90, 2),
        (1, 0.95, 7),  # half of the way from 2 to 12
        (10, 0.88, 6),  # 2 + 10 x 0.08 / 0.2
        (3.1622776601683795, 0.85, 2),  # halfway between k = 1 and 10 by its logarithm
        (100, 0.80, 12),
        (100, 0.81, 99),  # reached by none: all lists
        (101, 0.80, 13),  # beyond what was measured: in proportion
        (200, 0.60, 4),
        (900, 0.80, 99),  # no more than there are
    ],
)
def test_the_fewest_lists_are_chosen_of_which_the_goal_is_expected(k, goal, nprobe):
    target = (goal - 0.4) / 0.6  # a first search leaves two fifths of the allowed loss unused
    assert choose_nprobe(CURVE, k, target + 1e-12 * (goal < 0.8), 99) == nprobe


def test_a_curve_in_any_order_of_lines_says_the_same():
    turned = CURVE.take(np.random.default_rng(0).permutation(len(CURVE)))
    assert choose_nprobe(turned, 10, 0.8, 99) == choose_nprobe(CURVE, 10, 0.8, 99)


@quick
@given(seeds, st.floats(0.05, 1))
def test_a_wider_search_is_the_first_of_the_grid_that_is_shown_to_be_enough(seed, target):
    needed = np.random.default_rng(seed).integers(1, 21, (30, 5))
    there = np.ones((30, 5), bool)
    chosen = smallest_sufficient_nprobe(needed, there, 20, lambda recalls: recalls.mean() >= target)
    assert recall_at(needed, there, chosen).mean() >= target
    smaller = [nprobe for nprobe in probe_grid(20) if nprobe < chosen]
    assert all(recall_at(needed, there, nprobe).mean() < target for nprobe in smaller)


def test_all_lists_are_read_if_no_nprobe_is_sufficient():
    needed, there = np.full((3, 2), 4), np.ones((3, 2), bool)
    assert smallest_sufficient_nprobe(needed, there, 20, lambda recalls: False) == 20
