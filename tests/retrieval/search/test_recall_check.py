"""Tests that the certified recall equals the recall counted on the matches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Certificate
from retrieval.core.schemas import Metric
from retrieval.index.recall_curve import probe_grid
from retrieval.index.recall_interval import sampled_interval
from retrieval.index.sampling import draw_sample, rows_in_hash_order
from retrieval.index.shard import shard_path
from retrieval.search import shard_search
from retrieval.search.candidates import top_candidates
from retrieval.search.merge import rank_candidates
from retrieval.search.recall_check import certify
from retrieval.search.shard_search import (
    SearchTask,
    candidates_path,
    exact_path,
    read_exact_candidates,
    read_intermediate,
    search_shard,
    shares_per_shard,
    write_probed_lists,
)
from retrieval.storage.local import open_folder
from retrieval.store.reader import Store
from tests.retrieval.sample_vectors import (
    METRICS,
    FinishedIndex,
    IndexBuilder,
    brute_force,
    dtypes,
    exact_keys,
    make_store,
    metrics,
    seeds,
    slow,
)

LOOKED_AT = 7
"""Number of queries in the first of two looks."""

every_metric = pytest.mark.parametrize("metric", METRICS)


def make_task(
    root: Path,
    metric: Metric,
    *,
    dtype: str = "float32",
    nprobe: int = 2,
    top_k: int = 10,
    seed: int = 0,
    first: int = 0,
) -> tuple[SearchTask, FinishedIndex]:
    """Return a task with three shards, three blocks of queries with holes, and two looks at 12.

    Vectors are small integers, so that rows of different lists tie at the k-th rank. The queries
    before `first` of 60 have failed.
    """
    generator = np.random.default_rng(seed)
    gallery = generator.integers(-3, 4, (90, 3)).astype(dtype)
    query_vectors = generator.integers(-3, 4, (25, 3)).astype(dtype)
    store = make_store(root / "store", gallery, rows=range(5, 95), images=100, chunk_rows=32)
    index = IndexBuilder(
        root / "index", store, metric, nlist=9, rows_per_shard=40, seed=seed
    ).finish()
    rows = np.sort(generator.permutation(60 - first)[:25]) + first
    queries = make_store(root / "queries", query_vectors, rows=rows, images=60, chunk_rows=20)
    sampled = rows_in_hash_order(queries, 12, seed, "certificate")
    folder = open_folder(str(root / "matches"))
    return SearchTask(
        index.folder,
        index.manifest,
        dtype,
        metric,
        queries,
        folder,
        nprobe,
        top_k,
        tuple(np.split(sampled, [LOOKED_AT])),
        look=1,
    ), index


def run_search(task: SearchTask) -> None:
    for number in range(len(task.query_chunks)):
        write_probed_lists(task, number)
    for number in range(int(task.manifest.counts["shards"])):
        search_shard(task, number)


def merged_matches(task: SearchTask) -> pa.Table:
    """Return the matches of all queries, merged as `jobs/ranking/write_matches.py` does."""
    shards, tables = range(int(task.manifest.counts["shards"])), []
    for number in range(len(task.query_chunks)):
        parts = [
            read_intermediate(task.output, candidates_path(task.nprobe, s, number)) for s in shards
        ]
        queries_table = task.stored_queries(number)
        tables.append(rank_candidates(parts, task.top_k, queries_table, task.metric))
    return pa.concat_tables(tables)


def read_contents(store: Store) -> tuple[list[str], NDArray[np.float32], NDArray[np.int64]]:
    table = pa.concat_tables(store.blocks())
    vectors, rows = draw_sample(store, store.rows, 0, "curve")
    return table["image_id"].to_pylist(), vectors, rows


def count_recall(task: SearchTask, index: FinishedIndex) -> NDArray[np.float64]:
    """Return for each sampled query the fraction of its exact neighbours among its matches."""
    ids, gallery, _ = read_contents(index.store)
    names, vectors, rows = read_contents(task.queries)
    keys = exact_keys(vectors, gallery, task.metric)
    _, exact = brute_force(keys, np.arange(len(gallery)), task.top_k)  # rows are in order of ids
    found_images: dict[str, set[str]] = {name: set() for name in names}
    for line in merged_matches(task).to_pylist():
        found_images[line["query_id"]].add(line["image_id"])
    shares = []
    for query in np.flatnonzero(np.isin(rows, task.sampled_queries)):
        wanted = {ids[place] for place in exact[query] if place >= 0}
        shares.append(len(wanted & found_images[names[query]]) / len(wanted))
    return np.array(shares)


def check_certificate(
    task: SearchTask, index: FinishedIndex, target: float, seed: int
) -> Certificate:
    run_search(task)
    certificate, wider = certify(task, target, seed)
    assert (certificate.nprobe, certificate.nlist, certificate.target, certificate.passes) == (
        task.nprobe,
        9,
        target,
        1,
    )
    if task.nprobe == 9:
        assert (certificate.recall, certificate.low, certificate.high, certificate.sample) == (
            1,
            1,
            1,
            0,
        )
        return certificate
    values = count_recall(task, index)
    ends = np.array(sampled_interval(values, 25, looks=len(task.looks), seed=seed))
    assert certificate.search_recall == pytest.approx(values.mean(), abs=1e-12)
    assert (certificate.search_low, certificate.search_high) == pytest.approx(
        tuple(ends), abs=1e-12
    )
    # sampled queries get their exact answers: of 25 the others have the search's recall
    assert certificate.recall == pytest.approx(
        (len(values) + (25 - len(values)) * values.mean()) / 25, abs=1e-12
    )
    ends = np.minimum(ends + (1 - values).sum() / 25, 1)
    assert (certificate.low, certificate.high) == pytest.approx(tuple(ends), abs=1e-12)
    assert (certificate.sample, certificate.queries) == (len(values), 25)
    assert wider == smallest_sufficient_nprobe(task, index, target, seed, certificate)
    return certificate


def smallest_sufficient_nprobe(
    task: SearchTask, index: FinishedIndex, target: float, seed: int, certificate: Certificate
) -> int:
    """Search with growing nprobe to find the smallest whose lower bound meets the target."""
    if certificate.low >= target:
        return task.nprobe
    for nprobe in probe_grid(9):
        again = dataclasses.replace(task, nprobe=nprobe)
        run_search(again)
        values = count_recall(again, index)
        low, _ = sampled_interval(values, 25, looks=len(task.looks), seed=seed)
        if low + (1 - values).sum() / 25 >= target:
            return max(nprobe, task.nprobe)
    return 9


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("nprobe", "target"), [(1, 0.9), (2, 0.1), (3, 1.0)])
def test_certified_recall_equals_counted_recall(tmp_path, metric, dtype, nprobe, target):
    task, index = make_task(tmp_path, metric, dtype=dtype, nprobe=nprobe)
    certificate = check_certificate(task, index, target, seed=5)
    assert 0 < certificate.search_recall < 1  # else the case would show nothing


@pytest.mark.nightly
@slow
@given(metrics, dtypes, st.integers(1, 9), st.sampled_from([1, 3, 10, 200]), st.floats(0, 1), seeds)
def test_certified_recall_equals_counted_recall_many_times(
    tmp_path_factory, metric, dtype, nprobe, top_k, target, seed
):
    root = tmp_path_factory.mktemp("certificate")
    task, index = make_task(root, metric, dtype=dtype, nprobe=nprobe, top_k=top_k, seed=seed)
    check_certificate(task, index, target, seed)


@every_metric
def test_searching_all_lists_has_recall_one(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=9)
    certificate = check_certificate(task, index, 0.95, seed=0)
    assert (certificate.recall, certificate.low, certificate.high) == (1, 1, 1)


@every_metric
def test_k_beyond_the_gallery_size_returns_the_whole_gallery(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=4, top_k=200)
    check_certificate(task, index, 0.95, seed=0)


def test_blocks_with_only_failed_queries_are_certified(tmp_path):
    task, index = make_task(tmp_path, "cosine", first=30)
    assert len(task.stored_queries(0)) == 0
    check_certificate(task, index, 0.95, seed=0)


def test_blocks_without_a_sampled_query_are_certified(tmp_path):
    task, index = make_task(tmp_path, "cosine")
    task = dataclasses.replace(task, looks=(task.sampled_queries[:1],), look=0)
    check_certificate(task, index, 0.95, seed=0)


def test_without_a_sample_nothing_is_measured(tmp_path):
    task, _ = make_task(tmp_path, "cosine", nprobe=9)
    task = dataclasses.replace(task, looks=())
    run_search(task)
    assert not list(task.output.entries("work/exact"))
    assert certify(task, 0.95, 0) == (Certificate(9, 9, 0.95, 1.0, 1.0, 1.0, 0, 1), 9)


@every_metric
def test_the_same_task_has_the_same_certificate(tmp_path, metric):
    for name in ("one", "other"):
        run_search(make_task(tmp_path / name, metric)[0])
    first_task, second_task = (make_task(tmp_path / name, metric)[0] for name in ("one", "other"))
    assert certify(first_task, 0.9, 3) == certify(second_task, 0.9, 3)
    of_3, of_4 = (certify(first_task, 0.9, seed)[0] for seed in (3, 4))
    assert (of_3.low, of_3.high) == pytest.approx((of_4.low, of_4.high), abs=0.02)


# --- answers ------------------------------------------------------------------------------------


def test_exact_candidates_cover_only_the_sampled_queries(tmp_path):
    task, index = make_task(tmp_path, "l2", nprobe=1)
    run_search(task)
    _, gallery, rows = read_contents(index.store)
    _, vectors, query_rows = read_contents(task.queries)
    for number in range(len(task.query_chunks)):
        parts = list(read_exact_candidates(task, number))
        merged, _ = top_candidates(parts, task.top_k)
        in_block = np.isin(query_rows, task.sampled_queries) & (query_rows // 20 == number)
        assert merged["query"].unique().to_pylist() == query_rows[in_block].tolist()
        _, exact = brute_force(exact_keys(vectors[in_block], gallery, "l2"), rows, task.top_k)
        assert merged["row"].to_pylist() == rows[exact.ravel()].tolist()


def test_existing_files_are_not_computed_again(tmp_path, monkeypatch):
    task, _ = make_task(tmp_path, "cosine")
    run_search(task)
    before = {e.path: task.output.read(e.path) for e in task.output.entries()}
    exact = sum(len(task.exact_outputs(shard, range(3))) for shard in range(3))
    assert 9 < exact <= 18  # of two looks
    assert (
        len(before) == 3 + 3 * 3 + exact
    )  # probed lists per block, candidates per shard and block
    monkeypatch.setattr(shard_search, "open_shard", None)  # it would be called
    run_search(task)
    assert {e.path for e in task.output.entries()} == before.keys()


def test_a_lost_file_is_computed_again_with_the_same_matches(tmp_path):
    """It may hold fewer rows than before, since other shards have set lower limits by now."""
    task, _ = make_task(tmp_path, "cosine")
    run_search(task)
    whole, exact = merged_matches(task), task.output.read(exact_path(1, 2, 0))
    lost = candidates_path(task.nprobe, 1, 2), exact_path(1, 2, 0)
    sizes = [len(read_intermediate(task.output, path)) for path in lost]
    for path in lost:
        task.output.delete(path)
    run_search(task)
    assert merged_matches(task).equals(whole)
    assert task.output.read(lost[1]) == exact
    assert 0 < len(read_intermediate(task.output, lost[0])) < sizes[0]


@pytest.mark.parametrize("path", [candidates_path(2, 1, 1), exact_path(0, 0, 2)])
def test_an_altered_file_is_detected(tmp_path, path):
    task, _ = make_task(tmp_path, "cosine")
    run_search(task)
    data = bytearray(task.output.read(path))
    data[len(data) // 2] ^= 1
    task.output.put(path, bytes(data))
    with pytest.raises(Damaged, match="was altered; remove it"):
        read_intermediate(task.output, path)


def test_tasks_that_share_a_shard_find_the_same_candidates(tmp_path: Path) -> None:
    alone, _ = make_task(tmp_path / "alone", "ip")
    shared, _ = make_task(tmp_path / "shared", "ip")
    run_search(alone)
    for number in range(len(shared.blocks)):
        write_probed_lists(shared, number)
    for share in (2, 0, 1):
        for number in shared.shards:
            search_shard(shared, number, share, 3)
    assert merged_matches(shared) == merged_matches(alone)
    assert certify(shared, 0.5, 0)[0] == certify(alone, 0.5, 0)[0]


def test_tasks_that_share_a_shard_use_the_memory_of_one(tmp_path: Path) -> None:
    task, index = make_task(tmp_path, "ip")
    largest = max(index.manifest.files[shard_path(number)].size for number in task.shards)
    assert (len(task.shards), len(task.query_chunks)) == (3, 3)
    assert [shares_per_shard(task, workers) for workers in (1, 3, 6, 9, 99)] == [1, 1, 2, 3, 3]
    small = dataclasses.replace(task, memory=4 * largest)
    assert [shares_per_shard(small, workers) for workers in (6, 99)] == [2, 2]
    assert shares_per_shard(dataclasses.replace(task, memory=1), 99) == 1


# --- a store against itself ---------------------------------------------------------------------


def test_the_sample_is_independent_of_the_centroid_sample(tmp_path: Path) -> None:
    """K-means starts with rows drawn by hash; the queries that recall is measured on are others.

    The truth is that of all queries, by numpy. Over seeds the mean error is nothing.
    """
    vectors = np.random.default_rng(0).normal(size=(1200, 16)).astype(np.float32)
    store = make_store(tmp_path / "store", vectors, chunk_rows=1200)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    nearest = np.argsort(-(unit @ unit.T), axis=1)[:, :10]
    errors, inside = [], []
    for seed in range(4):
        index = IndexBuilder(
            tmp_path / f"index{seed}", store, "cosine", nlist=60, seed=seed
        ).finish()
        order = np.argsort(-(unit @ index.centroids.T.astype(np.float64)), axis=1)
        lists = order[:, 0]
        sampled = rows_in_hash_order(store, 100, seed, "certificate")
        for nprobe in (1, 4):
            is_found = lists[nearest][:, :, None] == order[:, None, :nprobe]
            truth = is_found.any(2).mean()
            task = SearchTask(
                index.folder, index.manifest, "float32", "cosine", store,
                open_folder(str(tmp_path / f"matches{seed}{nprobe}")), nprobe, 10, (sampled,),
            )  # fmt: skip
            run_search(task)
            certificate, _ = certify(task, 0.95, 0)
            errors.append(certificate.search_recall - truth)
            inside.append(certificate.search_low <= truth <= certificate.search_high)
    assert sum(inside) >= 7
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(4)  # of each seed two, alike
    assert np.std(errors) < 0.05
