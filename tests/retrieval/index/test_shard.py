"""Tests of shards: stock FAISS indexes of the stored vectors with reproducible bytes."""

from __future__ import annotations

import shutil
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
from retrieval.index.kmeans import assignment_metric
from retrieval.index.sample_neighbors import neighbours_path, read_neighbours, serialize_neighbours
from retrieval.index.sampling import draw_sample
from retrieval.index.shard import open_shard, shard_path, shard_record_path, shard_rows_path
from retrieval.index.train import TRAINED, TRAINED_JSON
from retrieval.storage.local import open_folder
from retrieval.store.reader import Store
from retrieval.vectors.matmul import HalfPrecisionProduct
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
from tests.trees import tree

every_metric = pytest.mark.parametrize("metric", METRICS)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "float32"])


def unit_vectors(count: int, d: int = 16, dtype: str = "float32") -> NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(count, d))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


HOLED = np.sort(np.random.default_rng(0).permutation(200)[:150]).tolist()


def holed_store(root: Path, dtype: str = "float32") -> Store:
    """Make a store of 150 vectors; here and there one of its 200 images failed."""
    return make_store(root, unit_vectors(150, dtype=dtype), rows=HOLED, images=200, chunk_rows=32)


def make_index(root: Path, metric: Metric, dtype: str = "float32") -> FinishedIndex:
    """Make an index of three shards, of 60, 60 and 30 rows."""
    store = holed_store(root / "store", dtype)
    return IndexBuilder(root / "index", store, metric, nlist=8, rows_per_shard=60).finish()


def stored(store: Store) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    vectors, rows = draw_sample(store, store.rows, 0, "curve")
    return rows, vectors


def read_by_faiss(index: FinishedIndex, number: int) -> faiss.IndexIVF:
    """Open a shard as any program with FAISS would."""
    return faiss.read_index(index.folder.uri(shard_path(number)))


# --- what is in a shard -------------------------------------------------------------------------


@every_metric
@every_dtype
def test_faiss_opens_a_shard_and_finds_the_stored_vectors_by_row(tmp_path, metric, dtype):
    index = make_index(tmp_path, metric, dtype)
    rows, vectors = stored(index.store)
    for number in range(3):
        opened = read_by_faiss(index, number)
        assert opened.metric_type == (
            faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        )
        opened.set_direct_map_type(faiss.DirectMap.Hashtable)
        own = slice(60 * number, 60 * (number + 1))
        assert opened.ntotal == len(rows[own])
        for row, vector in zip(rows[own], vectors[own], strict=True):
            np.testing.assert_array_equal(opened.reconstruct(int(row)), vector)


@slow
@given(cases(), metrics, st.integers(1, 9))
def test_codes_are_the_stored_vectors_bit_for_bit(tmp_path_factory, case, metric, nlist):
    root = tmp_path_factory.mktemp("codes")
    store = make_store(root / "store", case.rows, chunk_rows=16)
    (shard,) = IndexBuilder(root / "index", store, metric, nlist=nlist).finish().shards
    seen = {}
    for number in range(shard.index.nlist):
        rows, codes = shard.list_vectors(number)
        assert codes.dtype == case.rows.dtype
        seen |= {row: code.tobytes() for row, code in zip(rows.tolist(), codes, strict=True)}
    assert seen == {row: vector.tobytes() for row, vector in enumerate(case.rows)}
    shutil.rmtree(root)


