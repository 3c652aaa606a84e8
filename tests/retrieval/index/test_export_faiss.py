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
from retrieval.index.shard import shard_path
from retrieval.storage.local import open_folder
from tests.retrieval.sample_vectors import METRICS, FinishedIndex, IndexBuilder, make_store

every_metric = pytest.mark.parametrize("metric", METRICS)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "float32"])
in_memory_or_not = pytest.mark.parametrize("memory", [1 << 30, 1])

GONE = np.arange(3, 120, 5)
DIMENSION, ROWS = 12, 150


def make_index(root: Path, metric: str, dtype: str) -> FinishedIndex:
    """Make an index of three shards; then some of its rows are deleted."""
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(dtype)
    store = make_store(root / "store", vectors, chunk_rows=32)
    building = IndexBuilder(root / "index", store, metric, nlist=8, rows_per_shard=60)
    for number, _ in building.work:
        building.shard(number)
    store.__dict__["deleted"] = GONE
    return building.finish()


def asked(count: int = 9) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, DIMENSION)).astype(np.float32)


def answered(index, nprobe: int, k: int = 20):
    """Search as any program would; the answers without the deleted rows."""
    faiss.extract_index_ivf(index).nprobe = nprobe
    distances, ids = index.search(asked(), k)
    return [
        [(i, d) for i, d in zip(*pair, strict=True) if i >= 0 and i not in GONE]
        for pair in zip(ids.tolist(), distances.tolist(), strict=True)
    ]


def together(index: FinishedIndex, nprobe: int, k: int) -> list[list[tuple[int, float]]]:
    """Search all shards as FAISS files, one by one, and sort."""
    most = [[] for _ in range(len(asked()))]
    for number in range(int(index.manifest.counts["shards"])):
        shard = faiss.read_index(index.folder.uri(shard_path(number)))
        for held, found in zip(most, answered(shard, nprobe, ROWS), strict=True):
            held.extend(found)
    sign = 1 if index.metric == "l2" else -1
    return [sorted(one, key=lambda x: (sign * x[1], x[0]))[:k] for one in most]


@every_metric
@every_dtype
@in_memory_or_not
def test_export_returns_the_results_of_all_shards_less_deleted(tmp_path, metric, dtype, memory):
    index = make_index(tmp_path, metric, dtype)
    file = str(tmp_path / "all.faiss")
    merged = export_index(index.folder, index.manifest, file, memory)
    assert merged.rows == ROWS - len(GONE)
    assert (merged.lists is None) == (memory > 1)
    opened = faiss.read_index(file)
    assert opened.ntotal == merged.rows
    lists = faiss.extract_index_ivf(opened).invlists
    ids = [
        i for n in range(lists.nlist)
        for i in faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).tolist()
    ]  # fmt: skip
    assert sorted(ids) == sorted(set(range(ROWS)) - set(GONE.tolist()))
    for nprobe in (1, 3, 8):
        assert answered(opened, nprobe) == together(index, nprobe, 20)
    assert sorted(p.name for p in tmp_path.glob("*all.faiss*")) == (
        ["all.faiss"] if memory > 1 else ["all.faiss", "all.faiss.lists"]
    )


