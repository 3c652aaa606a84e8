"""Tests of reading stores: row ranges, altered files, and parts."""

from __future__ import annotations

import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import Damaged, InputError
from retrieval.core.records import Chunk
from retrieval.core.schemas import FAILURES, part_table
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import open_folder
from retrieval.store.layout import failures_path, part_path, segment_json_path
from retrieval.store.part_writer import put_part
from retrieval.store.reader import embedding_column, open_store, read_vectors
from tests.retrieval.sample_vectors import dtypes, image_ids, make_store, quick, seeds, slow

FIRST, SECOND = Chunk(0, 0, 0, 4), Chunk(0, 1, 4, 8)


def random_vectors(count: int, d: int = 3, dtype: str = "float16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, d)).astype(dtype)


def row_numbers(tables) -> list[int]:
    return [row for table in tables for row in table["row"].to_pylist()]


@st.composite
def stores_with_failures(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw the number of images and the rows that have a vector; all of a chunk may have failed."""
    images = draw(st.integers(1, 20))
    failed = draw(st.sets(st.integers(0, images - 1), max_size=images - 1))
    first = draw(st.integers(0, images))
    failed |= set(range(first, min(first + draw(st.integers(0, 20)), images)))
    rows_present = sorted(set(range(images)) - failed) or [images - 1]
    return images, rows_present


ranges = st.lists(st.tuples(st.integers(0, 25), st.none() | st.integers(0, 25)), max_size=20)


@slow
@given(
    stores_with_failures(), st.sampled_from([1, 3, 7, 45]), ranges, dtypes, st.integers(1, 5), seeds
)
def test_blocks_return_rows_of_range_for_any_chunks_and_failures(
    image_rows, chunk_rows, requested, dtype, d, seed
):
    images, rows_present = image_rows
    vectors = random_vectors(len(rows_present), d, dtype, seed)
    with tempfile.TemporaryDirectory() as root:
        store = make_store(root, vectors, rows=rows_present, images=images, chunk_rows=chunk_rows)
        for first, last in [(0, None), *requested]:
            end = images if last is None else last
            tables = list(store.blocks(first, last))
            expected = [row for row in rows_present if first <= row < end]
            assert row_numbers(tables) == expected
            if expected:
                table = pa.concat_tables(tables)
                expected_vectors = vectors[[rows_present.index(row) for row in expected]]
                np.testing.assert_array_equal(read_vectors(table), expected_vectors)
                assert read_vectors(table).dtype == dtype
                ids = image_ids(images)
                assert table["image_id"].to_pylist() == [ids[row] for row in expected]
        assert row_numbers(store.failures()) == sorted(set(range(images)) - set(rows_present))


def test_blocks_are_parts_and_read_only_needed_files(tmp_path):
    store = make_store(tmp_path, random_vectors(10), chunk_rows=4)
    assert [len(table) for table in store.blocks()] == [4, 4, 2]
    store.folder.delete(part_path(FIRST))
    assert row_numbers(store.blocks(4, 9)) == [4, 5, 6, 7, 8]


def test_store_properties(tmp_path):
    store = make_store(tmp_path, random_vectors(5, 7, "float32"), images=8, chunk_rows=4)
    assert (store.rows, store.dimension, store.dtype) == (5, 7, "float32")
    assert (store.span, len(store.chunks)) == (8, 2)


@pytest.mark.parametrize("path", [part_path(SECOND), failures_path(SECOND), segment_json_path(0)])
def test_altered_file_is_detected_when_read(tmp_path, path):
    store = make_store(tmp_path, random_vectors(6), images=8, chunk_rows=4)
    data = bytearray(store.folder.read(path))
    data[len(data) // 2] ^= 1
    store.folder.put(path, bytes(data))
    opened = open_store(store.folder)  # sizes are unchanged
    with pytest.raises(Damaged, match="was altered"):
        [*opened.blocks(), *opened.failures()]


def test_unfinished_store_is_refused(tmp_path):
    store = make_store(tmp_path, random_vectors(3))
    store.folder.delete("manifest.json")
    with pytest.raises(InputError, match="is not finished"):
        open_store(store.folder)


# --- parts ----------------------------------------------------------------------------------------


def part_bytes(vectors: np.ndarray) -> bytes:
    schema = part_table(vectors.shape[1], str(vectors.dtype)).schema
    null_columns = [
        pa.nulls(len(vectors), field.type) for field in schema if field.name != "embedding"
    ]
    return checksummed_parquet(pa.table([*null_columns, embedding_column(vectors)], schema=schema))


def test_put_part_keeps_existing_part(tmp_path):
    folder, chunk = open_folder(str(tmp_path)), Chunk(0, 0, 0, 3)
    first, second = part_bytes(random_vectors(3)), part_bytes(random_vectors(3, seed=1))
    records = put_part(folder, chunk, first, None)
    assert put_part(folder, chunk, second, None) == records
    assert folder.read(part_path(FIRST)) == first
    assert [(file_record.path, file_record.rows, file_record.size) for file_record in records] == [
        (part_path(FIRST), 3, len(first))
    ]


def test_part_is_written_after_failures(tmp_path, monkeypatch):
    """An existing part then means that the chunk is complete."""
    folder = open_folder(str(tmp_path))
    written = []
    original = type(folder).put_new
    monkeypatch.setattr(
        type(folder),
        "put_new",
        lambda self, *args: (written.append(args[0]), original(self, *args))[1],
    )
    ledger = checksummed_parquet(FAILURES.schema.empty_table())
    chunk = Chunk(0, 5, 0, 3)
    put_part(folder, chunk, part_bytes(random_vectors(3)), ledger)
    assert written == [failures_path(chunk), part_path(chunk)]


@quick
@given(st.integers(0, 9), st.integers(1, 9), dtypes, seeds, st.integers(0, 9), st.integers(0, 9))
def test_vectors_round_trip_through_column_bit_for_bit(count, d, dtype, seed, first, length):
    bits = np.random.default_rng(seed).integers(0, 256, count * d * np.dtype(dtype).itemsize)
    vectors = bits.astype(np.uint8).view(dtype).reshape(count, d)  # any bit pattern, NaN included
    table = pa.table({"embedding": embedding_column(vectors)})
    assert read_vectors(table).tobytes() == vectors.tobytes()
    sliced = read_vectors(table.slice(first, length))
    assert sliced.shape == (max(0, min(length, count - first)), d)
    assert sliced.tobytes() == vectors[first : first + length].tobytes()
    concatenated = read_vectors(pa.concat_tables([table, table.slice(first, length)]))
    assert concatenated.tobytes() == vectors.tobytes() + sliced.tobytes()
