"""Initial states of an output, for tests of concurrent and repeated runs.

Each function of INITIAL_STATES draws a source below `root`, and writes the existing files of the
output to `root/before`.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import IndexSettings, RankSettings
from jobs.indexing.index import build_index
from jobs.ranking.rank import rank
from tests.jobs.embedding.test_store_sync import BROKEN_IMAGE, Source, make_picture
from tests.jobs.in_process import run_embed
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, record_operations
from tests.store_pipeline import draw_mixed_source


@dataclass
class InitialState:
    """A source and, optionally, an existing output."""

    root: Path
    settings: dict = field(default_factory=dict)

    @property
    def source(self):
        return self.root / "photos"

    def create(self, output):
        """Create the output as it is before the tested runs."""
        if (self.root / "before").exists():
            shutil.copytree(self.root / "before", output)

    def run(self, output):
        run_embed(self.source, output, **self.settings)


def empty(root):
    draw_mixed_source(root / "photos")
    return InitialState(root)


def interrupted(root):
    state = empty(root)
    operation_count = len(record_operations(lambda: state.run(root / "whole")))

    def kill(*_):
        raise Killed

    with inject_faults(FailAt(operation_count * 2 // 3, kill)), pytest.raises(Killed):
        state.run(root / "before")
    return state


def changed_source(root, **settings):
    source = Source(root / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg"]):
        source.put(name, make_picture(number) if number else BROKEN_IMAGE)
    run_embed(source.root, root / "before")
    source.put("a.jpg", make_picture(4))
    source.put("g.jpg", make_picture(3))
    source.put("h.jpg", BROKEN_IMAGE)
    source.touch("e.png")
    source.delete("f.jpg")
    return InitialState(root, settings)


def recovered_source(root):
    """Return a store with two failures whose images are readable now; `retry_failed` is set."""
    source = Source(root / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg"]):
        source.put(name, make_picture(number))
    unreadable = {"a.jpg", "f.jpg"}

    def deny(when, operation, path):
        if operation == "read" and Path(path).name in unreadable:
            raise PermissionError(13, "Permission denied", path)

    with inject_faults(deny):
        run_embed(source.root, root / "before")
    return InitialState(root, {"retry_failed": True})


def two_segments(root):
    """Return a store with two segments, which the tested run compacts."""
    state = changed_source(root)
    state.run(root / "before")
    (state.source / "h.jpg").write_bytes(make_picture(2))
    run_embed(state.source, root / "before", retry_failed=True)
    return InitialState(root, {"compact": True})


@dataclass
class SearchState(InitialState):
    """A finished store, from which the tested run makes an index, or matches with an index."""

    verb: str = ""

    def run(self, output):
        cluster, store = Cluster("nowhere", 1), str(self.root / "before")
        if self.verb == "index":
            build_index(
                IndexSettings(embeddings=store, output=str(output), rows_per_shard=3), cluster
            )
        else:
            index = str(self.root / "index")
            rank(RankSettings(index=index, queries=store, output=str(output), top_k=3), cluster)

    def create(self, output):
        """Create nothing; the output does not exist."""


def index_state(root):
    state = empty(root)
    state.run(root / "before")
    return SearchState(root, verb="index")


def rank_state(root):
    state = index_state(root)
    state.run(root / "index")
    return SearchState(root, verb="rank")


INITIAL_STATES = {
    "empty": empty,
    "interrupted": interrupted,
    "changed_source": changed_source,
    "recovered_source": recovered_source,
    "changed_source_compact": lambda root: changed_source(root, compact=True),
    "compact": two_segments,
    "index": index_state,
    "rank": rank_state,
}
