"""Tests that the merged candidates of all shards equal brute force within the probed lists."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import CANDIDATES_SCHEMA, SHARD_ROWS, Metric, Vectors
from retrieval.index.build_shard import append_codes
from retrieval.index.faiss_io import make_empty_index
from retrieval.index.kmeans import assignment_metric
from retrieval.index.shard import Shard
from retrieval.search import ivf_search, shard_rows
from retrieval.search.candidates import top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.vectors import matmul
from retrieval.vectors.matmul import FLOAT32_PRODUCT, HalfPrecisionProduct
from retrieval.vectors.pair_collector import MAX_PENDING
from retrieval.vectors.scoring import block, compute_squared_norms, score_pairs
from retrieval.vectors.topk import nearest_centroids, top_k
from tests.retrieval.index.training_cases import train_centroids
from tests.retrieval.sample_vectors import (
    METRICS,
    Case,
    IndexBuilder,
    brute_force,
    cases,
    exact_keys,
    image_ids,
    make_plan,
    make_store,
    metrics,
    nightly,
    quick,
    seeds,
)

Int64 = NDArray[np.int64]
NO_ROWS = np.empty(0, np.int64)


def make_shard(
    vectors: Vectors,
    rows: Int64,
    ids: list[str],
    centroids: NDArray[np.float32],
    metric: Metric,
    deleted: Int64 = NO_ROWS,
) -> Shard:
    """Return a shard in memory with some rows; `ids` are those of all rows."""
    dtype = str(vectors.dtype)
    index = make_empty_index(make_plan(len(ids), dtype, len(centroids)), centroids, metric)
    measure = assignment_metric(metric)
    positions = nearest_centroids(block(vectors[rows], measure), block(centroids, measure))
    append_codes(index, vectors[rows], rows, positions)
    values = {
        "row": rows,
        "image_id": [ids[row] for row in rows],
        "path": [f"/photos/{row}" for row in rows],
        "label": [f"class{row % 3}" for row in rows],
        "squared_norm": compute_squared_norms(vectors[rows]),
    }
    columns = [values.get(f.name, pa.nulls(len(rows), f.type)) for f in SHARD_ROWS.schema]
    return Shard(index, pa.table(columns, schema=SHARD_ROWS.schema), metric, dtype, deleted)


PRODUCTS = [
    FLOAT32_PRODUCT,
    HalfPrecisionProduct("cpu"),
    *([HalfPrecisionProduct("cuda")] if torch.cuda.is_available() else []),
]


def check_against_brute_force(
    case: Case,
    metric: Metric,
    k: int,
    nlist: int,
    nprobe: int | None,
    cuts: int,
    undecided: int,
    seed: int,
) -> None:
    """Assert that the search of a gallery cut into `cuts` shards equals brute force.

    The order of image_ids differs from that of rows. Random rows are deleted, random pairs are
    excluded, and some queries have a lower bound on their keys. `nprobe` None searches all lists.
    At most `undecided` pairs are buffered before they are scored.
    """
    generator = np.random.default_rng(seed)
    count, measure = len(case.rows), assignment_metric(metric)
    nlist = min(nlist, count)
    centroids = train_centroids(case.rows, nlist, metric, seed=seed)
    queries = block(case.queries, measure)
    lists_read = min(nprobe or nlist, nlist)
    probes = top_k(queries, block(centroids, measure), lists_read).positions
    if generator.random() < 0.5:  # each query reads another number of lists
        counts = generator.integers(1, lists_read + 1, len(queries))
        probes = np.where(np.arange(lists_read) < counts[:, None], probes, -1)
        nprobe = lists_read
    positions = generator.permutation(count)  # position of each row in the order of image_ids
    ids = [image_ids(count)[position] for position in positions]
    query_numbers = np.sort(generator.permutation(50)[: len(case.queries)])
    deleted = np.flatnonzero(generator.random(count) < generator.choice([0, 0.3, 1]))
    excluded = generator.random((len(queries), count)) < generator.choice([0, 0.2, 0.9])

    lists = exact_keys(case.rows, centroids, measure).argmax(1)
    is_probed = (lists[None, :, None] == probes[:, None, :]).any(-1)
    is_probed[:, deleted] = False
    keys = np.where(is_probed & ~excluded, exact_keys(case.queries, case.rows, metric), -np.inf)
    expected, result = brute_force(keys, positions, k)
    is_known = generator.random(len(queries)) < 0.5
    min_keys = np.where(is_known, expected[:, -1], -np.inf)  # as other shards may have set them
    parts = [
        ShardSearcher(
            make_shard(case.rows, rows, ids, centroids, metric, deleted), product,
            max_pending=undecided,
        ).search(
            QueryBatch(
                block(case.queries, metric), query_numbers, [min_keys, None][generator.integers(2)],
                np.nonzero(excluded[:, rows]) if excluded.any() else None,
            ),
            None if nprobe is None else probes, k,
        )
        for rows in np.array_split(np.arange(count), cuts)
        for product in [PRODUCTS[generator.integers(len(PRODUCTS))]]
    ]  # fmt: skip
    assert all(part.pairs.schema.equals(CANDIDATES_SCHEMA) for part in parts)

    query, rank = np.nonzero(result >= 0)
    rows = result[query, rank]
    best, ranks = top_candidates(parts, k)
    merged = best.table()
    assert merged["query"].to_pylist() == query_numbers[query].tolist()
    assert merged["row"].to_pylist() == rows.tolist()
    assert merged["key"].to_pylist() == expected[query, rank].tolist()  # to the last bit
    assert merged["list"].to_pylist() == lists[rows].tolist()
    assert merged["image_id"].to_pylist() == [ids[row] for row in rows]
    assert merged["path"].to_pylist() == [f"/photos/{row}" for row in rows]
    assert merged["label"].to_pylist() == [f"class{row % 3}" for row in rows]
    assert ranks.tolist() == rank.tolist()


top_ks = st.integers(1, 12) | st.integers(13, 45)  # also more than all rows
list_counts = st.integers(1, 8)
undecided_pairs = st.sampled_from([0, 1, 5, 30, 200, MAX_PENDING])


@quick
@given(cases(), metrics, top_ks, list_counts, st.integers(1, 5), undecided_pairs, seeds)
def test_searching_all_lists_equals_brute_force(case, metric, k, nlist, cuts, undecided, seed):
    check_against_brute_force(case, metric, k, nlist, None, cuts, undecided, seed)


@settings(quick, max_examples=60)
@given(cases(), metrics, st.integers(1, 12), list_counts, st.booleans(), undecided_pairs, seeds)
def test_float64_proposals_equal_brute_force(case, metric, k, nlist, all_lists, undecided, seed):
    """Every undecided pair is proposed by a product in float64."""
    with mock.patch.multiple(matmul, _MIN_UNDECIDED=-1, _PAIRS_PER_UNDECIDED=1 << 40):
        probes = None if all_lists else 2
        check_against_brute_force(case, metric, k, nlist, probes, 2, undecided, seed)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
@pytest.mark.parametrize(
    ("metric", "outlier"),
    [("ip", "row"), ("l2", "row"), ("ip", "long row"), ("ip", "query"), ("l2", "offset")],
)
def test_outlier_or_offset_leaves_few_pairs_to_score(metric, outlier, product, monkeypatch):
    """Regression: all 60,000 pairs were scored, which takes a hundred times as long."""
    generator = np.random.default_rng(0)
    values, rows = (generator.normal(size=(n, 16)).astype(np.float32) for n in (30, 2000))
    scaled = rows if "row" in outlier else values
    scaled[7] *= np.float32({"row": 1e19, "long row": 1e12, "query": 1e19, "offset": 1}[outlier])
    if outlier == "offset":
        values, rows = values + np.float32(300), rows + np.float32(300)
    counted = []

    def count_pairs(queries, block_of_rows, q, x):
        counted.append(len(q))
        return score_pairs(queries, block_of_rows, q, x)

    monkeypatch.setattr(shard_rows, "score_pairs", count_pairs)
    centroids = rows[100:110] if metric == "l2" else np.eye(10, 16, dtype=np.float32)
    shard = make_shard(rows, np.arange(2000), image_ids(2000), centroids, metric)
    batch = QueryBatch(block(values, metric), np.arange(30))
    table = ShardSearcher(shard, product).search(batch, None, 10)
    keys, positions = brute_force(exact_keys(values, rows, metric), np.arange(2000), 10)
    best, _ = top_candidates([table], 10)
    merged = best.table()
    assert merged["row"].to_pylist() == positions.ravel().tolist()
    assert merged["key"].to_pylist() == keys.ravel().tolist()
    assert sum(counted) < 30 * 10 * 8


some_lists = (top_ks, list_counts, list_counts, st.integers(1, 5), undecided_pairs, seeds)


@quick
@given(cases(), metrics, *some_lists)
def test_searching_some_lists_equals_brute_force_within_them(
    case, metric, k, nlist, nprobe, cuts, undecided, seed
):
    check_against_brute_force(case, metric, k, nlist, nprobe, cuts, undecided, seed)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, *some_lists)
def test_searching_some_lists_equals_brute_force_within_them_many_times(
    case, metric, k, nlist, nprobe, cuts, undecided, seed
):
    check_against_brute_force(case, metric, k, nlist, nprobe, cuts, undecided, seed)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, top_ks, list_counts, st.integers(1, 5), undecided_pairs, seeds)
def test_searching_all_lists_equals_brute_force_many_times(
    case, metric, k, nlist, cuts, undecided, seed
):
    check_against_brute_force(case, metric, k, nlist, None, cuts, undecided, seed)


def _round_to_ties(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(rows[:20], 15, axis=0)


def _shift_from_origin(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows + 1000


def _scale_one_row(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([rows[:-1], rows[-1:] * 1e19])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [np.array, _round_to_ties, _shift_from_origin, _scale_one_row])
def test_matches_do_not_depend_on_query_blocks_or_undecided_limit(metric, shape):
    """Regression: with --top-k 1000 and thousands of queries a third of the matches came twice."""
    generator = np.random.default_rng(0)
    rows = shape(generator.normal(size=(300, 8))).astype(np.float32)
    queries = np.concatenate([rows[::100], generator.normal(size=(4, 8)).astype(np.float32)])
    excluded = generator.random((7, 300)) < 0.1
    keys = np.where(excluded, -np.inf, exact_keys(queries, rows, metric))
    centroids = train_centroids(rows, 5, metric, seed=0)
    shard = make_shard(rows, np.arange(300), image_ids(300), centroids, metric)
    for k in (5, 120, 300):
        expected, result = brute_force(keys, np.arange(300), k)
        query, rank = np.nonzero(result >= 0)
        for blocks, undecided in (([7], MAX_PENDING), ([7], 50), ([3, 4], 700), ([1] * 7, 50)):
            searcher, parts = ShardSearcher(shard, max_pending=undecided), []
            for positions in np.split(np.arange(7), np.cumsum(blocks)[:-1]):
                pairs = np.nonzero(excluded[positions])
                batch = QueryBatch(block(queries[positions], metric), positions, None, pairs)
                parts.append(searcher.search(batch, None, k))
            best, _ = top_candidates(parts, k)
            merged = best.table()
            assert merged["query"].to_pylist() == query.tolist()
            assert merged["row"].to_pylist() == result[query, rank].tolist()
            assert merged["key"].to_pylist() == expected[query, rank].tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_scores_are_ordered_by_the_bytes_of_image_id(metric, dtype):
    rows = np.full((6, 5), 0.1, dtype)
    ids = ["é.jpg", "z.jpg", "Z.jpg", "🐟.jpg", "￿.jpg", "a b.jpg"]
    centroids = train_centroids(rows, 2, metric, seed=0)
    shard = make_shard(rows, np.arange(6), ids, centroids, metric)
    probes, query_numbers = np.array([[0, 1]]), np.array([0])
    result = ShardSearcher(shard).search(
        QueryBatch(block(rows[:1], metric), query_numbers), probes, 4
    )
    best, _ = top_candidates([result], 4)
    merged = best.table()
    assert merged["image_id"].to_pylist() == ["Z.jpg", "a b.jpg", "z.jpg", "é.jpg"]


def test_negative_zero_ties_with_zero():
    """This includes ties across shards, where Arrow compares the keys."""
    rows = np.array([[0.0], [-0.0], [0.0], [-0.0]], np.float32)
    ids = ["d", "c", "b", "a"]
    centroids = np.ones((1, 1), np.float32)
    query = block(np.array([[-3.0]], np.float32), "ip")
    parts = [
        ShardSearcher(make_shard(rows, np.array(positions), ids, centroids, "ip")).search(
            QueryBatch(query, np.array([0])),
            np.array([[0]]),
            4,
        )
        for positions in ([0, 1], [2, 3])
    ]
    best, _ = top_candidates(parts, 4)
    merged = best.table()
    assert merged["image_id"].to_pylist() == ["a", "b", "c", "d"]


def test_each_query_searches_only_its_probed_lists():
    probes = np.array([[2, 0], [1, 2], [2, 1]])
    pairs = ivf_search._group_by_list(probes, np.array([[True, True], [True, True], [True, False]]))
    assert {number: positions.tolist() for number, positions in pairs} == {
        0: [0],
        1: [1],
        2: [0, 1, 2],
    }
    assert (
        list(ivf_search._group_by_list(np.empty((3, 0), np.int64), np.empty((3, 0), np.bool_)))
        == []
    )


@pytest.mark.parametrize("metric", METRICS)
def test_shard_read_from_disk_has_the_same_candidates(tmp_path, metric):
    vectors = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float16)
    vectors[40:60] = vectors[:20]
    store = make_store(tmp_path / "store", vectors, chunk_rows=32)
    index = IndexBuilder(tmp_path / "index", store, metric, nlist=6, rows_per_shard=40).finish()
    batch = QueryBatch(block(vectors[:7], metric), np.arange(7))
    parts = [
        ShardSearcher(s).search(batch, np.tile(np.arange(s.index.nlist), (7, 1)), 9)
        for s in index.shards
    ]
    best, _ = top_candidates(parts, 9)
    merged = best.table()
    _, result = brute_force(exact_keys(vectors[:7], vectors, metric), np.arange(90), 9)
    assert merged["row"].to_pylist() == result.ravel().tolist()
    ids = image_ids(90)
    assert merged["image_id"].to_pylist() == [ids[row] for row in result.ravel()]


def test_empty_shard_has_no_candidates():
    rows = np.ones((3, 2), np.float32)
    shard = make_shard(rows, np.arange(0), ["a", "b", "c"], rows[:1], "ip")
    batch = QueryBatch(block(rows, "ip"), np.arange(3))
    result = ShardSearcher(shard).search(batch, np.zeros((3, 1), np.int64), 2)
    assert result.pairs.schema.equals(CANDIDATES_SCHEMA)
    assert len(result.pairs) == 0


def test_empty_batch_has_no_candidates():
    rows = np.ones((3, 2), np.float32)
    shard = make_shard(rows, np.arange(3), ["a", "b", "c"], rows[:1], "ip")
    no_probes = np.empty((0, 1), np.int64)
    batch = QueryBatch(block(rows[:0], "ip"), no_probes[:, 0])
    assert len(ShardSearcher(shard).search(batch, no_probes, 2).pairs) == 0


def test_stored_norms_are_used():
    """The norms are read with the shard, so that no vector's length is computed again."""
    rows = np.array([[3, 4], [6, 8]], np.float32)
    shard = make_shard(rows, np.arange(2), ["a", "b"], np.ones((1, 2), np.float32), "cosine")
    column = SHARD_ROWS.schema.get_field_index("squared_norm")
    doubled = shard.metadata.set_column(column, "squared_norm", pa.array([100.0, 400.0]))
    shard = dataclasses.replace(shard, metadata=doubled)
    batch = QueryBatch(block(rows[:1], "cosine"), np.array([0]))
    result = ShardSearcher(shard).search(batch, np.array([[0]]), 2)
    assert result.pairs["key"].to_pylist() == [0.5, 0.5]
