"""Tests of importing precomputed vectors: each becomes a row or a failure with a reason."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import TooManyFailures
from retrieval.core.records import Rounding
from retrieval.embedding import import_vectors as import_vectors_module
from retrieval.embedding.attempt import Attempt
from retrieval.embedding.changed_images import find_changed_rows
from retrieval.embedding.import_vectors import ImportSettings, import_chunk, import_vectors
from retrieval.listing.listing import write_listing
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.vectors import open_vectors
from retrieval.storage import transaction
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.finalize import finish_store
from retrieval.store.reader import open_store, read_vectors
from retrieval.store.segment import claim_segment

IMPORTING = ImportSettings(2, "float16")


def import_store(root, path, importing=IMPORTING, *, attempt=None, max_failures=1.0, **options):
    """Return a store of imported vectors with three rows per chunk.

    Every chunk is imported twice: the second call must find the files of the first.
    """
    folder = open_folder(str(root / "store"))
    source = open_vectors(str(path), **options)
    listing = root / "listing.parquet"
    rows, chunk_rows = write_listing(
        source.items(), listing, columns=source.columns(), chunk_rows=3
    )
    transaction.claim_output(
        folder, "store", {"embedding_dtype": importing.embedding_dtype, "bundle": None}
    )
    segment = claim_segment(folder, 0, 0, listing, chunk_rows, rows, np.empty(0, np.int64))
    file_records = []
    with ItemReader() as reader:
        for chunk in segment.chunks():
            keywords = {} if attempt is None else {"attempt": attempt}
            file_records += import_chunk(chunk, folder, importing, reader, **keywords).files
            second = import_chunk(chunk, folder, importing, reader)
            assert set(second.files) <= set(file_records)
    finish_store(folder, importing.dimension, file_records, max_failures, unit="vectors")
    assert {verdict.state for verdict in verify(folder)} == {"finished"}
    return open_store(folder)


def all_rows(store):
    return pa.concat_tables(list(store.blocks()))


def failure_messages(store):
    failures = [failure for table in store.failures() for failure in table.to_pylist()]
    assert {failure["stage"] for failure in failures} <= {"read"}
    return {failure["image_id"]: failure["message"] for failure in failures}


def save(root, rows, dtype="float32"):
    np.save(root / "x.npy", np.array(rows, dtype))
    return root / "x.npy"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_rows_hold_file_values_cast_to_stored_dtype(tmp_path, monkeypatch, dtype, stored):
    monkeypatch.setattr(import_vectors_module, "_BATCH", 2)
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    store = import_store(tmp_path, save(tmp_path, values, dtype), ImportSettings(5, stored))
    table = all_rows(store)
    assert store.bundle is None
    assert table["image_id"].to_pylist() == [str(row) for row in range(7)]
    assert read_vectors(table).tobytes() == values.astype(stored).tobytes()
    expected = [hashlib.sha256(vector.tobytes()).hexdigest() for vector in values]
    assert table["sha256"].to_pylist() == expected
    assert table["width"].null_count == table["height"].null_count == 7


def test_unsearchable_vectors_are_recorded_as_failures(tmp_path):
    rows = [[1, 2], [np.nan, 1], [1, -np.inf], [0, 0], [1e30, 1], [1e-30, 0], [3, 4]]
    store = import_store(tmp_path, save(tmp_path, rows))
    assert all_rows(store)["row"].to_pylist() == [0, 6]
    assert failure_messages(store) == {
        "1": "the vector is not finite",
        "2": "the vector is not finite",
        "3": "the vector has no length",
        "4": "the vector is too large for float16; give --embedding-dtype float32",
        "5": "the vector is too small for float16; give --embedding-dtype float32",
    }


def test_float32_keeps_wide_range_and_zeros_option_keeps_zero_vectors(tmp_path):
    rows = [[0, 0], [1e30, 1], [1e-30, 0], [1e200, 0], [-0.0, 1]]
    store = import_store(
        tmp_path, save(tmp_path, rows, "float64"), ImportSettings(2, "float32", zeros=True)
    )
    assert all_rows(store)["row"].to_pylist() == [0, 1, 2, 4]
    assert failure_messages(store) == {
        "3": "the vector is too large for float32; scale the vectors"
    }


@pytest.mark.parametrize("scale", [3e-7, 1e-200, 1e200])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_rescale_limits_error_to_rounding_at_any_scale(tmp_path, scale, stored):
    values = np.random.default_rng(0).normal(size=(50, 8)) * scale
    path = save(tmp_path, values, "float64")
    vectors = read_vectors(
        all_rows(import_store(tmp_path, path, ImportSettings(8, stored, rescale=True)))
    )
    directions, stored_directions = (
        rows / np.abs(rows).max(1)[:, None] for rows in (values, vectors.astype(np.float64))
    )
    cosines = (
        (directions * stored_directions).sum(1)
        / np.linalg.norm(directions, axis=1)
        / np.linalg.norm(stored_directions, axis=1)
    )
    unit_roundoff = {"float16": 2.0**-11, "float32": 2.0**-24}[stored]
    assert len(vectors) == 50
    assert (1 - cosines).max() < unit_roundoff**2 + 1e-15


def test_rescale_keeps_exactly_representable_directions(tmp_path):
    values = np.float32([[2.0**-20, 3 * 2.0**-20], [1, 3]])
    store = import_store(
        tmp_path, save(tmp_path, values), ImportSettings(2, "float16", rescale=True)
    )
    assert read_vectors(all_rows(store)).tolist() == [[0.25, 0.75], [1, 3]]


def test_rounding_errors_are_measured_over_all_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(import_vectors_module, "_BATCH", 2)
    values = np.random.default_rng(0).normal(size=(7, 5))
    values[2] = [1, 2, 3, 4, 5]  # exactly representable in float16
    path = save(tmp_path, values, "float64")
    lines = pa.Table.from_pylist(
        [
            {"row": item.place, "image_id": item.image_id, "path": item.path}
            for item in open_vectors(str(path)).items()
        ]
    )
    measured = Rounding()
    with ItemReader() as reader:
        for batch in import_vectors(lines, ImportSettings(5, "float16"), reader):
            measured += batch.rounding
    errors = np.linalg.norm(values - values.astype(np.float16), axis=1)
    errors /= np.linalg.norm(values, axis=1)
    assert (measured.vectors, measured.changed) == (7, 6)
    np.testing.assert_allclose([measured.largest, measured.total], [errors.max(), errors.sum()])


def test_lists_with_wrong_length_or_nulls_are_recorded_as_failures(tmp_path):
    rows = pa.array([[1.0, 2.0], None, [1.0], [1.0, 2.0, 3.0], [1.0, None], [], [5.0, 6.0]])
    table = pa.table({"id": list("abcdefg"), "v": rows, "price": range(7)})
    pq.write_table(table, tmp_path / "x.parquet")
    store = import_store(tmp_path, tmp_path / "x.parquet")
    imported = all_rows(store)
    assert imported["image_id"].to_pylist() == ["a", "g"]
    assert imported["price"].to_pylist() == [0, 6]
    assert failure_messages(store) == {
        "b": f"row 1 of {tmp_path}/x.parquet holds no vector (null)",
        "c": "the vector has 1 numbers, not 2",
        "d": "the vector has 3 numbers, not 2",
        "e": "the vector is not finite",
        "f": "the vector has 0 numbers, not 2",
    }


def test_given_up_vectors_are_recorded_as_failures(tmp_path):
    path = save(tmp_path, np.ones((4, 2)))
    attempt = Attempt(3, frozenset([f"npy://2::{path}"]))
    store = import_store(tmp_path, path, attempt=attempt)
    assert list(failure_messages(store)) == ["2"]


def test_too_many_failures_message_counts_vectors(tmp_path):
    with pytest.raises(TooManyFailures, match=r"1 of 3 vectors failed"):
        import_store(tmp_path, save(tmp_path, [[1, 1], [0, 0], [1, 2]]), max_failures=0.1)


def test_changed_rows_compare_vectors_not_modification_time(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float64)
    path = save(tmp_path, values, "float64")
    store = import_store(tmp_path, path)
    items = [dataclasses.asdict(item) for item in open_vectors(str(path)).items()]
    items = [{**item, "row": row} for row, item in enumerate(items)]
    assert find_changed_rows(store.folder, store.chunks[0], items, {}) == []
    values[1, 0] += 1e-9
    save(tmp_path, values, "float64")
    assert find_changed_rows(store.folder, store.chunks[0], items, {}) == [1]


def test_rows_out_of_order_and_of_several_files_are_imported(tmp_path):
    """Labels, limits and retries may leave gaps between the rows of a file."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(5, 2)).astype(np.float32) for name in ("a", "b")}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    order = [("a", 0), ("a", 1), ("a", 3), ("b", 4), ("b", 0), ("b", 1), ("b", 2)]
    lines = pa.table(
        {
            "row": range(len(order)),
            "image_id": [f"{name}{row}" for name, row in order],
            "path": [f"npy://{row}::{tmp_path}/{name}.npy" for name, row in order],
        }
    )
    with ItemReader() as reader:
        batches = list(import_vectors(lines, ImportSettings(2, "float32"), reader))
    vectors = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_array_equal(vectors, [arrays[name][row] for name, row in order])
    assert [row["row"] for batch in batches for row in batch.rows] == list(range(len(order)))


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.list_(pa.int32(), 2)])
def test_null_in_one_vector_changes_no_other(tmp_path, kind):
    """Integers beside a null must keep their type, of which the checksum is computed."""
    table = pa.table({"embedding": pa.array([[1, 2], [None, 3], None, [5, 6]], kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    store = import_store(tmp_path, tmp_path / "x.parquet", ImportSettings(2, "float32"))
    assert read_vectors(all_rows(store)).tolist() == [[1, 2], [5, 6]]
    digests = [hashlib.sha256(np.int32(row).tobytes()).hexdigest() for row in ([1, 2], [5, 6])]
    assert all_rows(store)["sha256"].to_pylist() == digests
    assert failure_messages(store) == {
        "x.parquet/1": "the vector is not finite",
        "x.parquet/2": f"row 2 of {tmp_path}/x.parquet holds no vector (null)",
    }


def test_damaged_rows_do_not_affect_their_block(tmp_path, monkeypatch):
    """A block that cannot be read at once is read row by row."""
    read = ItemReader.vectors

    def read_but_row_2(self, path, count):
        row = int(path.split("//")[1].split("::")[0])
        if row <= 2 < row + count:
            raise ValueError("the page is damaged")
        return read(self, path, count)

    monkeypatch.setattr(ItemReader, "vectors", read_but_row_2)
    store = import_store(tmp_path, save(tmp_path, np.ones((6, 2))))
    assert all_rows(store)["row"].to_pylist() == [0, 1, 3, 4, 5]
    assert failure_messages(store) == {"2": "the page is damaged"}
