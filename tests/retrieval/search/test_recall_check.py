"""The recall that is certified is the one counted from the matches themselves."""

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
from retrieval.index.sampling import rows_in_hash_order, sample_of
from retrieval.index.shard import shard_path
from retrieval.search import shard_search
from retrieval.search.candidates import best_of
from retrieval.search.merge import matches_of
from retrieval.search.recall_check import certify
from retrieval.search.shard_search import (
    Task,
    answer_shard,
    candidates_path,
    exact_answers,
    exact_path,
    put_lists,
    read_answer,
    shares_of,
)
from retrieval.storage.local import open_folder
from retrieval.store.reader import Store
from tests.retrieval.sample_vectors import (
    METRICS,
    Building,
    Index,
    brute_force,
    dtypes,
    exact_keys,
    make_store,
    metrics,
    seeds,
    slow,
)

LOOKED_AT = 7
"""Queries of the first of two looks."""

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
) -> tuple[Task, Index]:
    """Make an index of three shards, queries in three blocks with holes, two looks at 12 of them.

    Small whole numbers, so that vectors of different lists tie at the k-th place. Queries before
    `first` of 60 failed.
    """
    generator = np.random.default_rng(seed)
    gallery = generator.integers(-3, 4, (90, 3)).astype(dtype)
    asked = generator.integers(-3, 4, (25, 3)).astype(dtype)
    store = make_store(root / "store", gallery, rows=range(5, 95), images=100, chunk_rows=32)
    index = Building(root / "index", store, metric, nlist=9, rows_per_shard=40, seed=seed).finish()
    rows = np.sort(generator.permutation(60 - first)[:25]) + first
    queries = make_store(root / "queries", asked, rows=rows, images=60, chunk_rows=20)
    sampled = rows_in_hash_order(queries, 12, seed, "certificate")
    folder = open_folder(str(root / "matches"))
    return Task(
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


def run(task: Task) -> None:
    for number in range(len(task.blocks)):
        put_lists(task, number)
    for number in range(int(task.manifest.counts["shards"])):
        answer_shard(task, number)


def matches(task: Task) -> pa.Table:
    """Give the matches of all queries, as `jobs/ranking/rank.py` makes them."""
    shards, tables = range(int(task.manifest.counts["shards"])), []
    for number in range(len(task.blocks)):
        parts = [read_answer(task.matches, candidates_path(task.nprobe, s, number)) for s in shards]
        asked = task.plain_block(number)
        tables.append(matches_of(parts, task.top_k, asked, task.metric))
    return pa.concat_tables(tables)


def contents(store: Store) -> tuple[list[str], NDArray[np.float32], NDArray[np.int64]]:
    table = pa.concat_tables(store.blocks())
    vectors, rows = sample_of(store, store.rows, 0, "curve")
    return table["image_id"].to_pylist(), vectors, rows


def counted(task: Task, index: Index) -> NDArray[np.float64]:
    """Count, for each sampled query, the share of its exact neighbours among its matches."""
    ids, gallery, _ = contents(index.store)
    names, vectors, rows = contents(task.queries)
    keys = exact_keys(vectors, gallery, task.metric)
    _, exact = brute_force(keys, np.arange(len(gallery)), task.top_k)  # rows are in order of ids
    found: dict[str, set[str]] = {name: set() for name in names}
    for line in matches(task).to_pylist():
        found[line["query_id"]].add(line["image_id"])
    shares = []
    for query in np.flatnonzero(np.isin(rows, task.sample)):
        wanted = {ids[place] for place in exact[query] if place >= 0}
        shares.append(len(wanted & found[names[query]]) / len(wanted))
    return np.array(shares)


def check(task: Task, index: Index, target: float, seed: int) -> Certificate:
    run(task)
    made, wider = certify(task, target, seed)
    assert (made.nprobe, made.nlist, made.target, made.passes) == (task.nprobe, 9, target, 1)
    if task.nprobe == 9:
        assert (made.recall, made.low, made.high, made.sample) == (1, 1, 1, 0)
        return made
    values = counted(task, index)
    ends = np.array(sampled_interval(values, 25, looks=len(task.looks), seed=seed))
    assert made.search_recall == pytest.approx(values.mean(), abs=1e-12)
    assert (made.search_low, made.search_high) == pytest.approx(tuple(ends), abs=1e-12)
    # sampled queries get their exact answers: of 25 the others have the search's recall
    assert made.recall == pytest.approx(
        (len(values) + (25 - len(values)) * values.mean()) / 25, abs=1e-12
    )
    ends = np.minimum(ends + (1 - values).sum() / 25, 1)
    assert (made.low, made.high) == pytest.approx(tuple(ends), abs=1e-12)
    assert (made.sample, made.queries) == (len(values), 25)
    assert wider == enough(task, index, target, seed, made)
    return made


def enough(task: Task, index: Index, target: float, seed: int, made: Certificate) -> int:
    """Search again and again to find the fewest lists whose lower bound meets the target."""
    if made.low >= target:
        return task.nprobe
    for nprobe in probe_grid(9):
        again = dataclasses.replace(task, nprobe=nprobe)
        run(again)
        values = counted(again, index)
        low, _ = sampled_interval(values, 25, looks=len(task.looks), seed=seed)
        if low + (1 - values).sum() / 25 >= target:
            return max(nprobe, task.nprobe)
    return 9


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("nprobe", "target"), [(1, 0.9), (2, 0.1), (3, 1.0)])
def test_certified_recall_is_counted_recall(tmp_path, metric, dtype, nprobe, target):
    task, index = make_task(tmp_path, metric, dtype=dtype, nprobe=nprobe)
    made = check(task, index, target, seed=5)
    assert 0 < made.search_recall < 1  # else the case would show nothing


