"""Tests of the FAISS export: a stock index with the same results as all shards together."""

from __future__ import annotations

import shutil
import types
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval.core.errors import UsageError
from retrieval.index import export_faiss
from retrieval.index.export_faiss import check_export_path, export_index
from retrieval.index.shard import read_shard_record, shard_path
from retrieval.index.train import TRAINED
from retrieval.search.shard_search import local_lists
from retrieval.storage.local import open_folder
from tests.retrieval.sample_vectors import METRICS, FinishedIndex, IndexBuilder, make_store

every_metric = pytest.mark.parametrize("metric", METRICS)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "float32"])
in_memory_and_on_disk = pytest.mark.parametrize("memory", [1 << 30, 1])

DELETED = np.arange(3, 120, 5)
DIMENSION, ROWS = 12, 150


def make_index(root: Path, metric: str, dtype: str) -> FinishedIndex:
    """Return an index of three shards with deleted rows."""
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(dtype)
    store = make_store(root / "store", vectors, chunk_rows=32)
    builder = IndexBuilder(root / "index", store, metric, nlist=8, rows_per_shard=60)
    for planned in builder.work:
        builder.shard(planned.number)
    store.__dict__["deleted"] = DELETED
    return builder.finish()


def sample_queries(count: int = 9) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, DIMENSION)).astype(np.float32)


def search_live_rows(index, nprobe: int, k: int = 20):
    """Return (id, distance) pairs of each query from `index.search`, without deleted rows."""
    faiss.extract_index_ivf(index).nprobe = nprobe
    return live_rows(*index.search(sample_queries(), k))


def live_rows(distances, ids):
    """Return (id, distance) pairs of each query, without deleted rows."""
    return [
        [
            (row, distance)
            for row, distance in zip(*results, strict=True)
            if row >= 0 and row not in DELETED
        ]
        for results in zip(ids.tolist(), distances.tolist(), strict=True)
    ]


def search_shards(index: FinishedIndex, nprobe: int, k: int) -> list[list[tuple[int, float]]]:
    """Return the k best results of each query over all shards, searched as FAISS files.

    Of each shard those of the `nprobe` closest lists of the index are searched that it holds.
    """
    results = [[] for _ in range(len(sample_queries()))]
    trained = faiss.read_index(index.folder.uri(TRAINED))
    _, lists = trained.quantizer.search(sample_queries(), nprobe)
    for number in range(int(index.manifest.counts["shards"])):
        shard = faiss.read_index(index.folder.uri(shard_path(number)))
        local = local_lists(lists, read_shard_record(index.folder, number).lists)
        shard.nprobe = local.shape[1]  # at most the lists of the shard, to which FAISS limits it
        if shard.nprobe == 0:
            continue
        no_distances = np.zeros(local.shape, np.float32)  # codes are no residuals
        neighbours = live_rows(
            *shard.search_preassigned(sample_queries(), ROWS, local, no_distances)
        )
        for merged, shard_results in zip(results, neighbours, strict=True):
            merged.extend(shard_results)
    sign = 1 if index.metric == "l2" else -1
    return [sorted(merged, key=lambda x: (sign * x[1], x[0]))[:k] for merged in results]


@every_metric
@every_dtype
@in_memory_and_on_disk
def test_export_returns_the_results_of_all_live_rows(tmp_path, metric, dtype, memory):
    index = make_index(tmp_path, metric, dtype)
    path = str(tmp_path / "all.faiss")
    exported = export_index(index.folder, index.manifest, path, memory)
    assert exported.rows == ROWS - len(DELETED)
    assert (exported.lists is None) == (memory > 1)
    opened = faiss.read_index(path)
    assert opened.ntotal == exported.rows
    lists = faiss.extract_index_ivf(opened).invlists
    ids = [
        row for number in range(lists.nlist)
        for row in faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).tolist()
    ]  # fmt: skip
    assert sorted(ids) == sorted(set(range(ROWS)) - set(DELETED.tolist()))
    for nprobe in (1, 3, 8):
        assert search_live_rows(opened, nprobe) == search_shards(index, nprobe, 20)
    assert sorted(p.name for p in tmp_path.glob("*all.faiss*")) == (
        ["all.faiss"] if memory > 1 else ["all.faiss", "all.faiss.lists"]
    )


