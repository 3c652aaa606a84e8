"""An index follows its store: whatever was appended, retried, deleted or compacted, it finds what
an index made from scratch with the same quantizer finds.
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
from retrieval.index.shard import open_shard
from retrieval.index.train import TRAINED, TRAINED_JSON
from retrieval.search.candidates import top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.storage import finished_output
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import top_k
from tests.jobs.embedding.test_store_sync import PICTURES, QUICK, Growing, Source, picture, vector
from tests.jobs.here import embed_here, index_here
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, operations

ASKED = {"index_factory": "IVF3,SQfp16", "rows_per_shard": 2}


def answers(index, nprobe):
    """Rank some pictures against an index: (query, image_id, key), best first."""
    folder = open_folder(str(index))
    manifest = finished_output.read_manifest(folder, kind="index")
    asked = np.stack([vector(picture(number)) for number in PICTURES])
    trained = deserialize_index(finished_output.read_verified(folder, manifest.files[TRAINED]))
    probes = top_k(block(asked, "ip"), block(read_centroids(trained), "ip"), nprobe).positions
    parts = []
    for number in range(manifest.counts["shards"]):
        shard = open_shard(folder, manifest, number, "cosine", "float16")
        queries = QueryBatch(block(asked, "cosine"), np.arange(len(asked)))
        parts.append(ShardSearcher(shard).search(queries, probes, 5))
    found, _ = top_candidates(parts, 5)
    return list(zip(*(found[c].to_pylist() for c in ("query", "image_id", "key")), strict=True))


def check(store, index, scratch):
    """The index equals one made from scratch around its own centroids."""
    counts = finished_output.read_manifest(open_folder(str(index)), kind="index").counts
    opened = open_store(open_folder(str(store)))
    assert counts["rows"] == opened.rows
    assert counts["embeddings_sha256"] == opened.manifest.sha256
    assert [verdict.state for verdict in verify(open_folder(str(index)))] == ["finished"]
    anew = Path(scratch, "index anew")
    anew.mkdir()
    shutil.copy(index / "job.json", anew)
    for name in (TRAINED, TRAINED_JSON):
        shutil.copy(index / name, anew)
    index_here(store, anew, **ASKED)
    for nprobe in (1, 2, 3):
        assert answers(index, nprobe) == answers(anew, nprobe)
    shutil.rmtree(anew)


class Following(Growing):
    """What happens to a store, and an index that is brought up to it now and then."""

    @property
    def index_at(self):
        return Path(self.scratch.name, "index")

    @rule()
    def index(self):
        try:
            index_here(self.output, self.index_at, **ASKED)
        except InputError:  # the store is not finished, or holds nothing
            return
        check(self.output, self.index_at, self.scratch.name)

    @rule(at=st.integers(0, 120))
    def index_killed(self, at):
        def kill(*moment):
            raise Killed(moment)

        try:
            with inject_faults(FailAt(at, kill)):
                index_here(self.output, self.index_at, **ASKED)
        except (Killed, InputError):
            states = {verdict.state for verdict in verify(open_folder(str(self.output)))}
            assert states <= {"finished", "unfinished"}


TestFollowing = Following.TestCase
TestFollowing.settings = settings(QUICK, max_examples=8, stateful_step_count=10)


@pytest.mark.nightly
class TestFollowingAtLength(Following.TestCase):
    settings = settings(QUICK, max_examples=200, stateful_step_count=25)


@pytest.fixture
def grown(tmp_path):
    """A source, its store and an index of it, then a photo more, one changed and one deleted."""
    source = Source(tmp_path / "photos")
    for number, name in enumerate("abcde"):
        source.put(f"{name}.jpg", picture(number))
    store, index = tmp_path / "store", tmp_path / "index"
    embed_here(source.root, store)
    index_here(store, index, **ASKED)
    source.put("f.jpg", picture(1))
    source.put("b.jpg", picture(0))
    source.delete("d.jpg")
    embed_here(source.root, store)
    return source, store, index


def shards_in(index):
    return sorted(path.name for path in (index / "shards").glob("*.faiss"))


def test_what_was_appended_becomes_a_further_shard_and_the_others_stay(grown, tmp_path):
    _, store, index = grown
    assert len(shards_in(index)) == 3
    before = {name: (index / "shards" / name).stat().st_mtime_ns for name in shards_in(index)}
    trained = (index / TRAINED).read_bytes()
    manifest = index_here(store, index, **ASKED)
    assert (manifest.counts["rows"], manifest.counts["shards"]) == (5, 4)
    assert (
        before.items()
        <= {name: (index / "shards" / name).stat().st_mtime_ns for name in shards_in(index)}.items()
    )
    assert (index / TRAINED).read_bytes() == trained
    check(store, index, tmp_path)


def test_a_compacted_store_makes_new_shards_around_the_same_centroids(grown, tmp_path):
    source, store, index = grown
    index_here(store, index, **ASKED)
    trained = (index / TRAINED).read_bytes()
    embed_here(source.root, store, compact=True)
    manifest = index_here(store, index, **ASKED)
    assert (manifest.counts["rows"], manifest.counts["shards"]) == (5, 3)
    assert (index / TRAINED).read_bytes() == trained
    assert not (index / "deleted.parquet").exists()
    check(store, index, tmp_path)


def test_killed_at_any_moment_of_following_it_is_sound_and_ends_the_same(grown, tmp_path):
    _, store, index = grown
    start = tmp_path / "start"
    shutil.copytree(index, start)
    moments = operations(lambda: index_here(store, index, **ASKED))
    whole = contents(index)
    for number in range(0, len(moments), max(1, len(moments) // 25)):
        shutil.rmtree(index)
        shutil.copytree(start, index)

        def kill(*moment):
            raise Killed(moment)

        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            index_here(store, index, **ASKED)
        states = {verdict.state for verdict in verify(open_folder(str(index)))}
        assert states <= {"finished", "unfinished"}, moments[number]
        index_here(store, index, **ASKED)
        assert contents(index) == whole, moments[number]


def contents(index):
    """What an index holds: all but the note of the run, and temporary files of this process."""
    skip = {"run.json"}
    return {
        path.relative_to(index).as_posix(): path.read_bytes()
        for path in index.rglob("*")
        if path.is_file() and path.name not in skip and not path.name.startswith(".")
    }