def test_every_number_that_float16_has_is_kept(tmp_path):
    """With subnormal ones and both zeros: FAISS converts from float32 and back."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    vectors = numbers[np.isfinite(numbers)].reshape(-1, 64)
    store = make_store(tmp_path / "store", vectors, chunk_rows=512)
    (shard,) = IndexBuilder(tmp_path / "index", store, "ip", nlist=1).finish().shards
    assert shard.list_vectors(0)[1].tobytes() == vectors.tobytes()


@every_metric
@every_dtype
def test_every_vector_lies_in_its_nearest_list(tmp_path, metric, dtype):
    index = make_index(tmp_path, metric, dtype)
    rows, vectors = stored(index.store)
    nearest = exact_keys(vectors, index.centroids, assignment_metric(metric)).argmax(1)
    expected = dict(zip(rows.tolist(), nearest.tolist(), strict=True))
    found = {
        row: number
        for shard in index.shards
        for number in range(8)
        for row in shard.list_vectors(number)[0].tolist()
    }
    assert found == expected
    assert len(set(expected.values())) > 1


@every_metric
def test_all_shards_have_the_quantizer_that_was_trained(tmp_path, metric):
    index = make_index(tmp_path, metric)
    trained = faiss.read_index(index.folder.uri(TRAINED))
    assert trained.ntotal == 0
    for number in range(3):
        opened = read_by_faiss(index, number)
        for quantizer in (opened.quantizer, trained.quantizer):
            centroids = quantizer.reconstruct_n(0, 8)
            np.testing.assert_array_equal(centroids, index.centroids)


@every_metric
def test_the_table_of_rows_says_what_the_store_says(tmp_path, metric):
    vectors = unit_vectors(30, 3) * 7
    labels = ["cat", None, "dog"] * 10
    store = make_store(tmp_path / "store", vectors, labels=labels, chunk_rows=8)
    building = IndexBuilder(tmp_path / "index", store, metric, rows_per_shard=20)
    counts = [building.shard(number) for number in (0, 1)]
    assert [c.rows for c in counts] == [20, 10]
    assert [c.labels for c in counts] == [{"cat": 7, "dog": 6}, {"dog": 4, "cat": 3}]
    table = pa.concat_tables([shard.metadata for shard in building.finish().shards])
    assert table.schema.equals(SHARD_ROWS.schema)
    assert table["row"].to_pylist() == list(range(30))
    assert table["image_id"].to_pylist() == image_ids(30)
    assert table["label"].to_pylist() == labels
    np.testing.assert_allclose(table["squared_norm"].to_numpy(), 49, rtol=1e-6)


@every_metric
def test_chunks_whose_images_all_failed_are_passed_over(tmp_path, metric):
    vectors = unit_vectors(20)
    store = make_store(tmp_path / "store", vectors, rows=range(20, 40), images=60, chunk_rows=10)
    index = IndexBuilder(tmp_path / "index", store, metric, rows_per_shard=15).finish()
    assert [len(shard.metadata) for shard in index.shards] == [15, 5]
    assert np.concatenate([shard.rows for shard in index.shards]).tolist() == list(range(20, 40))


@every_metric
def test_stock_faiss_finds_the_exact_neighbours(tmp_path, metric):
    """Away from ties; for cosine the vectors have unit length, as ours do unless asked for."""
    index = make_index(tmp_path, metric)
    rows, vectors = stored(index.store)
    queries = unit_vectors(170)[150:]
    for number in range(3):
        own = np.arange(len(rows))[60 * number : 60 * (number + 1)]
        keys = exact_keys(queries, vectors[own], metric)
        expected, places = brute_force(keys, rows[own], 5)
        assert (np.diff(np.sort(keys)[:, -6:]) > 1e-6).all()  # no ties
        opened = read_by_faiss(index, number)
        opened.nprobe = 8
        scores, found = opened.search(queries, 5)
        np.testing.assert_array_equal(found, rows[own][places])
        np.testing.assert_allclose(scores, -expected if metric == "l2" else expected, atol=1e-5)


# --- the same bytes again -----------------------------------------------------------------------


@every_metric
def test_an_index_has_the_same_bytes_again(tmp_path, metric):
    index = make_index(tmp_path, metric)
    IndexBuilder(tmp_path / "again", index.store, metric, nlist=8, rows_per_shard=60).finish()
    assert tree(tmp_path / "again") == tree(tmp_path / "index")


def test_an_index_has_the_same_bytes_whatever_multiplies(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(400, 24)).astype(np.float16)
    vectors[200:300] = vectors[:100]
    store = make_store(tmp_path / "store", vectors, chunk_rows=64)
    for name in ("fp32", "bf16"):
        IndexBuilder(tmp_path / name, store, "l2", nlist=9, rows_per_shard=150).finish()
        for module in ("kmeans", "build_shard"):
            monkeypatch.setattr(
                f"retrieval.index.{module}.product_for", lambda *_: HalfPrecisionProduct("cpu")
            )
    assert tree(tmp_path / "fp32") == tree(tmp_path / "bf16")


@pytest.mark.parametrize(
    "lost",
    [
        [shard_record_path(1)],
        [shard_rows_path(1), shard_record_path(1)],
        [shard_path(1), shard_rows_path(1), shard_record_path(1)],
        [shard_path(0), shard_rows_path(0), shard_record_path(0)],
        [shard_path(1), shard_rows_path(1), shard_record_path(1), "neighbours"],
        ["neighbours"],
        [TRAINED_JSON],
        [TRAINED, TRAINED_JSON],
    ],
    ids=" ".join,
)
def test_interrupted_build_continues_to_the_same_bytes(tmp_path, lost):
    store = holed_store(tmp_path / "store")
    options = {"nlist": 8, "rows_per_shard": 60}
    IndexBuilder(tmp_path / "whole", store, "cosine", **options).finish()
    before = IndexBuilder(tmp_path / "index", store, "cosine", **options)
    for number in (0, 1):
        before.shard(number)
    for path in lost:
        known = {"neighbours": neighbours_path(before.sample, 1)}
        before.folder.delete(known.get(path, path))
    IndexBuilder(tmp_path / "index", store, "cosine", **options).finish()
    assert tree(tmp_path / "index") == tree(tmp_path / "whole")


def test_a_shard_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    store = holed_store(tmp_path / "store")
    building = IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60)
    first = building.shard(1)
    monkeypatch.setattr("retrieval.index.build_shard.nearest", None)  # it would be called
    assert building.shard(1) == first


# --- altered files ------------------------------------------------------------------------------


def alter(root: Path, path: str) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray((root / path).read_bytes())
    data[len(data) // 2] ^= 1
    (root / path).write_bytes(data)


@pytest.mark.parametrize("path", [shard_path(1), shard_rows_path(1)])
def test_an_altered_shard_of_a_finished_index_is_not_opened(tmp_path, path):
    index = make_index(tmp_path, "cosine")
    alter(tmp_path / "index", path)
    with pytest.raises(Damaged, match="was altered"):
        open_shard(index.folder, index.manifest, 1, "cosine", "float32")


@pytest.mark.parametrize(
    "path", [shard_path(1), shard_rows_path(1), shard_record_path(1), TRAINED, TRAINED_JSON]
)
def test_an_altered_file_of_a_killed_run_is_found_when_it_goes_on(tmp_path, path):
    store = holed_store(tmp_path / "store")
    IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60).shard(1)
    alter(tmp_path / "index", path)
    with pytest.raises(Damaged, match="was altered"):
        IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60).finish()


@pytest.mark.parametrize("path", [shard_path(1), shard_rows_path(1)])
def test_a_file_that_was_altered_before_the_shard_was_whole_is_found(tmp_path, path):
    store = holed_store(tmp_path / "store")
    building = IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60)
    building.shard(1)
    building.folder.delete(shard_record_path(1))
    alter(tmp_path / "index", path)
    with pytest.raises(Damaged, match=rf"{path} was altered"):
        building.shard(1)


def test_record_of_another_shard_is_detected(tmp_path):
    """Sealed and sound by itself, but not this shard's."""
    store = holed_store(tmp_path / "store")
    building = IndexBuilder(tmp_path / "index", store, "cosine", rows_per_shard=60)
    building.shard(0)
    building.shard(1)
    building.folder.put(shard_record_path(1), building.folder.read(shard_record_path(0)))
    with pytest.raises(Damaged, match="was altered"):
        building.shard(1)


