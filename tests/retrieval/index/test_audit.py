"""Tests of the index audit, which finds errors that checksums cannot detect."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.schemas import FORMAT_VERSION
from retrieval.index.audit import audit_index, verify_recall_curve
from retrieval.index.faiss_io import deserialize_index, serialize_index
from retrieval.index.shard import read_shard_record, shard_path, shard_record_path, shard_rows_path
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, checksummed_parquet
from retrieval.storage.verify import verify
from tests.retrieval.index.test_shard import make_index
from tests.retrieval.sample_vectors import METRICS, FinishedIndex

every_metric = pytest.mark.parametrize("metric", METRICS)


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_valid_index_has_no_problems(tmp_path, metric, dtype):
    index = make_index(tmp_path, metric, dtype)
    assert audit_index(index.folder) == []


def replace_files(index: FinishedIndex, **files: bytes) -> None:
    """Replace files of a finished index and write records and manifest that match them."""
    folder = index.folder
    counts = dict(index.manifest.counts)
    for path, data in files.items():
        folder.put(path, data)
    for number in range(counts["shards"]):
        record = read_shard_record(folder, number)
        digests = {
            path: transaction.file_record(path, folder.read(path)).sha256 for path in record.files
        }
        folder.put(shard_record_path(number), replace(record, files=digests).to_json())
    folder.delete(finished_output.MANIFEST)
    transaction.finish_output(folder, "index", counts)
    assert [verdict.state for verdict in verify(folder)] == ["finished"]


def load_shard(index: FinishedIndex, number: int = 1) -> faiss.IndexIVF:
    return deserialize_index(index.folder.read(shard_path(number)))


def test_row_in_two_shards_is_reported(tmp_path):
    index = make_index(tmp_path, "cosine")
    read = index.folder.read
    replace_files(
        index, **{shard_path(1): read(shard_path(0)), shard_rows_path(1): read(shard_rows_path(0))}
    )
    problems = audit_index(index.folder)
    assert any("shard 1: holds rows of another shard" in problem for problem in problems)
    assert any("shard 1: its centroids differ from those" in problem for problem in problems)


def test_ids_missing_from_the_rows_table_are_reported(tmp_path):
    index = make_index(tmp_path, "cosine")
    changed = load_shard(index)
    number = next(n for n in range(changed.nlist) if changed.invlists.list_size(n))
    faiss.rev_swig_ptr(changed.invlists.get_ids(number), 1)[0] += 1000
    replace_files(index, **{shard_path(1): serialize_index(changed)})
    assert "the ids in its lists differ from the rows" in audit_index(index.folder)[0]


@every_metric
def test_vector_in_the_wrong_list_is_reported(tmp_path, metric):
    index = make_index(tmp_path, metric)
    changed = load_shard(index)
    lists = changed.invlists
    first_list, second_list = [n for n in range(changed.nlist) if lists.list_size(n)][:2]
    for get, width in ((lists.get_codes, lists.code_size), (lists.get_ids, 1)):
        first = faiss.rev_swig_ptr(get(first_list), width)
        second = faiss.rev_swig_ptr(get(second_list), width)
        first[:], second[:] = second.copy(), first.copy()
    replace_files(index, **{shard_path(1): serialize_index(changed)})
    assert any("lie nearer to another list" in problem for problem in audit_index(index.folder))


def test_wrong_recorded_norm_is_reported(tmp_path):
    index = make_index(tmp_path, "cosine")
    table = index.shards[1].metadata
    name = "squared_norm"
    norms = pa.array(table[name].to_numpy() * 1.001)
    changed = table.set_column(table.schema.get_field_index(name), name, norms)
    replace_files(index, **{shard_rows_path(1): checksummed_parquet(changed)})
    assert any("have other norms than recorded" in problem for problem in audit_index(index.folder))


def test_wrong_row_count_in_the_manifest_is_reported(tmp_path):
    index = make_index(tmp_path, "cosine")
    index.manifest.counts["rows"] += 1
    replace_files(index)
    assert audit_index(index.folder)[0].endswith(
        "holds 150 rows, but its manifest records another number"
    )


@every_metric
def test_recall_curve_is_reproduced_and_a_different_one_reported(tmp_path, metric):
    index = make_index(tmp_path, metric)
    index.folder.delete("job.json")
    index.folder.put("job.json", checksummed_json(
        {"format": FORMAT_VERSION, "kind": "index", "settings": {"seed": 0}}
    ))  # fmt: skip
    replace_files(index)
    assert verify_recall_curve(index.folder) == []
    previous = index.folder.read("recall.parquet")
    other = make_index(tmp_path / "other", "l2" if metric != "l2" else "ip")
    replace_files(index, **{"recall.parquet": other.folder.read("recall.parquet")})
    assert previous != index.folder.read("recall.parquet")
    assert "differs from the recall curve" in verify_recall_curve(index.folder)[0]
    np.testing.assert_equal(audit_index(index.folder), [])
