"""Tests of shards: stock FAISS indexes of the stored vectors with reproducible bytes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Neighbours
from retrieval.core.schemas import SHARD_ROWS, Metric
from retrieval.index import shard as shard_module
from retrieval.index.generations import generation_shards_path
from retrieval.index.kmeans import assignment_metric
from retrieval.index.sample_neighbors import neighbours_path, read_neighbours, serialize_neighbours
from retrieval.index.sampling import draw_sample
from retrieval.index.shard import open_shard, shard_path, shard_record_path, shard_rows_path
from retrieval.index.train import TRAINED, TRAINED_JSON
from retrieval.storage.local import open_folder
from retrieval.store.reader import Store
from retrieval.vectors.matmul import HalfPrecisionProduct
from tests.file_tree import read_tree
from tests.retrieval.sample_vectors import (
    METRICS,
    NEIGHBOUR_COUNT,
    FinishedIndex,
    IndexBuilder,
    brute_force,
    cases,
    exact_keys,
    image_ids,
    make_store,
    metrics,
    slow,
)
from tests.retrieval.storage.s3 import new_prefix, options

every_metric = pytest.mark.parametrize("metric", METRICS)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "float32"])


def unit_vectors(count: int, d: int = 16, dtype: str = "float32") -> NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(count, d))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


STORED_ROWS = np.sort(np.random.default_rng(0).permutation(200)[:150]).tolist()


def store_with_failures(root: Path, dtype: str = "float32") -> Store:
    """Return a store of 150 vectors; the other 50 of its 200 images failed."""
    return make_store(
        root, unit_vectors(150, dtype=dtype), rows=STORED_ROWS, images=200, chunk_rows=32
    )


def make_index(root: Path, metric: Metric, dtype: str = "float32") -> FinishedIndex:
    """Return an index of three shards, of about 50 rows each."""
    store = store_with_failures(root / "store", dtype)
    return IndexBuilder(root / "index", store, metric, nlist=8, rows_per_shard=60).finish()


def stored_rows_and_vectors(store: Store) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    vectors, rows = draw_sample(store, store.rows, 0, "curve")
    return rows, vectors


def read_by_faiss(index: FinishedIndex, number: int) -> faiss.IndexIVF:
    """Open a shard by `faiss.read_index`."""
    return faiss.read_index(index.folder.uri(shard_path(number)))


# --- contents of a shard --------------------------------------------------------------------------


@every_metric
@every_dtype
def test_faiss_reconstructs_the_stored_vectors_by_row(tmp_path, metric, dtype):
    index = make_index(tmp_path, metric, dtype)
    rows, vectors = stored_rows_and_vectors(index.store)
    for number in range(3):
        opened = read_by_faiss(index, number)
        assert opened.metric_type == (
            faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        )
        opened.set_direct_map_type(faiss.DirectMap.Hashtable)
        shard_rows = index.shards[number].rows
        assert opened.ntotal == len(shard_rows) > 0
        for row, vector in zip(shard_rows, vectors[np.isin(rows, shard_rows)], strict=True):
            np.testing.assert_array_equal(opened.reconstruct(int(row)), vector)


@slow
@given(cases(), metrics, st.integers(1, 9))
def test_codes_are_bit_identical_to_stored_vectors(tmp_path_factory, case, metric, nlist):
    root = tmp_path_factory.mktemp("codes")
    store = make_store(root / "store", case.rows, chunk_rows=16)
    (shard,) = IndexBuilder(root / "index", store, metric, nlist=nlist).finish().shards
    result = {}
    for number in range(shard.index.nlist):
        rows, codes = shard.list_vectors(number)
        assert codes.dtype == case.rows.dtype
        result |= {row: code.tobytes() for row, code in zip(rows.tolist(), codes, strict=True)}
    assert result == {row: vector.tobytes() for row, vector in enumerate(case.rows)}
    shutil.rmtree(root)


def test_every_finite_float16_value_is_preserved(tmp_path):
    """Subnormal numbers and negative zero survive FAISS' conversion to float32 and back."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    vectors = numbers[np.isfinite(numbers)].reshape(-1, 64)
    store = make_store(tmp_path / "store", vectors, chunk_rows=512)
    (shard,) = IndexBuilder(tmp_path / "index", store, "ip", nlist=1).finish().shards
    assert shard.list_vectors(0)[1].tobytes() == vectors.tobytes()


