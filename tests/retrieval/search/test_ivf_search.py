"""Candidates of shards merge to brute force within the lists that were read."""

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

from retrieval.core.schemas import CANDIDATES, SHARD_ROWS, Metric, Vectors
from retrieval.index.build_shard import add_codes
from retrieval.index.faiss_io import empty_index
from retrieval.index.kmeans import list_metric
from retrieval.index.shard import Shard
from retrieval.search import ivf_search, topk_accumulator
from retrieval.search.candidates import best_of
from retrieval.search.ivf_search import Asked, Searcher
from retrieval.search.topk_accumulator import UNDECIDED
from retrieval.vectors import matmul
from retrieval.vectors.int8_matmul import Int8, multiplies
from retrieval.vectors.matmul import SINGLE, Half
from retrieval.vectors.scoring import block, pair_scores, squared_norms_of
from retrieval.vectors.topk import nearest, top_k
from tests.retrieval.index.training_cases import train_centroids
from tests.retrieval.sample_vectors import (
    METRICS,
    Building,
    Case,
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
NOTHING = np.empty(0, np.int64)


def make_shard(
    vectors: Vectors,
    rows: Int64,
    ids: list[str],
    centroids: NDArray[np.float32],
    metric: Metric,
    deleted: Int64 = NOTHING,
) -> Shard:
    """Make a shard in memory of some rows; `ids` are those of all rows."""
    dtype = str(vectors.dtype)
    index = empty_index(make_plan(len(ids), dtype, len(centroids)), centroids, metric)
    measure = list_metric(metric)
    own = nearest(block(vectors[rows], measure), block(centroids, measure))
    add_codes(index, vectors[rows], rows, own)
    known = {
        "row": rows,
        "image_id": [ids[row] for row in rows],
        "path": [f"/photos/{row}" for row in rows],
        "label": [f"class{row % 3}" for row in rows],
        "squared_norm": squared_norms_of(vectors[rows]),
    }
    columns = [known.get(f.name, pa.nulls(len(rows), f.type)) for f in SHARD_ROWS.schema]
    return Shard(index, pa.table(columns, schema=SHARD_ROWS.schema), metric, dtype, deleted)


CHEAP = [
    SINGLE,
    Half("cpu"),
    *([Int8()] if multiplies() else []),
    *([Half("cuda")] if torch.cuda.is_available() else []),
]


def shards_merge_to_brute_force(
    case: Case,
    metric: Metric,
    k: int,
    nlist: int,
    nprobe: int | None,
    cuts: int,
    undecided: int,
    seed: int,
) -> None:
    """Cut a gallery into shards, whose image_ids are in another order than its rows.

    Some pairs are barred, and some floors known, both of them by chance; nprobe None is all lists.
    At most `undecided` pairs wait to be decided.
    """
    generator = np.random.default_rng(seed)
    count, measure = len(case.rows), list_metric(metric)
    nlist = min(nlist, count)
    centroids = train_centroids(case.rows, nlist, metric, seed=seed)
    queries = block(case.queries, measure)
    lists_read = min(nprobe or nlist, nlist)
    probes = top_k(queries, block(centroids, measure), lists_read).positions
    places = generator.permutation(count)  # of each row in the order of image_ids
    ids = [image_ids(count)[place] for place in places]
    numbers = np.sort(generator.permutation(50)[: len(case.queries)])
    deleted = np.flatnonzero(generator.random(count) < generator.choice([0, 0.3, 1]))
    barred = generator.random((len(queries), count)) < generator.choice([0, 0.2, 0.9])

    lists = exact_keys(case.rows, centroids, measure).argmax(1)
    read = (lists[None, :, None] == probes[:, None, :]).any(-1)
    read[:, deleted] = False
    keys = np.where(read & ~barred, exact_keys(case.queries, case.rows, metric), -np.inf)
    expected, found = brute_force(keys, places, k)
    known = generator.random(len(queries)) < 0.5
    floors = np.where(known, expected[:, -1], -np.inf)  # what other shards could have told
    parts = [
        Searcher(
            make_shard(case.rows, rows, ids, centroids, metric, deleted), product,
            undecided=undecided,
        ).search(
            Asked(
                block(case.queries, metric), numbers, [floors, None][generator.integers(2)],
                np.nonzero(barred[:, rows]) if barred.any() else None,
            ),
            None if nprobe is None else probes, k,
        )
        for rows in np.array_split(np.arange(count), cuts)
        for product in [CHEAP[generator.integers(len(CHEAP))]]
    ]  # fmt: skip
    assert all(part.schema.equals(CANDIDATES) for part in parts)

    query, rank = np.nonzero(found >= 0)
    rows = found[query, rank]
    merged, ranks = best_of(parts, k)
    assert merged["query"].to_pylist() == numbers[query].tolist()
    assert merged["row"].to_pylist() == rows.tolist()
    assert merged["key"].to_pylist() == expected[query, rank].tolist()  # to the last bit
    assert merged["list"].to_pylist() == lists[rows].tolist()
    assert merged["image_id"].to_pylist() == [ids[row] for row in rows]
    assert merged["path"].to_pylist() == [f"/photos/{row}" for row in rows]
    assert merged["label"].to_pylist() == [f"class{row % 3}" for row in rows]
    assert ranks.tolist() == rank.tolist()


top_ks = st.integers(1, 12) | st.integers(13, 45)  # up to more than all rows
list_counts = st.integers(1, 8)
undecided_pairs = st.sampled_from([0, 1, 5, 30, 200, UNDECIDED])


@quick
@given(cases(), metrics, top_ks, list_counts, st.integers(1, 5), undecided_pairs, seeds)
def test_with_all_lists_read_it_is_exact_search(case, metric, k, nlist, cuts, undecided, seed):
    shards_merge_to_brute_force(case, metric, k, nlist, None, cuts, undecided, seed)


@settings(quick, max_examples=60)
@given(cases(), metrics, st.integers(1, 12), list_counts, st.booleans(), undecided_pairs, seeds)
def test_where_float64_proposes_it_is_exact_search_too(
    case, metric, k, nlist, every, undecided, seed
):
    """It is taken here wherever a pair is undecided."""
    with mock.patch.multiple(matmul, _FEW_DOUBTFUL=-1, _DOUBTFUL=1 << 40):
        probes = None if every else 2
        shards_merge_to_brute_force(case, metric, k, nlist, probes, 2, undecided, seed)


@pytest.mark.parametrize("product", CHEAP, ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("metric", "what"),
    [("ip", "row"), ("l2", "row"), ("ip", "long row"), ("ip", "query"), ("l2", "offset")],
)
def test_one_odd_vector_or_an_offset_leaves_few_pairs_to_score(metric, what, product, monkeypatch):
    """Of 60,000 pairs; all of them were scored, which takes a hundred times as long."""
    generator = np.random.default_rng(0)
    values, rows = (generator.normal(size=(n, 16)).astype(np.float32) for n in (30, 2000))
    odd = rows if "row" in what else values
    odd[7] *= np.float32({"row": 1e19, "long row": 1e12, "query": 1e19, "offset": 1}[what])
    if what == "offset":
        values, rows = values + np.float32(300), rows + np.float32(300)
    counted = []

    def counting(queries, block_of_rows, q, x):
        counted.append(len(q))
        return pair_scores(queries, block_of_rows, q, x)

    monkeypatch.setattr(topk_accumulator, "pair_scores", counting)
    centroids = rows[100:110] if metric == "l2" else np.eye(10, 16, dtype=np.float32)
    shard = make_shard(rows, np.arange(2000), image_ids(2000), centroids, metric)
    asked = Asked(block(values, metric), np.arange(30))
    table = Searcher(shard, product).search(asked, None, 10)
    keys, places = brute_force(exact_keys(values, rows, metric), np.arange(2000), 10)
    merged, _ = best_of([table], 10)
    assert merged["row"].to_pylist() == places.ravel().tolist()
    assert merged["key"].to_pylist() == keys.ravel().tolist()
    assert sum(counted) < 30 * 10 * 8


some = (top_ks, list_counts, list_counts, st.integers(1, 5), undecided_pairs, seeds)


@quick
@given(cases(), metrics, *some)
def test_it_is_exact_search_within_the_lists_that_are_read(
    case, metric, k, nlist, nprobe, cuts, undecided, seed
):
    shards_merge_to_brute_force(case, metric, k, nlist, nprobe, cuts, undecided, seed)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, *some)