def test_export_on_disk_contains_only_live_rows_and_can_be_moved(tmp_path):
    index = make_index(tmp_path, "l2", "float16")
    path = tmp_path / "original" / "all.faiss"
    exported = export_index(index.folder, index.manifest, str(path), 1)
    size = Path(exported.lists).stat().st_size
    assert size == exported.rows * (2 * DIMENSION + 8)
    shutil.move(tmp_path / "original", tmp_path / "moved")
    with pytest.raises(RuntimeError):
        faiss.read_index(str(tmp_path / "moved/all.faiss"))
    opened = faiss.read_index(str(tmp_path / "moved/all.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    assert search_live_rows(opened, 8) == search_shards(index, 8, 20)
    assert "IO_FLAG_ONDISK_SAME_DIR" in exported.sentence()


def test_export_keeps_nprobe_of_an_index_that_probes_all_lists(tmp_path):
    index = make_index(tmp_path, "ip", "float32")
    assert index.manifest.counts["probe_all"]
    export_index(index.folder, index.manifest, str(tmp_path / "f"), 1 << 30)
    assert faiss.read_index(str(tmp_path / "f")).nprobe == 8


def test_smaller_export_removes_the_old_lists_file(tmp_path):
    index = make_index(tmp_path, "l2", "float32")
    for memory in (1, 1 << 30):
        export_index(index.folder, index.manifest, str(tmp_path / "f"), memory)
    assert not (tmp_path / "f.lists").exists()
    assert search_live_rows(faiss.read_index(str(tmp_path / "f")), 8) == search_shards(index, 8, 20)


def test_export_is_byte_identical(tmp_path):
    index = make_index(tmp_path, "l2", "float32")
    path = tmp_path / "f"
    outputs = []
    for _ in range(2):
        export_index(index.folder, index.manifest, str(path), 1)
        outputs.append((path.read_bytes(), (tmp_path / "f.lists").read_bytes()))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("failing_file", ["f", "f.lists"])
def test_interrupted_export_leaves_no_file(tmp_path, monkeypatch, failing_file):
    index = make_index(tmp_path, "l2", "float32")
    export_index(index.folder, index.manifest, str(tmp_path / "f"), 1)
    replace = export_faiss._replace

    def fail_on_file(path, write):
        if path.endswith("/" + failing_file):
            raise KeyboardInterrupt
        replace(path, write)

    monkeypatch.setattr(export_faiss, "_replace", fail_on_file)
    with pytest.raises(KeyboardInterrupt):
        export_index(index.folder, index.manifest, str(tmp_path / "f"), 1)
    assert not (tmp_path / "f").exists()


def test_unusable_export_paths_are_refused(tmp_path):
    index = open_folder(str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    (tmp_path / "existing").write_text("x")
    for path, reason in (
        ("s3://bucket/f", "no local path"),
        (tmp_path, "is a folder"),
        (tmp_path / "index/shards/x", "inside the index"),
        (tmp_path / "existing", "--overwrite"),
        (tmp_path / "existing/f", "cannot be written .*; specify a file that can"),
    ):
        with pytest.raises(UsageError, match=reason):
            check_export_path(str(path), index, overwrite=False)
    path = str(tmp_path / "existing")
    assert check_export_path(path, index, overwrite=True) == path
    assert check_export_path(f"file://{tmp_path}/new", index, overwrite=False) == f"{tmp_path}/new"


VECTORS = np.random.default_rng(0).normal(size=(400, DIMENSION)).astype(np.float32)


@cache
def trained_index(factory):
    """Return a trained FAISS index, cached because product quantizers train for seconds."""
    index = faiss.index_factory(DIMENSION, factory)
    index.train(VECTORS)
    return index


class FakeShards:
    """Stand-in for `export_faiss._Shards` with four shards of any FAISS index type."""

    def __init__(self, factory):
        self.trained = trained_index(factory)
        self.manifest = types.SimpleNamespace(counts={"factory": factory})
        self.folder = open_folder("somewhere")

    def _index_of(self, rows):
        index = faiss.clone_index(self.trained)
        index.add_with_ids(VECTORS[rows], rows)
        index.remove_ids(faiss.IDSelectorBatch(DELETED))
        return index

    def needed_bytes(self):
        return 12345

    def without_progress(self):
        return self

    def __iter__(self):
        yield from ((0, self._index_of(rows)) for rows in np.split(np.arange(400), 4))

    def assert_equal(self, index):
        """Assert that an index returns the distances of one index of all rows.

        Ids are not compared, since many distances of PQ4x4fs are equal.
        """
        expected = self._index_of(np.arange(400))
        assert index.ntotal == expected.ntotal == 400 - len(DELETED)
        for searched in (index, expected):
            faiss.extract_index_ivf(searched).nprobe = 4
        np.testing.assert_array_equal(
            index.search(sample_queries(), 9)[0], expected.search(sample_queries(), 9)[0]
        )


@pytest.mark.parametrize("factory", ["IVF4,SQ8", "IVF4,PQ4x4fs"])
def test_lossy_index_types_are_merged_in_memory(factory):
    shards = FakeShards(factory)
    merged = faiss.clone_index(shards.trained)
    export_faiss._merge(merged, shards)
    shards.assert_equal(merged)


def test_sq8_index_is_exported_on_disk(tmp_path):
    shards = FakeShards("IVF4,SQ8")
    empty = faiss.clone_index(shards.trained)
    export_faiss._on_disk(empty, shards, str(tmp_path / "f"), str(tmp_path / "f.lists"))
    shards.assert_equal(faiss.read_index(str(tmp_path / "f")))


def test_packed_lists_on_disk_are_refused(tmp_path):
    packed = FakeShards("IVF4,PQ4x4fs")
    with pytest.raises(UsageError, match=r"cannot keep .* --max-index-memory 12345 bytes"):
        export_faiss._on_disk(packed.trained, packed, str(tmp_path / "f"), str(tmp_path / "l"))
    assert not (tmp_path / "f").exists()