@every_metric
@every_dtype
def test_every_vector_is_in_its_nearest_list(tmp_path, metric, dtype):
    index = make_index(tmp_path, metric, dtype)
    rows, vectors = stored_rows_and_vectors(index.store)
    nearest = exact_keys(vectors, index.centroids, assignment_metric(metric)).argmax(1)
    expected = dict(zip(rows.tolist(), nearest.tolist(), strict=True))
    result = {
        row: shard.first_list + number
        for shard in index.shards
        for number in range(shard.index.nlist)
        for row in shard.list_vectors(number)[0].tolist()
    }
    assert result == expected
    assert len(set(expected.values())) > 1


@every_metric
def test_each_shard_contains_the_centroids_of_its_lists(tmp_path, metric):
    index = make_index(tmp_path, metric)
    trained = faiss.read_index(index.folder.uri(TRAINED))
    assert trained.ntotal == 0
    np.testing.assert_array_equal(trained.quantizer.reconstruct_n(0, 8), index.centroids)
    opened = [read_by_faiss(index, number) for number in range(3)]
    assert [shard.first_list for shard in index.shards] == [
        sum(shard.nlist for shard in opened[:number]) for number in range(3)
    ]
    centroids = [shard.quantizer.reconstruct_n(0, shard.nlist) for shard in opened]
    np.testing.assert_array_equal(np.concatenate(centroids), index.centroids)


@every_metric
@every_dtype
def test_rows_of_a_list_ascend(tmp_path, metric, dtype):
    for shard in make_index(tmp_path, metric, dtype).shards:
        for number in range(shard.index.nlist):
            assert (np.diff(shard.list_ids(number)) > 0).all()


@every_metric
def test_rows_table_equals_the_store(tmp_path, metric):
    vectors = unit_vectors(30, 3) * 7
    labels = ["cat", None, "dog"] * 10
    store = make_store(tmp_path / "store", vectors, labels=labels, chunk_rows=8)
    builder = IndexBuilder(tmp_path / "index", store, metric, rows_per_shard=20)
    shards = [builder.shard(number) for number in (0, 1)]
    assert sum(shard.rows for shard in shards) == 30
    assert Counter(shards[0].labels) + Counter(shards[1].labels) == {"cat": 10, "dog": 10}
    tables = [shard.metadata for shard in builder.finish().shards]
    for table, shard in zip(tables, shards, strict=True):
        assert table["row"].to_pylist() == sorted(table["row"].to_pylist())
        counts = Counter(table["label"].drop_null().to_pylist())
        assert (len(table), dict(counts)) == (shard.rows, shard.labels)
    table = pa.concat_tables(tables).sort_by("row")
    assert table.schema.equals(SHARD_ROWS.schema)
    assert table["row"].to_pylist() == list(range(30))
    assert table["image_id"].to_pylist() == image_ids(30)
    assert table["label"].to_pylist() == labels
    np.testing.assert_allclose(table["squared_norm"].to_numpy(), 49, rtol=1e-6)


@every_metric
def test_chunks_without_vectors_are_skipped(tmp_path, metric):
    vectors = unit_vectors(20)
    store = make_store(tmp_path / "store", vectors, rows=range(20, 40), images=60, chunk_rows=10)
    index = IndexBuilder(tmp_path / "index", store, metric, rows_per_shard=15).finish()
    assert len(index.shards) == 2
    rows = np.concatenate([shard.rows for shard in index.shards])
    assert np.sort(rows).tolist() == list(range(20, 40))


@every_metric
def test_faiss_search_of_all_lists_returns_exact_neighbours(tmp_path, metric):
    """There are no ties. Vectors have unit length, so that cosine equals FAISS' dot product."""
    index = make_index(tmp_path, metric)
    rows, vectors = stored_rows_and_vectors(index.store)
    queries = unit_vectors(170)[150:]
    for number in range(3):
        shard_positions = np.flatnonzero(np.isin(rows, index.shards[number].rows))
        keys = exact_keys(queries, vectors[shard_positions], metric)
        expected, positions = brute_force(keys, rows[shard_positions], 5)
        assert (np.diff(np.sort(keys)[:, -6:]) > 1e-6).all()  # no ties
        opened = read_by_faiss(index, number)
        opened.nprobe = 8
        scores, result = opened.search(queries, 5)
        np.testing.assert_array_equal(result, rows[shard_positions][positions])
        np.testing.assert_allclose(scores, -expected if metric == "l2" else expected, atol=1e-5)


# --- reproducible bytes ---------------------------------------------------------------------------


