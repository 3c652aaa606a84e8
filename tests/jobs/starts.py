"""Stores as a run may find them: nothing yet, killed half-way, a source that changed since, ….

Each start draws its source below a folder, and makes there what lies in the output `before`.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import IndexSettings, RankSettings
from jobs.indexing.index import build_index
from jobs.ranking.rank import rank
from tests.flows import draw_source
from tests.jobs.embedding.test_store_sync import BROKEN, Source, picture
from tests.jobs.here import embed_now
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, operations


@dataclass
class Start:
    """What both runs find: a source and, perhaps, an output that was begun."""

    root: Path
    settings: dict = field(default_factory=dict)

    @property
    def source(self):
        return self.root / "photos"

    def begin(self, output):
        """Make what is there before both runs start."""
        if (self.root / "before").exists():
            shutil.copytree(self.root / "before", output)

    def run(self, output):
        embed_now(self.source, output, **self.settings)


def nothing_yet(root):
    draw_source(root / "photos")
    return Start(root)


def killed_half_way(root):
    start = nothing_yet(root)
    moments = len(operations(lambda: start.run(root / "whole")))

    def kill(*moment):
        raise Killed

    with inject_faults(FailAt(moments * 2 // 3, kill)), pytest.raises(Killed):
        start.run(root / "before")
    return start


def grown(root, **settings):
    source = Source(root / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg"]):
        source.put(name, picture(number) if number else BROKEN)
    embed_now(source.root, root / "before")
    source.put("a.jpg", picture(4))
    source.put("g.jpg", picture(3))
    source.put("h.jpg", BROKEN)
    source.touch("e.png")
    source.delete("f.jpg")
    return Start(root, settings)


def mended(root):
    """What failed reads now, and was listed as it is: only a retry finds out."""
    source = Source(root / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg"]):
        source.put(name, picture(number))
    unreadable = {"a.jpg", "f.jpg"}

    def denied(when, operation, path):
        if operation == "read" and Path(path).name in unreadable:
            raise PermissionError(13, "Permission denied", path)

    with inject_faults(denied):
        embed_now(source.root, root / "before")
    return Start(root, {"retry_failed": True})


def two_segments(root):
    """Grown already, one failure mended since: what is left to do is to compact."""
    start = grown(root)
    start.run(root / "before")
    (start.source / "h.jpg").write_bytes(picture(2))
    embed_now(start.source, root / "before", retry_failed=True)
    return Start(root, {"compact": True})


@dataclass
class Searching(Start):
    """Made of a finished store: an index, or the matches of an index."""

    verb: str = ""

    def run(self, output):
        nowhere, store = Cluster("nowhere", 1), str(self.root / "before")
        if self.verb == "index":
            build_index(
                IndexSettings(embeddings=store, output=str(output), rows_per_shard=3), nowhere
            )
        else:
            made = str(self.root / "index")
            rank(RankSettings(index=made, queries=store, output=str(output), top_k=3), nowhere)

    def begin(self, output):
        """Nothing is there."""


def to_index(root):
    start = nothing_yet(root)
    start.run(root / "before")
    return Searching(root, verb="index")


def to_rank(root):
    start = to_index(root)
    start.run(root / "index")
    return Searching(root, verb="rank")


STARTS = {
    "new": nothing_yet,
    "begun": killed_half_way,
    "grown": grown,
    "mended": mended,
    "grown, compact": lambda root: grown(root, compact=True),
    "compact": two_segments,
    "index": to_index,
    "rank": to_rank,
}
