"""What checksums cannot tell of an index is told by looking into it."""

from __future__ import annotations

import faiss
import numpy as np
import pyarrow as pa
import pytest

from retrieval.index.audit import audit, curve_again
from retrieval.index.faiss_io import from_bytes, to_bytes
from retrieval.index.shard import note_path, read_note, rows_path, shard_path
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import sealed_json, sealed_parquet
from retrieval.storage.verify import verify
from tests.retrieval.index.test_shard import make_index
from tests.retrieval.sample_vectors import METRICS, Index

every_metric = pytest.mark.parametrize("metric", METRICS)


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_right_index_has_no_problems(tmp_path, metric, dtype):
    index = make_index(tmp_path, metric, dtype)
    assert audit(index.folder) == []


def forge(index: Index, **files: bytes) -> None:
    """Put other files, and seal everything as if they were meant."""
    folder = index.folder
    counts = dict(index.manifest.counts)
    for path, data in files.items():
        folder.put(path, data)
    for number in range(counts["shards"]):
        note = read_note(folder, number)
        digests = {path: transaction.record(path, folder.read(path)).sha256 for path in note.files}
        folder.put(note_path(number), type(note)(note.extents, note.spread, digests).to_json())
    folder.delete(finished_output.MANIFEST)
    transaction.finish(folder, "index", counts)
    assert [verdict.state for verdict in verify(folder)] == ["finished"]


def shard(index: Index, number: int = 1) -> faiss.IndexIVF:
    return from_bytes(index.folder.read(shard_path(number)))


def test_a_row_in_two_shards_is_found(tmp_path):
    index = make_index(tmp_path, "cosine")
    read = index.folder.read
    forge(index, **{shard_path(1): read(shard_path(0)), rows_path(1): read(rows_path(0))})
    (problem,) = audit(index.folder)
    assert problem.endswith("shard 1: holds rows of another shard")


def test_ids_that_are_not_in_the_table_are_found(tmp_path):
    index = make_index(tmp_path, "cosine")
    forged = shard(index)
    number = next(n for n in range(8) if forged.invlists.list_size(n))
    faiss.rev_swig_ptr(forged.invlists.get_ids(number), 1)[0] += 1000
    forge(index, **{shard_path(1): to_bytes(forged)})
    assert "the ids in its lists are not the rows" in audit(index.folder)[0]


@every_metric
def test_a_vector_in_another_list_is_found(tmp_path, metric):
    index = make_index(tmp_path, metric)
    forged = shard(index)
    lists = forged.invlists
    one, other = [n for n in range(8) if lists.list_size(n)][:2]
    for get, width in ((lists.get_codes, lists.code_size), (lists.get_ids, 1)):
        left = faiss.rev_swig_ptr(get(one), width)
        right = faiss.rev_swig_ptr(get(other), width)
        left[:], right[:] = right.copy(), left.copy()
    forge(index, **{shard_path(1): to_bytes(forged)})
    assert any("lie nearer to another list" in problem for problem in audit(index.folder))


def test_another_length_than_noted_is_found(tmp_path):
    index = make_index(tmp_path, "cosine")
    table = index.shards[1].metadata
    name = "squared_norm"
    changed = pa.array(table[name].to_numpy() * 1.001)
    forged = table.set_column(table.schema.get_field_index(name), name, changed)
    forge(index, **{rows_path(1): sealed_parquet(forged)})
    assert any("have other lengths than noted" in problem for problem in audit(index.folder))


def test_a_wrong_count_is_found(tmp_path):
    index = make_index(tmp_path, "cosine")
    index.manifest.counts["rows"] += 1
    forge(index)
    assert audit(index.folder)[0].endswith("holds 150 rows, its manifest says otherwise")


@every_metric
def test_the_curve_comes_out_the_same_again(tmp_path, metric):
    index = make_index(tmp_path, metric)
    index.folder.delete("job.json")
    index.folder.put("job.json", sealed_json(
        {"format": 1, "kind": "index", "settings": {"seed": 0}}
    ))  # fmt: skip
    forge(index)
    assert curve_again(index.folder) == []
    table = index.folder.read("recall.parquet")
    other = make_index(tmp_path / "other", "l2" if metric != "l2" else "ip")
    forge(index, **{"recall.parquet": other.folder.read("recall.parquet")})
    assert table != index.folder.read("recall.parquet")
    assert "when recall is measured again" in curve_again(index.folder)[0]
    np.testing.assert_equal(audit(index.folder), [])