@every_metric
def test_second_build_is_byte_identical(tmp_path, metric):
    index = make_index(tmp_path, metric)
    IndexBuilder(tmp_path / "again", index.store, metric, nlist=8, rows_per_shard=60).finish()
    assert read_tree(tmp_path / "again") == read_tree(tmp_path / "index")


def test_build_with_bf16_products_is_byte_identical(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(400, 24)).astype(np.float16)
    vectors[200:300] = vectors[:100]
    store = make_store(tmp_path / "store", vectors, chunk_rows=64)
    for name in ("fp32", "bf16"):
        IndexBuilder(tmp_path / name, store, "l2", nlist=9, rows_per_shard=150).finish()
        for module in ("kmeans", "runs"):
            monkeypatch.setattr(
                f"retrieval.index.{module}.choose_product", lambda *_: HalfPrecisionProduct("cpu")
            )
    assert read_tree(tmp_path / "fp32") == read_tree(tmp_path / "bf16")


@pytest.mark.parametrize(
    "missing",
    [
        [shard_record_path(1)],
        [shard_rows_path(1), shard_record_path(1)],
        [shard_path(1), shard_rows_path(1), shard_record_path(1)],
        [shard_path(0), shard_rows_path(0), shard_record_path(0)],
        [shard_path(1), shard_rows_path(1), shard_record_path(1), "neighbours"],
        ["neighbours"],
        ["runs"],
        ["a run"],
        ["lists of shards"],
        ["lists of shards", "runs"],
        [TRAINED_JSON],
        [TRAINED, TRAINED_JSON],
    ],
    ids=" ".join,
)
def test_resumed_build_is_byte_identical(tmp_path, missing):
    store = store_with_failures(tmp_path / "store")
    options = {"nlist": 8, "rows_per_shard": 60, "memory": 8 * 40}  # runs of 40 rows
    IndexBuilder(tmp_path / "whole", store, "cosine", **options).finish()
    interrupted = IndexBuilder(tmp_path / "index", store, "cosine", **options)
    for number in (0, 1):
        interrupted.shard(number)
    runs = [entry.path for entry in interrupted.folder.entries("work/runs")]
    special_paths = {
        "neighbours": [neighbours_path(interrupted.sample, 1)],
        "runs": runs,
        "a run": runs[:1],
        "lists of shards": [generation_shards_path(0)],
    }
    for name in missing:
        for path in special_paths.get(name, [name]):
            interrupted.folder.delete(path)
    IndexBuilder(tmp_path / "index", store, "cosine", **options).finish()
    assert read_tree(tmp_path / "index") == read_tree(tmp_path / "whole")


def test_existing_shard_is_not_rebuilt(tmp_path, monkeypatch):
    store = store_with_failures(tmp_path / "store")
    builder = IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60)
    expected = builder.shard(1)
    monkeypatch.setattr("retrieval.index.build_shard.read_run", None)  # a rebuild would call it
    assert builder.shard(1) == expected


# --- corrupted files ------------------------------------------------------------------------------


def flip_bit(root: Path, path: str) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray((root / path).read_bytes())
    data[len(data) // 2] ^= 1
    (root / path).write_bytes(data)


@pytest.mark.parametrize("path", [shard_path(1), shard_rows_path(1)])
def test_corrupted_shard_of_a_finished_index_is_not_opened(tmp_path, path):
    index = make_index(tmp_path, "cosine")
    flip_bit(tmp_path / "index", path)
    with pytest.raises(Damaged, match="was altered"):
        open_shard(index.folder, index.manifest, 1, "cosine", "float32")


@pytest.mark.parametrize(
    "path", [shard_path(1), shard_rows_path(1), shard_record_path(1), TRAINED, TRAINED_JSON]
)
def test_corrupted_file_of_a_killed_run_is_detected_on_resume(tmp_path, path):
    store = store_with_failures(tmp_path / "store")
    IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60).shard(1)
    flip_bit(tmp_path / "index", path)
    with pytest.raises(Damaged, match="was altered"):
        IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60).finish()


@pytest.mark.parametrize("path", [shard_path(1), shard_rows_path(1)])
def test_corrupted_file_of_an_incomplete_shard_is_detected(tmp_path, path):
    store = store_with_failures(tmp_path / "store")
    builder = IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60)
    builder.shard(1)
    builder.folder.delete(shard_record_path(1))
    flip_bit(tmp_path / "index", path)
    with pytest.raises(Damaged, match=rf"{path} was altered"):
        builder.shard(1)