@pytest.mark.nightly
@slow
@given(metrics, dtypes, st.integers(1, 9), st.sampled_from([1, 3, 10, 200]), st.floats(0, 1), seeds)
def test_certified_recall_is_counted_recall_many_times(
    tmp_path_factory, metric, dtype, nprobe, top_k, target, seed
):
    root = tmp_path_factory.mktemp("certificate")
    task, index = make_task(root, metric, dtype=dtype, nprobe=nprobe, top_k=top_k, seed=seed)
    check(task, index, target, seed)


@every_metric
def test_with_all_lists_read_the_sample_shows_recall_one(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=9)
    made = check(task, index, 0.95, seed=0)
    assert (made.recall, made.low, made.high) == (1, 1, 1)


@every_metric
def test_more_neighbours_than_the_gallery_has_are_all_of_it(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=4, top_k=200)
    check(task, index, 0.95, seed=0)


def test_blocks_of_queries_that_all_failed_are_no_trouble(tmp_path):
    task, index = make_task(tmp_path, "cosine", first=30)
    assert len(task.plain_block(0)) == 0
    check(task, index, 0.95, seed=0)


def test_blocks_without_a_sampled_query_are_no_trouble(tmp_path):
    task, index = make_task(tmp_path, "cosine")
    task = dataclasses.replace(task, looks=(task.sample[:1],), look=0)
    check(task, index, 0.95, seed=0)


def test_without_a_sample_all_lists_were_read_and_nothing_is_measured(tmp_path):
    task, _ = make_task(tmp_path, "cosine", nprobe=9)
    task = dataclasses.replace(task, looks=())
    run(task)
    assert not list(task.matches.entries("work/exact"))
    assert certify(task, 0.95, 0) == (Certificate(9, 9, 0.95, 1.0, 1.0, 1.0, 0, 1), 9)


@every_metric
def test_the_same_task_has_the_same_certificate(tmp_path, metric):
    for name in ("one", "other"):
        run(make_task(tmp_path / name, metric)[0])
    one, other = (make_task(tmp_path / name, metric)[0] for name in ("one", "other"))
    assert certify(one, 0.9, 3) == certify(other, 0.9, 3)
    of_3, of_4 = (certify(one, 0.9, seed)[0] for seed in (3, 4))
    assert (of_3.low, of_3.high) == pytest.approx((of_4.low, of_4.high), abs=0.02)


# --- answers ------------------------------------------------------------------------------------