def test_a_missing_faiss_file_of_a_killed_run_is_found(tmp_path):
    building = IndexBuilder(tmp_path / "index", holed_store(tmp_path / "store"), "cosine")
    building.shard(0)
    building.folder.delete(shard_path(0))
    with pytest.raises(Damaged, match=r"00000\.faiss is missing; make the index again"):
        building.shard(0)


def test_a_missing_shard_of_a_finished_index_is_found(tmp_path):
    index = make_index(tmp_path, "cosine")
    index.folder.delete(shard_path(2))
    with pytest.raises(Damaged, match=r"00002\.faiss is missing"):
        open_shard(index.folder, index.manifest, 2, "cosine", "float32")


# --- samples and neighbours ---------------------------------------------------------------------


@every_dtype
def test_a_sample_is_drawn_over_all_parts_and_knows_its_rows(tmp_path, dtype):
    store = holed_store(tmp_path, dtype)
    all_rows, all_vectors = stored(store)
    assert all_rows.tolist() == HOLED
    vectors, rows = draw_sample(store, 60, 7, "curve")
    assert vectors.dtype == dtype
    assert (np.diff(rows) > 0).all()
    assert set(rows // 32) == set(range(7))  # from each part
    assert 40 < len(rows) < 80
    np.testing.assert_array_equal(vectors, all_vectors[np.searchsorted(all_rows, rows)])
    np.testing.assert_array_equal(rows, draw_sample(store, 60, 7, "curve")[1])
    assert not np.array_equal(rows, draw_sample(store, 60, 8, "curve")[1])


@every_metric
def test_neighbours_beside_a_shard_are_its_exact_ones(tmp_path, metric):
    store = holed_store(tmp_path / "store")
    building = IndexBuilder(tmp_path / "index", store, metric, nlist=8, rows_per_shard=60)
    building.shard(1)
    found = read_neighbours(building.folder, neighbours_path(building.sample, 1))
    rows, vectors = stored(store)
    own = slice(60, 120)
    keys, places = brute_force(
        exact_keys(building.sample.vectors, vectors[own], metric), rows[own], NEIGHBOUR_COUNT
    )
    assert (places < 0).any()  # fewer than asked for
    np.testing.assert_array_equal(found.keys, keys)
    np.testing.assert_array_equal(found.rows, np.where(places < 0, -1, rows[own][places]))
    index = building.finish()
    lists = exact_keys(vectors[own], index.centroids, assignment_metric(metric)).argmax(1)
    np.testing.assert_array_equal(found.lists, np.where(places < 0, -1, lists[places]))


def test_a_shard_of_a_bucket_lies_in_scratch_while_it_is_read(tmp_path, monkeypatch, s3):
    index = make_index(tmp_path, "cosine")
    bucket, scratch, seen = open_folder(new_prefix(), options(s3)), tmp_path / "scratch", []
    scratch.mkdir()
    for path, data in tree(tmp_path / "index").items():
        bucket.put(path, data)
    read = shard_module.read_faiss_index

    def look(name):
        seen.extend(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        return read(name)

    monkeypatch.setattr(shard_module, "read_faiss_index", look)
    shard = open_shard(bucket, index.manifest, 1, "cosine", "float32", str(scratch))
    assert seen == [index.manifest.files[shard_path(1)].size]
    assert not list(scratch.iterdir())
    assert shard.index.ntotal == 60


def test_neighbours_come_back_as_they_were_and_are_found_altered(tmp_path):
    shape = (3, 2)
    keys = np.array([[0.5, -np.inf]] * 3)
    found = Neighbours(keys, np.arange(6).reshape(shape), np.arange(6).reshape(shape) % 4)
    folder = open_folder(str(tmp_path))
    folder.put_new("found", serialize_neighbours(found))
    read = read_neighbours(folder, "found")
    for name in ("keys", "rows", "lists"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
    alter(tmp_path, "found")
    with pytest.raises(Damaged, match="was altered"):
        read_neighbours(folder, "found")