def test_record_of_another_shard_is_detected(tmp_path):
    """Its checksum is valid, but it belongs to another shard."""
    store = store_with_failures(tmp_path / "store")
    builder = IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60)
    builder.shard(0)
    builder.shard(1)
    builder.folder.put(shard_record_path(1), builder.folder.read(shard_record_path(0)))
    with pytest.raises(Damaged, match="was altered"):
        builder.shard(1)


def test_missing_faiss_file_of_a_killed_run_is_detected(tmp_path):
    builder = IndexBuilder(tmp_path / "index", store_with_failures(tmp_path / "store"), "cosine")
    builder.shard(0)
    builder.folder.delete(shard_path(0))
    with pytest.raises(Damaged, match=r"00000\.faiss is missing; make the index again"):
        builder.shard(0)


def test_missing_shard_of_a_finished_index_is_detected(tmp_path):
    index = make_index(tmp_path, "cosine")
    index.folder.delete(shard_path(2))
    with pytest.raises(Damaged, match=r"00002\.faiss is missing"):
        open_shard(index.folder, index.manifest, 2, "cosine", "float32")


# --- samples and neighbours -----------------------------------------------------------------------


@every_dtype
def test_sample_covers_all_parts_and_returns_row_numbers(tmp_path, dtype):
    store = store_with_failures(tmp_path, dtype)
    all_rows, all_vectors = stored_rows_and_vectors(store)
    assert all_rows.tolist() == STORED_ROWS
    vectors, rows = draw_sample(store, 60, 7, "curve")
    assert vectors.dtype == dtype
    assert (np.diff(rows) > 0).all()
    assert set(rows // 32) == set(range(7))  # rows of every part
    assert 40 < len(rows) < 80
    np.testing.assert_array_equal(vectors, all_vectors[np.searchsorted(all_rows, rows)])
    np.testing.assert_array_equal(rows, draw_sample(store, 60, 7, "curve")[1])
    assert not np.array_equal(rows, draw_sample(store, 60, 8, "curve")[1])


@every_metric
def test_neighbours_of_a_shard_are_exact(tmp_path, metric):
    store = store_with_failures(tmp_path / "store")
    builder = IndexBuilder(tmp_path / "index", store, metric, nlist=8, rows_per_shard=60)
    builder.shard(1)
    result = read_neighbours(builder.folder, neighbours_path(builder.sample, 1))
    rows, vectors = stored_rows_and_vectors(store)
    opened = builder.finish().shards[1]
    shard_slice = np.isin(rows, opened.rows)
    keys, positions = brute_force(
        exact_keys(builder.sample.vectors, vectors[shard_slice], metric),
        rows[shard_slice],
        NEIGHBOUR_COUNT,
    )
    assert (positions < 0).any()  # fewer than requested
    np.testing.assert_array_equal(result.keys, keys)
    np.testing.assert_array_equal(
        result.rows, np.where(positions < 0, -1, rows[shard_slice][positions])
    )
    index = builder.finish()
    lists = exact_keys(vectors[shard_slice], index.centroids, assignment_metric(metric)).argmax(1)
    np.testing.assert_array_equal(result.lists, np.where(positions < 0, -1, lists[positions]))


def test_shard_of_a_bucket_is_read_through_a_temporary_file(tmp_path, monkeypatch, s3):
    index = make_index(tmp_path, "cosine")
    bucket, temporary, sizes = open_folder(new_prefix(), options(s3)), tmp_path / "scratch", []
    temporary.mkdir()
    for path, data in read_tree(tmp_path / "index").items():
        bucket.put(path, data)
    read = shard_module.read_faiss_index

    def record_sizes(path):
        sizes.extend(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        return read(path)

    monkeypatch.setattr(shard_module, "read_faiss_index", record_sizes)
    shard = open_shard(bucket, index.manifest, 1, "cosine", "float32", str(temporary))
    assert sizes == [index.manifest.files[shard_path(1)].size]
    assert not list(temporary.iterdir())
    assert shard.index.ntotal == len(shard.rows) > 0


def test_neighbours_round_trip_and_corruption_is_detected(tmp_path):
    shape = (3, 2)
    keys = np.array([[0.5, -np.inf]] * 3)
    expected = Neighbours(keys, np.arange(6).reshape(shape), np.arange(6).reshape(shape) % 4)
    folder = open_folder(str(tmp_path))
    folder.put_new("neighbours", serialize_neighbours(expected))
    result = read_neighbours(folder, "neighbours")
    for name in ("keys", "rows", "lists"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    flip_bit(tmp_path, "neighbours")
    with pytest.raises(Damaged, match="was altered"):
        read_neighbours(folder, "neighbours")
