"""Test that an updated index gives the search results of a new index with the same quantizer.

The store may have been appended to, retried, partly deleted or compacted before the update.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from retrieval.core.errors import InputError
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.shard import open_shard, read_lists_of_shard
from retrieval.index.train import TRAINED, TRAINED_JSON
from retrieval.search.candidates import top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.search.shard_search import local_lists
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import top_k
from tests.jobs.embedding.test_store_sync import (
    PICTURE_NUMBERS,
    QUICK_SETTINGS,
    Source,
    StoreMachine,
    embed_picture,
    make_picture,
)
from tests.jobs.in_process import embed_in_process, index_in_process
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, record_operations

INDEX_OPTIONS = {"index_factory": "IVF3,SQfp16", "rows_per_shard": 2}


def search_index(index, nprobe):
    """Return (query, image_id, key) of the 5 best candidates per picture, best first."""
    folder = open_folder(str(index))
    manifest = finished_output.read_manifest(folder, kind="index")
    query_vectors = np.stack([embed_picture(make_picture(number)) for number in PICTURE_NUMBERS])
    trained = deserialize_index(finished_output.read_verified(folder, manifest.files[TRAINED]))
    probes = top_k(
        block(query_vectors, "ip"), block(read_centroids(trained), "ip"), nprobe
    ).positions
    parts = []
    for number in range(manifest.counts["shards"]):
        shard = open_shard(folder, manifest, number, "cosine", "float16")
        lists = read_lists_of_shard(folder, manifest, number)
        queries = QueryBatch(block(query_vectors, "cosine"), np.arange(len(query_vectors)))
        parts.append(ShardSearcher(shard).search(queries, local_lists(probes, lists), 5))
    best, _ = top_candidates(parts, 5)
    matches = best.table()
    return list(zip(*(matches[c].to_pylist() for c in ("query", "image_id", "key")), strict=True))


def check_index(store, index, scratch):
    """Assert that an index equals a new one built around the same centroids."""
    counts = finished_output.read_manifest(open_folder(str(index)), kind="index").counts
    opened = open_store(open_folder(str(store)))
    assert counts["rows"] == opened.rows
    assert counts["embeddings_sha256"] == opened.manifest.sha256
    assert [verdict.state for verdict in verify(open_folder(str(index)))] == ["finished"]
    rebuilt = Path(scratch, "index anew")
    rebuilt.mkdir()
    shutil.copy(index / "job.json", rebuilt)
    for name in (TRAINED, TRAINED_JSON):
        shutil.copy(index / name, rebuilt)
    index_in_process(store, rebuilt, **INDEX_OPTIONS)
    for nprobe in (1, 2, 3):
        assert search_index(index, nprobe) == search_index(rebuilt, nprobe)
    shutil.rmtree(rebuilt)


class IndexMachine(StoreMachine):
    """State machine of store changes and index updates."""

    @property
    def index_path(self):
        return Path(self.scratch.name, "index")

    @rule()
    def update_index(self):
        try:
            index_in_process(self.output, self.index_path, **INDEX_OPTIONS)
        except InputError:  # the store is unfinished or empty
            return
        check_index(self.output, self.index_path, self.scratch.name)

    @rule(kill_at=st.integers(0, 120))
    def update_index_killed(self, kill_at):
        def kill(*operation):
            raise Killed(operation)

        try:
            with inject_faults(FailAt(kill_at, kill)):
                index_in_process(self.output, self.index_path, **INDEX_OPTIONS)
        except (Killed, InputError):
            states = {verdict.state for verdict in verify(open_folder(str(self.output)))}
            assert states <= {"finished", "unfinished"}


TestIndexUpdate = IndexMachine.TestCase
TestIndexUpdate.settings = settings(QUICK_SETTINGS, max_examples=5, stateful_step_count=10)


@pytest.mark.nightly
class TestIndexUpdateNightly(IndexMachine.TestCase):
    settings = settings(QUICK_SETTINGS, max_examples=200, stateful_step_count=25)


@pytest.fixture
def changed_store(tmp_path):
    """Return a source, store and index; one photo was added, changed and deleted after indexing."""
    source = Source(tmp_path / "photos")
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", make_picture(number))
    store, index = tmp_path / "store", tmp_path / "index"
    embed_in_process(source.root, store)
    index_in_process(store, index, **INDEX_OPTIONS)
    source.put("f.jpg", make_picture(1))
    source.put("b.jpg", make_picture(0))
    source.delete("d.jpg")
    embed_in_process(source.root, store)
    return source, store, index


def list_shards(index):
    return sorted(path.name for path in (index / "shards").glob("*.faiss"))


def test_appended_rows_add_a_shard_and_keep_the_others(changed_store, tmp_path):
    _, store, index = changed_store
    assert len(list_shards(index)) == 3
    mtimes = {name: (index / "shards" / name).stat().st_mtime_ns for name in list_shards(index)}
    trained = (index / TRAINED).read_bytes()
    manifest = index_in_process(store, index, **INDEX_OPTIONS)
    assert (manifest.counts["rows"], manifest.counts["shards"]) == (5, 4)
    assert (
        mtimes.items()
        <= {
            name: (index / "shards" / name).stat().st_mtime_ns for name in list_shards(index)
        }.items()
    )
    assert (index / TRAINED).read_bytes() == trained
    check_index(store, index, tmp_path)


def test_compacted_store_rebuilds_shards_around_the_same_centroids(changed_store, tmp_path):
    source, store, index = changed_store
    index_in_process(store, index, **INDEX_OPTIONS)
    trained = (index / TRAINED).read_bytes()
    embed_in_process(source.root, store, compact=True)
    manifest = index_in_process(store, index, **INDEX_OPTIONS)
    assert (manifest.counts["rows"], manifest.counts["shards"]) == (5, 3)
    assert (index / TRAINED).read_bytes() == trained
    assert not (index / "deleted.parquet").exists()
    check_index(store, index, tmp_path)


@pytest.mark.parametrize("kill_count", [9, pytest.param(150, marks=pytest.mark.nightly)])
def test_killed_update_is_valid_and_resumes(changed_store, tmp_path, kill_count):
    _, store, index = changed_store
    initial_index = tmp_path / "start"
    shutil.copytree(index, initial_index)
    operations = record_operations(lambda: index_in_process(store, index, **INDEX_OPTIONS))
    expected = read_files(index)
    for number in range(0, len(operations), max(1, len(operations) // kill_count)):
        shutil.rmtree(index)
        shutil.copytree(initial_index, index)

        def kill(*operation):
            raise Killed(operation)

        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            index_in_process(store, index, **INDEX_OPTIONS)
        states = {verdict.state for verdict in verify(open_folder(str(index)))}
        assert states <= {"finished", "unfinished"}, operations[number]
        index_in_process(store, index, **INDEX_OPTIONS)
        assert read_files(index) == expected, operations[number]


def read_files(index):
    """Return the files of an index by path, except run.json and temporary files."""
    excluded = {"run.json"}
    return {
        path.relative_to(index).as_posix(): path.read_bytes()
        for path in index.rglob("*")
        if path.is_file() and path.name not in excluded and not path.name.startswith(".")
    }