def test_it_is_exact_search_within_the_lists_that_are_read_many_times(
    case, metric, k, nlist, nprobe, cuts, undecided, seed
):
    shards_merge_to_brute_force(case, metric, k, nlist, nprobe, cuts, undecided, seed)


@pytest.mark.nightly
@nightly
@given(cases(), metrics, top_ks, list_counts, st.integers(1, 5), undecided_pairs, seeds)
def test_with_all_lists_read_it_is_exact_search_many_times(
    case, metric, k, nlist, cuts, undecided, seed
):
    shards_merge_to_brute_force(case, metric, k, nlist, None, cuts, undecided, seed)


def _tied(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(rows[:20], 15, axis=0)


def _far_from_the_origin(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows + 1000


def _with_a_huge_norm(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([rows[:-1], rows[-1:] * 1e19])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [np.array, _tied, _far_from_the_origin, _with_a_huge_norm])
def test_matches_do_not_depend_on_how_queries_are_blocked_nor_on_what_waits(metric, shape):
    """As those of a few thousand queries with --top-k 1000 did, of which a third came twice."""
    generator = np.random.default_rng(0)
    rows = shape(generator.normal(size=(300, 8))).astype(np.float32)
    queries = np.concatenate([rows[::100], generator.normal(size=(4, 8)).astype(np.float32)])
    barred = generator.random((7, 300)) < 0.1
    keys = np.where(barred, -np.inf, exact_keys(queries, rows, metric))
    centroids = train_centroids(rows, 5, metric, seed=0)
    shard = make_shard(rows, np.arange(300), image_ids(300), centroids, metric)
    for k in (5, 120, 300):
        expected, found = brute_force(keys, np.arange(300), k)
        query, rank = np.nonzero(found >= 0)
        for blocks, undecided in (([7], UNDECIDED), ([7], 50), ([3, 4], 700), ([1] * 7, 50)):
            searcher, parts = Searcher(shard, undecided=undecided), []
            for own in np.split(np.arange(7), np.cumsum(blocks)[:-1]):
                pairs = np.nonzero(barred[own])
                asked = Asked(block(queries[own], metric), own, None, pairs)
                parts.append(searcher.search(asked, None, k))
            merged, _ = best_of(parts, k)
            assert merged["query"].to_pylist() == query.tolist()
            assert merged["row"].to_pylist() == found[query, rank].tolist()
            assert merged["key"].to_pylist() == expected[query, rank].tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_scores_are_ordered_by_the_bytes_of_image_id(metric, dtype):
    rows = np.full((6, 5), 0.1, dtype)
    ids = ["é.jpg", "z.jpg", "Z.jpg", "🐟.jpg", "￿.jpg", "a b.jpg"]
    centroids = train_centroids(rows, 2, metric, seed=0)
    shard = make_shard(rows, np.arange(6), ids, centroids, metric)
    probes, number = np.array([[0, 1]]), np.array([0])
    found = Searcher(shard).search(Asked(block(rows[:1], metric), number), probes, 4)
    merged, _ = best_of([found], 4)
    assert merged["image_id"].to_pylist() == ["Z.jpg", "a b.jpg", "z.jpg", "é.jpg"]


def test_a_zero_that_is_negative_ties_with_one_that_is_not():
    """Across shards too, where Arrow compares the keys."""
    rows = np.array([[0.0], [-0.0], [0.0], [-0.0]], np.float32)
    ids = ["d", "c", "b", "a"]
    centroids = np.ones((1, 1), np.float32)
    query = block(np.array([[-3.0]], np.float32), "ip")
    parts = [
        Searcher(make_shard(rows, np.array(own), ids, centroids, "ip")).search(
            Asked(query, np.array([0])),
            np.array([[0]]),
            4,
        )
        for own in ([0, 1], [2, 3])
    ]
    merged, _ = best_of(parts, 4)
    assert merged["image_id"].to_pylist() == ["a", "b", "c", "d"]


def test_lists_are_read_by_those_who_asked_for_them():
    probes = np.array([[2, 0], [1, 2], [2, 1]])
    pairs = ivf_search._pairs(probes, np.array([[True, True], [True, True], [True, False]]))
    assert {number: which.tolist() for number, which in pairs} == {0: [0], 1: [1], 2: [0, 1, 2]}
    assert list(ivf_search._pairs(np.empty((3, 0), np.int64), np.empty((3, 0), np.bool_))) == []


@pytest.mark.parametrize("metric", METRICS)
def test_shards_from_disk_answer_as_those_in_memory(tmp_path, metric):
    vectors = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float16)
    vectors[40:60] = vectors[:20]
    store = make_store(tmp_path / "store", vectors, chunk_rows=32)
    index = Building(tmp_path / "index", store, metric, nlist=6, rows_per_shard=40).finish()
    asked = Asked(block(vectors[:7], metric), np.arange(7))
    parts = [Searcher(s).search(asked, np.tile(np.arange(6), (7, 1)), 9) for s in index.shards]
    merged, _ = best_of(parts, 9)
    _, found = brute_force(exact_keys(vectors[:7], vectors, metric), np.arange(90), 9)
    assert merged["row"].to_pylist() == found.ravel().tolist()
    ids = image_ids(90)
    assert merged["image_id"].to_pylist() == [ids[row] for row in found.ravel()]


def test_an_empty_shard_has_no_candidates():
    rows = np.ones((3, 2), np.float32)
    shard = make_shard(rows, np.arange(0), ["a", "b", "c"], rows[:1], "ip")
    asked = Asked(block(rows, "ip"), np.arange(3))
    found = Searcher(shard).search(asked, np.zeros((3, 1), np.int64), 2)
    assert found.schema.equals(CANDIDATES)
    assert len(found) == 0


def test_no_query_has_no_candidates():
    rows = np.ones((3, 2), np.float32)
    shard = make_shard(rows, np.arange(3), ["a", "b", "c"], rows[:1], "ip")
    nobody = np.empty((0, 1), np.int64)
    assert len(Searcher(shard).search(Asked(block(rows[:0], "ip"), nobody[:, 0]), nobody, 2)) == 0


def test_the_stored_norms_are_used():
    """They are read with the shard, so that no vector's length is summed again."""
    rows = np.array([[3, 4], [6, 8]], np.float32)
    shard = make_shard(rows, np.arange(2), ["a", "b"], np.ones((1, 2), np.float32), "cosine")
    place = SHARD_ROWS.schema.get_field_index("squared_norm")
    doubled = shard.metadata.set_column(place, "squared_norm", pa.array([100.0, 400.0]))
    shard = dataclasses.replace(shard, metadata=doubled)
    asked = Asked(block(rows[:1], "cosine"), np.array([0]))
    found = Searcher(shard).search(asked, np.array([[0]]), 2)
    assert found["key"].to_pylist() == [0.5, 0.5]