def test_export_on_disk_holds_only_its_rows_and_can_be_moved(tmp_path):
    index = make_index(tmp_path, "l2", "float16")
    file = tmp_path / "there" / "all.faiss"
    merged = export_index(index.folder, index.manifest, str(file), 1)
    size = Path(merged.lists).stat().st_size
    assert size == merged.rows * (2 * DIMENSION + 8)
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    with pytest.raises(RuntimeError):
        faiss.read_index(str(tmp_path / "elsewhere/all.faiss"))
    opened = faiss.read_index(str(tmp_path / "elsewhere/all.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    assert answered(opened, 8) == together(index, 8, 20)
    assert "IO_FLAG_ONDISK_SAME_DIR" in merged.sentence()


def test_export_of_an_index_that_probes_all_lists_probes_all_lists(tmp_path):
    index = make_index(tmp_path, "ip", "float32")
    assert index.manifest.counts["probe_all"]
    export_index(index.folder, index.manifest, str(tmp_path / "f"), 1 << 30)
    assert faiss.read_index(str(tmp_path / "f")).nprobe == 8


def test_smaller_export_removes_the_old_lists_file(tmp_path):
    index = make_index(tmp_path, "l2", "float32")
    for memory in (1, 1 << 30):
        export_index(index.folder, index.manifest, str(tmp_path / "f"), memory)
    assert not (tmp_path / "f.lists").exists()
    assert answered(faiss.read_index(str(tmp_path / "f")), 8) == together(index, 8, 20)


def test_export_is_byte_identical(tmp_path):
    index = make_index(tmp_path, "l2", "float32")
    file = tmp_path / "f"
    found = []
    for _ in range(2):
        export_index(index.folder, index.manifest, str(file), 1)
        found.append((file.read_bytes(), (tmp_path / "f.lists").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("broken", ["f", "f.lists"])
def test_interrupted_export_leaves_no_file(tmp_path, monkeypatch, broken):
    index = make_index(tmp_path, "l2", "float32")
    export_index(index.folder, index.manifest, str(tmp_path / "f"), 1)
    put = export_faiss._replace

    def failing(file, write):
        if file.endswith("/" + broken):
            raise KeyboardInterrupt
        put(file, write)

    monkeypatch.setattr(export_faiss, "_replace", failing)
    with pytest.raises(KeyboardInterrupt):
        export_index(index.folder, index.manifest, str(tmp_path / "f"), 1)
    assert not (tmp_path / "f").exists()


def test_unusable_export_paths_are_refused(tmp_path):
    index = open_folder(str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    (tmp_path / "there").write_text("x")
    for file, why in (
        ("s3://bucket/f", "no local path"),
        (tmp_path, "is a folder"),
        (tmp_path / "index/shards/x", "inside the index"),
        (tmp_path / "there", "--overwrite"),
        (tmp_path / "there/f", "cannot be written .*; name a file that can"),
    ):
        with pytest.raises(UsageError, match=why):
            check_export_path(str(file), index, overwrite=False)
    path = str(tmp_path / "there")
    assert check_export_path(path, index, overwrite=True) == path
    assert check_export_path(f"file://{tmp_path}/new", index, overwrite=False) == f"{tmp_path}/new"


DRAWN = np.random.default_rng(0).normal(size=(400, DIMENSION)).astype(np.float32)


@cache
def trained(factory):
    """Train once for all tests: product quantisers take seconds."""
    index = faiss.index_factory(DIMENSION, factory)
    index.train(DRAWN)
    return index


class Faked:
    """Shards of any kind of FAISS, as an index that has such would give them."""

    def __init__(self, factory):
        self.trained = trained(factory)
        self.manifest = types.SimpleNamespace(counts={"factory": factory})
        self.folder = open_folder("somewhere")

    def _with(self, rows):
        index = faiss.clone_index(self.trained)
        index.add_with_ids(DRAWN[rows], rows)
        index.remove_ids(faiss.IDSelectorBatch(GONE))
        return index

    def needed_bytes(self):
        return 12345

    def without_progress(self):
        return self

    def __iter__(self):
        yield from map(self._with, np.split(np.arange(400), 4))

    def assert_equal(self, index):
        """It answers as one index that has all rows; many distances of PQ4x4fs are equal."""
        whole = self._with(np.arange(400))
        assert index.ntotal == whole.ntotal == 400 - len(GONE)
        for one in (index, whole):
            faiss.extract_index_ivf(one).nprobe = 4
        np.testing.assert_array_equal(index.search(asked(), 9)[0], whole.search(asked(), 9)[0])


@pytest.mark.parametrize(
    "factory",
    ["IVF4,SQ8", "PCA4,IVF4,Flat", pytest.param("IVF4,PQ4", marks=pytest.mark.nightly),
     "IVF4,PQ4x4fs"],
)  # fmt: skip
def test_lossy_kinds_are_merged(factory):
    shards = Faked(factory)
    whole = faiss.clone_index(shards.trained)
    export_faiss._merge(whole, shards)
    shards.assert_equal(whole)


@pytest.mark.parametrize(
    "factory",
    ["IVF4,SQ8", "PCA4,IVF4,Flat", pytest.param("IVF4,PQ4", marks=pytest.mark.nightly)],
)
def test_lossy_kinds_are_exported_on_disk(factory, tmp_path):
    shards = Faked(factory)
    whole = faiss.clone_index(shards.trained)
    export_faiss._on_disk(whole, shards, str(tmp_path / "f"), str(tmp_path / "f.lists"))
    shards.assert_equal(faiss.read_index(str(tmp_path / "f")))


def test_kinds_that_faiss_cannot_merge_or_keep_on_disk_are_refused_in_a_sentence(tmp_path):
    index = make_index(tmp_path, "l2", "float32")
    refined = faiss.index_factory(DIMENSION, "IVF4,SQ8,RFlat")
    with pytest.raises(UsageError, match=r"cannot merge .* IVF8,Flat"):
        export_faiss._merge(
            refined, export_faiss._Shards(index.folder, index.manifest, GONE, lambda: None)
        )
    packed = Faked("IVF4,PQ4x4fs")
    with pytest.raises(UsageError, match=r"cannot keep .* --max-index-memory 12345 bytes"):
        export_faiss._on_disk(packed.trained, packed, str(tmp_path / "f"), str(tmp_path / "l"))
    assert not (tmp_path / "f").exists()