def test_exact_answers_are_those_of_the_sampled_queries_alone(tmp_path):
    task, index = make_task(tmp_path, "l2", nprobe=1)
    run(task)
    _, gallery, rows = contents(index.store)
    _, vectors, asked = contents(task.queries)
    for number in range(len(task.blocks)):
        parts = list(exact_answers(task, number))
        merged, _ = best_of(parts, task.top_k)
        own = np.isin(asked, task.sample) & (asked // 20 == number)
        assert merged["query"].unique().to_pylist() == asked[own].tolist()
        _, exact = brute_force(exact_keys(vectors[own], gallery, "l2"), rows, task.top_k)
        assert merged["row"].to_pylist() == rows[exact.ravel()].tolist()


def test_answers_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    task, _ = make_task(tmp_path, "cosine")
    run(task)
    before = {e.path: task.matches.read(e.path) for e in task.matches.entries()}
    exact = sum(len(task.exact_blocks(shard, range(3))) for shard in range(3))
    assert 9 < exact <= 18  # of two looks
    assert len(before) == 3 + 3 * 3 + exact  # lists a block; found, a shard and block
    monkeypatch.setattr(shard_search, "open_shard", None)  # it would be called
    run(task)
    assert {e.path for e in task.matches.entries()} == before.keys()


def test_an_answer_that_was_lost_is_made_again_and_the_matches_are_the_same(tmp_path):
    """It may be shorter than it was, since the other shards' answers are there to spare work."""
    task, _ = make_task(tmp_path, "cosine")
    run(task)
    whole, exact = matches(task), task.matches.read(exact_path(1, 2, 0))
    lost = candidates_path(task.nprobe, 1, 2), exact_path(1, 2, 0)
    sizes = [len(read_answer(task.matches, path)) for path in lost]
    for path in lost:
        task.matches.delete(path)
    run(task)
    assert matches(task).equals(whole)
    assert task.matches.read(lost[1]) == exact
    assert 0 < len(read_answer(task.matches, lost[0])) < sizes[0]


@pytest.mark.parametrize("path", [candidates_path(2, 1, 1), exact_path(0, 0, 2)])
def test_an_altered_answer_is_found(tmp_path, path):
    task, _ = make_task(tmp_path, "cosine")
    run(task)
    data = bytearray(task.matches.read(path))
    data[len(data) // 2] ^= 1
    task.matches.put(path, bytes(data))
    with pytest.raises(Damaged, match="was altered; remove it"):
        read_answer(task.matches, path)


def test_tasks_that_share_a_shard_answer_as_one_does(tmp_path: Path) -> None:
    alone, _ = make_task(tmp_path / "alone", "ip")
    shared, _ = make_task(tmp_path / "shared", "ip")
    run(alone)
    for number in range(len(shared.blocks)):
        put_lists(shared, number)
    for share in (2, 0, 1):
        for number in shared.shards:
            answer_shard(shared, number, share, 3)
    assert matches(shared) == matches(alone)
    assert certify(shared, 0.5, 0)[0] == certify(alone, 0.5, 0)[0]


def test_few_shards_are_shared_by_tasks_that_hold_no_more_than_one(tmp_path: Path) -> None:
    task, index = make_task(tmp_path, "ip")
    largest = max(index.manifest.files[shard_path(number)].size for number in task.shards)
    assert (len(task.shards), len(task.blocks)) == (3, 3)
    assert [shares_of(task, workers) for workers in (1, 3, 6, 9, 99)] == [1, 1, 2, 3, 3]
    small = dataclasses.replace(task, memory=4 * largest)
    assert [shares_of(small, workers) for workers in (6, 99)] == [2, 2]
    assert shares_of(dataclasses.replace(task, memory=1), 99) == 1


# --- a store against itself ---------------------------------------------------------------------


def test_a_store_ranked_against_itself_is_not_judged_by_its_own_centroids(tmp_path: Path) -> None:
    """K-means starts with rows drawn by hash; the queries that recall is measured on are others.

    The truth is that of all queries, by numpy. Over seeds the mean error is nothing.
    """
    vectors = np.random.default_rng(0).normal(size=(1200, 16)).astype(np.float32)
    store = make_store(tmp_path / "store", vectors, chunk_rows=1200)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    nearest = np.argsort(-(unit @ unit.T), axis=1)[:, :10]
    errors, inside = [], []
    for seed in range(4):
        index = Building(tmp_path / f"index{seed}", store, "cosine", nlist=60, seed=seed).finish()
        order = np.argsort(-(unit @ index.centroids.T.astype(np.float64)), axis=1)
        lists = order[:, 0]
        sampled = rows_in_hash_order(store, 100, seed, "certificate")
        for nprobe in (1, 4):
            found = lists[nearest][:, :, None] == order[:, None, :nprobe]
            truth = found.any(2).mean()
            task = Task(
                index.folder, index.manifest, "float32", "cosine", store,
                open_folder(str(tmp_path / f"matches{seed}{nprobe}")), nprobe, 10, (sampled,),
            )  # fmt: skip
            run(task)
            made, _ = certify(task, 0.95, 0)
            errors.append(made.search_recall - truth)
            inside.append(made.search_low <= truth <= made.search_high)
    assert sum(inside) >= 7
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(4)  # of each seed two, alike
    assert np.std(errors) < 0.05
