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
from retrieval.index.probing import Probing
from retrieval.index.recall_curve import gap_grid
from retrieval.index.recall_interval import sampled_interval
from retrieval.index.sampling import draw_sample, rows_in_hash_order
from retrieval.index.shard import shard_path
from retrieval.search import probed_queries, shard_search
from retrieval.search.candidates import top_candidates
from retrieval.search.candidates_file import read_candidates, read_limits
from retrieval.search.merge import rank_candidates
from retrieval.search.probed_queries import read_probed_queries
from retrieval.search.read_counts import ReadCounts, add_blocks, add_shards, read_counts
from retrieval.search.recall_check import _required_by_sample, certify
from retrieval.search.shard_search import (
    SearchTask,
    candidates_path,
    claim_parts,
    exact_path,
    probed_lists_path,
    read_block_candidates,
    read_exact_candidates,
    read_probed_lists,
    search_shard,
    shares_per_shard,
    write_probed_lists,
)
from retrieval.storage.local import open_folder
from retrieval.store.reader import Store, read_vectors
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

FIRST_LOOK = 7
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
    """Return a search task with three shards, three query blocks, and two looks at 12 queries.

    Of 60 queries 25 have a vector; those before `first` have none. Vectors are small integers, so
    that rows of different lists tie at the k-th rank.
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
        tuple(np.split(sampled, [FIRST_LOOK])),
        look=1,
    ), index


def run_search(task: SearchTask) -> None:
    for number in range(len(task.query_chunks)):
        write_probed_lists(task, number)
    for number in range(int(task.manifest.counts["shards"])):
        search_shard(task, number)


def merged_matches(task: SearchTask) -> pa.Table:
    """Return the matches of all queries, merged as `jobs/ranking/write_matches.py` does."""
    tables = []
    for number in range(len(task.query_chunks)):
        queries_table, parts = task.stored_queries(number), read_block_candidates(task, number)
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
    ties = np.arange(len(gallery))  # rows are ordered by image_id
    _, exact = brute_force(keys, ties, task.top_k)
    matched_images: dict[str, set[str]] = {name: set() for name in names}
    for match in merged_matches(task).to_pylist():
        matched_images[match["query_id"]].add(match["image_id"])
    recalls = []
    for query in np.flatnonzero(np.isin(rows, task.sampled_queries)):
        expected = {ids[position] for position in exact[query] if position >= 0}
        recalls.append(len(expected & matched_images[names[query]]) / len(expected))
    return np.array(recalls)


def check_certificate(
    task: SearchTask, index: FinishedIndex, target: float, seed: int
) -> Certificate:
    run_search(task)
    certificate, sufficient = certify(task, target, seed)
    assert (certificate.nprobe, certificate.nlist, certificate.target, certificate.passes) == (
        task.nprobe,
        9,
        target,
        1,
    )
    if task.reads_all_lists:
        assert (certificate.recall, certificate.low, certificate.high, certificate.sample) == (
            1,
            1,
            1,
            0,
        )
        return certificate
    recalls = count_recall(task, index)
    interval = np.array(sampled_interval(recalls, 25, looks=len(task.looks), seed=seed))
    assert certificate.search_recall == pytest.approx(recalls.mean(), abs=1e-12)
    assert (certificate.search_low, certificate.search_high) == pytest.approx(
        tuple(interval), abs=1e-12
    )
    # sampled queries have recall 1; the other queries of the 25 have the recall of the search
    assert certificate.recall == pytest.approx(
        (len(recalls) + (25 - len(recalls)) * recalls.mean()) / 25, abs=1e-12
    )
    interval = np.minimum(interval + (1 - recalls).sum() / 25, 1)
    assert (certificate.low, certificate.high) == pytest.approx(tuple(interval), abs=1e-12)
    assert (certificate.sample, certificate.queries) == (len(recalls), 25)
    if certificate.low >= target:
        assert sufficient == task.probing
        return certificate
    check_sufficient(task, index, target, seed, sufficient)
    return certificate


def check_sufficient(
    task: SearchTask, index: FinishedIndex, target: float, seed: int, sufficient: Probing
) -> None:
    """Check that a probing meets the target and that the next smaller gap does not."""

    def meets_target(probing: Probing) -> bool:
        repeated = dataclasses.replace(task, nprobe=probing.nprobe, gap=probing.gap)
        run_search(repeated)
        recalls = count_recall(repeated, index)
        low, _ = sampled_interval(recalls, 25, looks=len(task.looks), seed=seed)
        return low + (1 - recalls).sum() / 25 >= target

    assert meets_target(sufficient) or sufficient.reads_all(9)
    required = _required_by_sample(task)
    smaller = [gap for gap in gap_grid(required, [task.top_k]) if gap < sufficient.gap]
    if smaller and sufficient.gap != task.gap:
        assert not meets_target(required.limited(smaller[-1]))


@every_metric
@pytest.mark.parametrize(
    ("dtype", "nprobe", "target"), [("float16", 1, 0.9), ("float32", 2, 0.1), ("float16", 3, 1.0)]
)
def test_certified_recall_equals_counted_recall(tmp_path, metric, dtype, nprobe, target):
    task, index = make_task(tmp_path, metric, dtype=dtype, nprobe=nprobe)
    certificate = check_certificate(task, index, target, seed=5)
    assert 0 < certificate.search_recall < 1  # so that the case is not trivial


@every_metric
def test_certified_recall_of_a_gap_equals_counted_recall(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=4)
    task = dataclasses.replace(task, gap=0.3)
    certificate = check_certificate(task, index, 0.99, seed=5)
    assert (certificate.nprobe, certificate.gap) == (4, 0.3)
    assert 0 < certificate.search_recall < 1


@every_metric
def test_counts_of_lists_and_rows_read_equal_those_of_the_index(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=5)
    task = dataclasses.replace(task, gap=0.4)
    run_search(task)
    sizes = np.concatenate([shard.list_sizes for shard in index.shards])
    numbers = range(len(task.query_chunks))
    read = [
        [number for number in row if number >= 0]
        for block_number in numbers
        for row in read_probed_lists(task, block_number).tolist()
    ]
    counts = [
        add_blocks(
            read_counts(task.output, candidates_path(task.probing, shard, n)) for n in numbers
        )
        for shard in task.shards
    ]
    assert add_shards(counts) == ReadCounts(
        25, sum(map(len, read)), max(map(len, read)), sum(int(sizes[row].sum()) for row in read)
    )
    assert len({len(row) for row in read}) > 1


@pytest.mark.nightly
@slow
@given(
    metrics, dtypes, st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, np.inf]),
    st.sampled_from([1, 3, 10, 200]), st.floats(0, 1), seeds,
)  # fmt: skip
def test_certified_recall_equals_counted_recall_many_times(
    tmp_path_factory, metric, dtype, nprobe, gap, top_k, target, seed
):
    root = tmp_path_factory.mktemp("certificate")
    task, index = make_task(root, metric, dtype=dtype, nprobe=nprobe, top_k=top_k, seed=seed)
    task = dataclasses.replace(task, gap=gap)
    check_certificate(task, index, target, seed)


@every_metric
def test_searching_all_lists_has_recall_one(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=9)
    certificate = check_certificate(task, index, 0.95, seed=0)
    assert (certificate.recall, certificate.low, certificate.high) == (1, 1, 1)


@every_metric
def test_top_k_larger_than_gallery_is_certified(tmp_path, metric):
    task, index = make_task(tmp_path, metric, nprobe=4, top_k=200)
    check_certificate(task, index, 0.95, seed=0)


def test_block_with_only_failed_queries_is_certified(tmp_path):
    task, index = make_task(tmp_path, "cosine", first=30)
    assert len(task.stored_queries(0)) == 0
    check_certificate(task, index, 0.95, seed=0)


def test_block_without_a_sampled_query_is_certified(tmp_path):
    task, index = make_task(tmp_path, "cosine")
    task = dataclasses.replace(task, looks=(task.sampled_queries[:1],), look=0)
    check_certificate(task, index, 0.95, seed=0)


def test_empty_sample_has_recall_one_without_measurement(tmp_path):
    task, _ = make_task(tmp_path, "cosine", nprobe=9)
    task = dataclasses.replace(task, looks=())
    run_search(task)
    assert not list(task.output.entries("work/exact"))
    expected = Certificate(9, 9, 0.95, 1.0, 1.0, 1.0, 0, 1)
    assert certify(task, 0.95, 0) == (expected, Probing(9))


@every_metric
def test_repeated_search_has_the_same_certificate(tmp_path, metric):
    for name in ("one", "other"):
        run_search(make_task(tmp_path / name, metric)[0])
    first_task, second_task = (make_task(tmp_path / name, metric)[0] for name in ("one", "other"))
    assert certify(first_task, 0.9, 3) == certify(second_task, 0.9, 3)
    seed_3, seed_4 = (certify(first_task, 0.9, seed)[0] for seed in (3, 4))
    assert (seed_3.low, seed_3.high) == pytest.approx((seed_4.low, seed_4.high), abs=0.02)


# --- exact candidates -----------------------------------------------------------------------------


def test_exact_candidates_contain_only_sampled_queries(tmp_path):
    task, index = make_task(tmp_path, "l2", nprobe=1)
    run_search(task)
    _, gallery, rows = read_contents(index.store)
    _, vectors, query_rows = read_contents(task.queries)
    for number in range(len(task.query_chunks)):
        parts = list(read_exact_candidates(task, number))
        best, _ = top_candidates(parts, task.top_k)
        merged = best.pairs
        in_block = np.isin(query_rows, task.sampled_queries) & (query_rows // 20 == number)
        assert merged["query"].unique().to_pylist() == query_rows[in_block].tolist()
        _, exact = brute_force(exact_keys(vectors[in_block], gallery, "l2"), rows, task.top_k)
        assert merged["row"].to_pylist() == rows[exact.ravel()].tolist()


def test_first_look_searches_its_own_sample_alone(tmp_path):
    task, _ = make_task(tmp_path, "cosine")
    run_search(dataclasses.replace(task, look=0))
    exact = [entry.path for entry in task.output.entries("work/exact")]
    assert exact
    assert all(path.startswith("work/exact/0/") for path in exact)
    tables = [read_candidates(task.output, path).pairs for path in exact]
    queries = np.unique(np.concatenate([table["query"].to_numpy() for table in tables]))
    np.testing.assert_array_equal(queries, np.sort(task.looks[0]))


@every_metric
def test_exact_search_leaves_out_rows_below_the_matches_of_the_search(tmp_path, metric):
    """The keys of matches that were found are lower limits; a search without them has more rows."""
    task, _ = make_task(tmp_path / "limited", metric, nprobe=8)
    free, _ = make_task(tmp_path / "free", metric, nprobe=8)
    run_search(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shard_search, "read_limits", lambda _, paths, rows: np.full(len(rows), -np.inf)
        )
        run_search(free)
    merged, counts = [], []
    for searched in (task, free):
        parts = [part for number in range(3) for part in read_exact_candidates(searched, number)]
        merged.append(top_candidates(parts, task.top_k)[0].table())
        counts.append(sum(len(part.pairs) for part in parts))
    assert merged[0].equals(merged[1])
    assert len(merged[0]) <= counts[0] < counts[1]


def test_existing_files_are_not_recomputed(tmp_path, monkeypatch):
    task, _ = make_task(tmp_path, "cosine")
    run_search(task)
    expected = {entry.path: task.output.read(entry.path) for entry in task.output.entries()}
    exact_count = sum(len(task.exact_outputs(shard, range(3))) for shard in range(3))
    assert 9 < exact_count <= 18  # for two looks
    # probed lists per block, candidates per shard and block
    assert len(expected) == 3 + 3 * 3 + exact_count
    monkeypatch.setattr(shard_search, "open_shard", None)  # a second search would call it
    run_search(task)
    assert {entry.path for entry in task.output.entries()} == expected.keys()


def test_only_shards_that_hold_a_list_of_a_query_are_opened(tmp_path, monkeypatch):
    """All queries are equal and read one list, so one shard of three is searched."""
    task, index = make_task(tmp_path, "l2", nprobe=1)
    queries = make_store(tmp_path / "equal", np.zeros((7, 3), np.float32), chunk_rows=3)
    task = dataclasses.replace(task, queries=queries, looks=())
    opened = []
    open_shard = shard_search.open_shard

    def record(*arguments):
        opened.append(arguments[2])
        return open_shard(*arguments)

    monkeypatch.setattr(shard_search, "open_shard", record)
    run_search(task)
    (number,) = np.unique(read_probed_lists(task, 0)).tolist()
    first_lists = [shard.first_list for shard in index.shards]
    assert opened == [np.searchsorted(first_lists, number, "right") - 1]
    counts = [
        add_blocks(
            read_counts(task.output, candidates_path(task.probing, shard, n)) for n in range(3)
        )
        for shard in task.shards
    ]
    (size,) = np.concatenate([shard.list_sizes for shard in index.shards])[[number]].tolist()
    assert add_shards(counts) == ReadCounts(7, 7, 1, 7 * size)


def test_missing_file_is_recomputed_with_the_same_matches(tmp_path):
    """The new file may contain fewer rows, since other shards may have raised the bounds."""
    task, _ = make_task(tmp_path, "cosine")
    run_search(task)
    expected, exact = merged_matches(task), task.output.read(exact_path(1, 2, 0))
    paths = [candidates_path(task.probing, shard, 2) for shard in task.shards]
    rows = {path: len(read_candidates(task.output, path).pairs) for path in paths}
    missing = max(rows, key=rows.__getitem__), exact_path(1, 2, 0)
    assert rows[missing[0]] > 0
    for path in missing:
        task.output.delete(path)
    run_search(task)
    assert merged_matches(task).equals(expected)
    assert task.output.read(missing[1]) == exact
    assert len(read_candidates(task.output, missing[0]).pairs) <= rows[missing[0]]


@pytest.mark.parametrize(
    "path",
    [candidates_path(Probing(2), 1, 1), exact_path(0, 0, 2), probed_lists_path(Probing(2), 1)],
)
def test_corrupted_file_is_detected(tmp_path, path):
    """Each byte is in a section that some step reads, or at the end that every step reads."""
    task, _ = make_task(tmp_path, "cosine")
    run_search(task)
    data = task.output.read(path)

    def read_all_sections() -> None:
        if path == probed_lists_path(Probing(2), 1):
            read_probed_lists(task, 1)
            for shard in task.shards:
                read_probed_queries(task.output, path, shard)
        else:
            read_candidates(task.output, path).table()
            read_limits(task.output, [path], np.array([0]))

    read_all_sections()
    for position in [*range(0, len(data), 97), *range(len(data) - 8, len(data))]:
        altered = bytearray(data)
        altered[position] ^= 1
        task.output.put(path, bytes(altered))
        with pytest.raises(Damaged, match="was altered; remove it"):
            read_all_sections()
    task.output.put(path, data[:5])
    with pytest.raises(Damaged, match="was altered; remove it"):
        read_all_sections()


@every_metric
def test_each_shard_reads_its_queries_alone(tmp_path, metric, monkeypatch):
    """The parts of a shard are its queries in order, with their vectors and their lists in it."""
    monkeypatch.setattr(probed_queries, "PIECE_BYTES", 24)  # two vectors
    task, index = make_task(tmp_path, metric, nprobe=3)
    _, vectors, rows = read_contents(task.queries)
    for number in range(3):
        write_probed_lists(task, number)
        path, lists = probed_lists_path(task.probing, number), read_probed_lists(task, number)
        block_rows = task.stored_queries(number)["row"].to_numpy()
        for shard in task.shards:
            first = index.shards[shard].first_list
            is_local = (lists >= first) & (lists < first + index.shards[shard].index.nlist)
            parts = [read_probed_queries(task.output, path, shard, part, 2) for part in range(2)]
            read = np.concatenate([part.table["row"].to_numpy() for part in parts])
            np.testing.assert_array_equal(read, block_rows[is_local.any(1)])
            for part in parts:
                expected = vectors[np.searchsorted(rows, part.table["row"].to_numpy())]
                np.testing.assert_array_equal(read_vectors(part.table), expected)
                for row, own in zip(part.table["row"].to_pylist(), part.lists, strict=True):
                    (position,) = np.flatnonzero(block_rows == row)
                    assert own[own >= 0].tolist() == lists[position][is_local[position]].tolist()


def test_tasks_sharing_a_shard_have_the_same_candidates(tmp_path: Path) -> None:
    alone, _ = make_task(tmp_path / "alone", "ip")
    shared, _ = make_task(tmp_path / "shared", "ip")
    run_search(alone)
    for number in range(len(shared.query_chunks)):
        write_probed_lists(shared, number)
    for share in (2, 0, 1):
        for number in shared.shards:
            search_shard(shared, number, share, 3)
    assert merged_matches(shared) == merged_matches(alone)
    assert certify(shared, 0.5, 0)[0] == certify(alone, 0.5, 0)[0]


@pytest.mark.parametrize("nprobe", [2, 9])
def test_parts_of_blocks_have_the_same_candidates(tmp_path: Path, monkeypatch, nprobe) -> None:
    """With more workers than shards and blocks; a resumed run with fewer keeps the parts."""
    monkeypatch.setattr(shard_search, "_PART_QUERIES", 2)
    whole, _ = make_task(tmp_path / "whole", "ip", nprobe=nprobe)
    cut, _ = make_task(tmp_path / "cut", "ip", nprobe=nprobe)
    run_search(whole)
    claim_parts(cut, 27)
    claim_parts(cut, 1)
    assert (whole.parts, cut.parts, shares_per_shard(cut, 99)) == (1, 3, 9)
    for number in range(len(cut.query_chunks)):
        write_probed_lists(cut, number)
    for share in (3, 0, 1, 2):
        for number in cut.shards:
            search_shard(cut, number, share, 4)
    assert merged_matches(cut) == merged_matches(whole)
    assert certify(cut, 0.5, 0)[0] == certify(whole, 0.5, 0)[0]
    exact = [
        pa.concat_tables([
            top_candidates(read_exact_candidates(task, number), task.top_k)[0].table()
            for number in range(3)
        ])
        for task in (whole, cut)
    ]  # fmt: skip
    assert exact[0].equals(exact[1])


def test_tasks_sharing_a_shard_stay_within_the_memory_limit(tmp_path: Path) -> None:
    task, index = make_task(tmp_path, "ip")
    largest = max(index.manifest.files[shard_path(number)].size for number in task.shards)
    assert (len(task.shards), len(task.query_chunks)) == (3, 3)
    assert [shares_per_shard(task, workers) for workers in (1, 3, 6, 9, 99)] == [1, 1, 2, 3, 3]
    limited = dataclasses.replace(task, memory=4 * largest)
    assert [shares_per_shard(limited, workers) for workers in (6, 99)] == [2, 2]
    assert shares_per_shard(dataclasses.replace(task, memory=1), 99) == 1


# --- a store against itself -----------------------------------------------------------------------


def test_certificate_sample_is_independent_of_the_centroid_sample(tmp_path: Path) -> None:
    """Queries whose rows were initial centroids would have a recall above the average.

    The expected recall is computed by numpy over all queries; over seeds the mean error is zero.
    """
    vectors = np.random.default_rng(0).normal(size=(1200, 16)).astype(np.float32)
    store = make_store(tmp_path / "store", vectors, chunk_rows=1200)
    unit_vectors = (
        vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    )
    nearest = np.argsort(-(unit_vectors @ unit_vectors.T), axis=1)[:, :10]
    errors, covered = [], []
    for seed in range(4):
        index = IndexBuilder(
            tmp_path / f"index{seed}", store, "cosine", nlist=60, seed=seed
        ).finish()
        list_order = np.argsort(-(unit_vectors @ index.centroids.T.astype(np.float64)), axis=1)
        lists = list_order[:, 0]
        sampled = rows_in_hash_order(store, 100, seed, "certificate")
        for nprobe in (1, 4):
            is_probed = lists[nearest][:, :, None] == list_order[:, None, :nprobe]
            expected = is_probed.any(2).mean()
            task = SearchTask(
                index.folder, index.manifest, "float32", "cosine", store,
                open_folder(str(tmp_path / f"matches{seed}{nprobe}")), nprobe, 10, (sampled,),
            )  # fmt: skip
            run_search(task)
            certificate, _ = certify(task, 0.95, 0)
            errors.append(certificate.search_recall - expected)
            covered.append(certificate.search_low <= expected <= certificate.search_high)
    assert sum(covered) >= 7
    # only four independent errors: the two values of a seed are correlated
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(4)
    assert np.std(errors) < 0.05
