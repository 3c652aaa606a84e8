"""Tests that a store returns all rows of any range, and refuses altered files."""

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
from retrieval.store.reader import embedding_column, open_store, put_part, read_vectors
from tests.retrieval.sample_vectors import dtypes, image_ids, make_store, quick, seeds, slow

FIRST, SECOND = Chunk(0, 0, 0, 4), Chunk(0, 1, 4, 8)


def random_vectors(count: int, d: int = 3, dtype: str = "float16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, d)).astype(dtype)


def rows_of(tables) -> list[int]:
    return [row for table in tables for row in table["row"].to_pylist()]


@st.composite
def holes(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw the number of images and the rows that have a vector; whole chunks may be lost."""
    images = draw(st.integers(1, 20))
    lost = draw(st.sets(st.integers(0, images - 1), max_size=images - 1))
    first = draw(st.integers(0, images))
    lost |= set(range(first, min(first + draw(st.integers(0, 20)), images)))
    there = sorted(set(range(images)) - lost) or [images - 1]
    return images, there


ranges = st.lists(st.tuples(st.integers(0, 25), st.none() | st.integers(0, 25)), max_size=20)


@slow
@given(holes(), st.sampled_from([1, 3, 7, 45]), ranges, dtypes, st.integers(1, 5), seeds)
def test_a_range_gives_its_rows_whatever_the_chunks_and_holes(shape, step, asked, dtype, d, seed):
    images, there = shape
    vectors = random_vectors(len(there), d, dtype, seed)
    with tempfile.TemporaryDirectory() as root:
        store = make_store(root, vectors, rows=there, images=images, chunk_rows=step)
        for first, last in [(0, None), *asked]:
            end = images if last is None else last
            tables = list(store.blocks(first, last))
            wanted = [row for row in there if first <= row < end]
            assert rows_of(tables) == wanted
            if wanted:
                together = pa.concat_tables(tables)
                picked = vectors[[there.index(row) for row in wanted]]
                np.testing.assert_array_equal(read_vectors(together), picked)
                assert read_vectors(together).dtype == dtype
                ids = image_ids(images)
                assert together["image_id"].to_pylist() == [ids[row] for row in wanted]
        assert rows_of(store.failures()) == sorted(set(range(images)) - set(there))


def test_a_block_is_a_part_and_reads_no_other(tmp_path):
    store = make_store(tmp_path, random_vectors(10), chunk_rows=4)
    assert [len(table) for table in store.blocks()] == [4, 4, 2]
    store.folder.delete(part_path(FIRST))
    assert rows_of(store.blocks(4, 9)) == [4, 5, 6, 7, 8]


def test_a_store_says_what_it_is(tmp_path):
    store = make_store(tmp_path, random_vectors(5, 7, "float32"), images=8, chunk_rows=4)
    assert (store.rows, store.dimension, store.dtype) == (5, 7, "float32")
    assert (store.span, len(store.chunks)) == (8, 2)


@pytest.mark.parametrize("path", [part_path(SECOND), failures_path(SECOND), segment_json_path(0)])
def test_an_altered_byte_is_found_when_it_is_read(tmp_path, path):
    store = make_store(tmp_path, random_vectors(6), images=8, chunk_rows=4)
    data = bytearray(store.folder.read(path))
    data[len(data) // 2] ^= 1
    store.folder.put(path, bytes(data))
    opened = open_store(store.folder)  # lengths are the same
    with pytest.raises(Damaged, match="was altered"):
        [*opened.blocks(), *opened.failures()]


def test_an_unfinished_store_is_not_opened(tmp_path):
    store = make_store(tmp_path, random_vectors(3))
    store.folder.delete("manifest.json")
    with pytest.raises(InputError, match="is not finished"):
        open_store(store.folder)


# --- parts --------------------------------------------------------------------------------------


def part_of(vectors: np.ndarray) -> bytes:
    schema = part_table(vectors.shape[1], str(vectors.dtype)).schema
    nothing = [pa.nulls(len(vectors), field.type) for field in schema if field.name != "embedding"]
    return checksummed_parquet(pa.table([*nothing, embedding_column(vectors)], schema=schema))


def test_a_part_that_is_there_stays(tmp_path):
    folder, chunk = open_folder(str(tmp_path)), Chunk(0, 0, 0, 3)
    first, other = part_of(random_vectors(3)), part_of(random_vectors(3, seed=1))
    records = put_part(folder, chunk, first, None)
    assert put_part(folder, chunk, other, None) == records
    assert folder.read(part_path(FIRST)) == first
    assert [(r.path, r.rows, r.size) for r in records] == [(part_path(FIRST), 3, len(first))]


def test_the_part_is_put_after_the_failures(tmp_path, monkeypatch):
    """So that a chunk whose part is there is done."""
    folder = open_folder(str(tmp_path))
    put = []
    plain = type(folder).put_new
    monkeypatch.setattr(
        type(folder), "put_new", lambda self, *args: (put.append(args[0]), plain(self, *args))[1]
    )
    ledger = checksummed_parquet(FAILURES.schema.empty_table())
    chunk = Chunk(0, 5, 0, 3)
    put_part(folder, chunk, part_of(random_vectors(3)), ledger)
    assert put == [failures_path(chunk), part_path(chunk)]


@quick
@given(st.integers(0, 9), st.integers(1, 9), dtypes, seeds, st.integers(0, 9), st.integers(0, 9))
def test_vectors_come_back_from_their_column_bit_for_bit(count, d, dtype, seed, first, length):
    bits = np.random.default_rng(seed).integers(0, 256, count * d * np.dtype(dtype).itemsize)
    vectors = bits.astype(np.uint8).view(dtype).reshape(count, d)  # NaN and all
    table = pa.table({"embedding": embedding_column(vectors)})
    assert read_vectors(table).tobytes() == vectors.tobytes()
    part = read_vectors(table.slice(first, length))
    assert part.shape == (max(0, min(length, count - first)), d)
    assert part.tobytes() == vectors[first : first + length].tobytes()
    twice = read_vectors(pa.concat_tables([table, table.slice(first, length)]))
    assert twice.tobytes() == vectors.tobytes() + part.tobytes()
