"""Tests of importing vectors: each becomes a row with its values, or a failure with a reason."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import TooManyFailures
from retrieval.core.records import Rounding
from retrieval.embedding import import_vectors as module
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

TAKING = ImportSettings(2, "float16")


def taken(root, path, taking=TAKING, *, attempt=None, most=1.0, **options):
    """Make a store of vectors step by step, three a chunk."""
    folder = open_folder(str(root / "store"))
    source = open_vectors(str(path), **options)
    listing = root / "listing.parquet"
    rows, step = write_listing(source.items(), listing, columns=source.columns(), chunk_rows=3)
    transaction.claim_output(
        folder, "store", {"embedding_dtype": taking.embedding_dtype, "bundle": None}
    )
    segment = claim_segment(folder, 0, 0, listing, step, rows, np.empty(0, np.int64))
    known = []
    with ItemReader() as opener:
        for chunk in segment.chunks():
            given = {} if attempt is None else {"attempt": attempt}
            known += import_chunk(chunk, folder, taking, opener, **given).files
            again = import_chunk(chunk, folder, taking, opener)
            assert set(again.files) <= set(known)
    finish_store(folder, taking.dimension, known, most, unit="vectors")
    assert {verdict.state for verdict in verify(folder)} == {"finished"}
    return open_store(folder)


def rows_of(store):
    return pa.concat_tables(list(store.blocks()))


def ledger(store):
    lines = [line for table in store.failures() for line in table.to_pylist()]
    assert {line["stage"] for line in lines} <= {"read"}
    return {line["image_id"]: line["message"] for line in lines}


def save(root, rows, kind="float32"):
    np.save(root / "x.npy", np.array(rows, kind))
    return root / "x.npy"


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_each_is_a_row_as_its_file_has_it(tmp_path, monkeypatch, kind, stored):
    monkeypatch.setattr(module, "_BATCH", 2)
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(kind)
    store = taken(tmp_path, save(tmp_path, values, kind), ImportSettings(5, stored))
    table = rows_of(store)
    assert store.bundle is None
    assert table["image_id"].to_pylist() == [str(row) for row in range(7)]
    assert read_vectors(table).tobytes() == values.astype(stored).tobytes()
    wanted = [hashlib.sha256(one.tobytes()).hexdigest() for one in values]
    assert table["sha256"].to_pylist() == wanted
    assert table["width"].null_count == table["height"].null_count == 7


def test_what_cannot_be_searched_for_stands_in_the_ledger(tmp_path):
    rows = [[1, 2], [np.nan, 1], [1, -np.inf], [0, 0], [1e30, 1], [1e-30, 0], [3, 4]]
    store = taken(tmp_path, save(tmp_path, rows))
    assert rows_of(store)["row"].to_pylist() == [0, 6]
    assert ledger(store) == {
        "1": "the vector is not finite",
        "2": "the vector is not finite",
        "3": "the vector has no length",
        "4": "the vector is too large for float16; give --embedding-dtype float32",
        "5": "the vector is too small for float16; give --embedding-dtype float32",
    }


def test_as_float32_fewer_are_lost_and_where_no_cosine_is_taken_zeros_are_kept(tmp_path):
    rows = [[0, 0], [1e30, 1], [1e-30, 0], [1e200, 0], [-0.0, 1]]
    store = taken(
        tmp_path, save(tmp_path, rows, "float64"), ImportSettings(2, "float32", zeros=True)
    )
    assert rows_of(store)["row"].to_pylist() == [0, 1, 2, 4]
    assert ledger(store) == {"3": "the vector is too large for float32; scale the vectors"}


@pytest.mark.parametrize("scale", [3e-7, 1e-200, 1e200])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_where_only_directions_count_no_scale_costs_more_than_rounding(tmp_path, scale, stored):
    values = np.random.default_rng(0).normal(size=(50, 8)) * scale
    path = save(tmp_path, values, "float64")
    vectors = read_vectors(rows_of(taken(tmp_path, path, ImportSettings(8, stored, rescale=True))))
    exact, kept = (v / np.abs(v).max(1)[:, None] for v in (values, vectors.astype(np.float64)))
    cosines = (exact * kept).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(kept, axis=1)
    unit_roundoff = {"float16": 2.0**-11, "float32": 2.0**-24}[stored]
    assert len(vectors) == 50
    assert (1 - cosines).max() < unit_roundoff**2 + 1e-15


def test_numbers_that_the_stored_type_holds_are_not_scaled_away(tmp_path):
    values = np.float32([[2.0**-20, 3 * 2.0**-20], [1, 3]])
    store = taken(tmp_path, save(tmp_path, values), ImportSettings(2, "float16", rescale=True))
    assert read_vectors(rows_of(store)).tolist() == [[0.25, 0.75], [1, 3]]


def test_what_rounding_changes_is_measured_over_all_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    values = np.random.default_rng(0).normal(size=(7, 5))
    values[2] = [1, 2, 3, 4, 5]  # which float16 holds
    path = save(tmp_path, values, "float64")
    items = [{**dataclasses.asdict(i), "row": i.place} for i in open_vectors(str(path)).items()]
    measured = Rounding()
    with ItemReader() as opener:
        for batch in import_vectors(items, ImportSettings(5, "float16"), opener):
            measured += batch.rounding
    lost = np.linalg.norm(values - values.astype(np.float16), axis=1)
    lost /= np.linalg.norm(values, axis=1)
    assert (measured.vectors, measured.changed) == (7, 6)
    np.testing.assert_allclose([measured.largest, measured.total], [lost.max(), lost.sum()])


def test_other_lengths_and_nulls_in_lists(tmp_path):
    rows = pa.array([[1.0, 2.0], None, [1.0], [1.0, 2.0, 3.0], [1.0, None], [], [5.0, 6.0]])
    table = pa.table({"id": list("abcdefg"), "v": rows, "price": range(7)})
    pq.write_table(table, tmp_path / "x.parquet")
    store = taken(tmp_path, tmp_path / "x.parquet")
    found = rows_of(store)
    assert found["image_id"].to_pylist() == ["a", "g"]
    assert found["price"].to_pylist() == [0, 6]
    assert ledger(store) == {
        "b": f"row 1 of {tmp_path}/x.parquet holds no vector (null)",
        "c": "the vector has 1 numbers, not 2",
        "d": "the vector has 3 numbers, not 2",
        "e": "the vector is not finite",
        "f": "the vector has 0 numbers, not 2",
    }


def test_what_killed_its_worker_is_left_out(tmp_path):
    path = save(tmp_path, np.ones((4, 2)))
    attempt = Attempt(3, frozenset([f"npy://2::{path}"]))
    store = taken(tmp_path, path, attempt=attempt)
    assert list(ledger(store)) == ["2"]


def test_too_many_are_refused_in_words_that_fit(tmp_path):
    with pytest.raises(TooManyFailures, match=r"1 of 3 vectors failed"):
        taken(tmp_path, save(tmp_path, [[1, 1], [0, 0], [1, 2]]), most=0.1)


def test_a_file_that_was_only_touched_holds_the_same_vectors(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float64)
    path = save(tmp_path, values, "float64")
    store = taken(tmp_path, path)
    items = [dataclasses.asdict(item) for item in open_vectors(str(path)).items()]
    items = [{**item, "row": row} for row, item in enumerate(items)]
    assert find_changed_rows(store.folder, store.chunks[0], items, {}) == []
    values[1, 0] += 1e-9
    save(tmp_path, values, "float64")
    assert find_changed_rows(store.folder, store.chunks[0], items, {}) == [1]
