"""Tests that the live rows of a store match its source after any sequence of changes."""

import hashlib
import io
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from PIL import Image

from retrieval.core.errors import TooManyFailures
from retrieval.images.decode import decode
from retrieval.models.embedder import Embedder
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store, read_vectors
from tests.conftest import draw_photos
from tests.jobs.here import embed_here, prepared
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults
from tests.trees import tree

NAMES = ["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg", "g.jpg", "h.jpg"]
PICTURES = range(5)
BROKEN = b"no photo at all"


@cache
def picture(number):
    sink = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (40, 40 + number, 3), np.uint8)
    Image.fromarray(noise).save(sink, "PNG")
    return sink.getvalue()


@cache
def vector(data):
    embedder = Embedder(prepared().bundle, prepared().plan)
    pixels = decode(data, prepared().bundle.transform, max_pixels=10**6).pixels
    return embedder.embed([pixels])[0].astype(np.float16)


class Source:
    """A folder of photos, and what should be found of each."""

    def __init__(self, root):
        self.root = Path(root)
        self.clock = 1_700_000_000
        self.files = {}

    def put(self, name, data):
        path = self.root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
        self.files[name] = data
        self.touch(name)

    def touch(self, name):
        self.clock += 1
        os.utime(self.root / name, (self.clock, self.clock))

    def delete(self, name):
        (self.root / name).unlink()
        del self.files[name]


def live(store):
    """Path -> (sha256, vector) of the live rows, and the ids of the ledger; each once."""
    rows, lost = {}, []
    for table in store.blocks():
        for row, found in zip(table.to_pylist(), read_vectors(table), strict=True):
            assert row["image_id"] not in rows
            rows[row["image_id"]] = (row["sha256"], found)
    for table in store.failures():
        lost += table["image_id"].to_pylist()
    assert len(lost) == len(set(lost))
    assert not rows.keys() & set(lost)
    return rows, set(lost)


def check(source, output):
    """The store holds exactly what the source holds now."""
    store = open_store(open_folder(str(output)))
    rows, lost = live(store)
    assert lost == {name for name, data in source.files.items() if data == BROKEN}
    assert rows.keys() | lost == source.files.keys()
    for name, (sha256, found) in rows.items():
        assert sha256 == hashlib.sha256(source.files[name]).hexdigest()
        assert np.array_equal(found, vector(source.files[name]))
    counts = store.manifest.counts
    assert (counts["images"], counts["rows"], counts["failures"]) == (
        len(source.files), len(rows), len(lost),
    )  # fmt: skip
    assert [verdict.state for verdict in verify(open_folder(str(output)))] == ["finished"]
    return store


class Growing(RuleBasedStateMachine):
    """Any sequence of changes, runs, kills, retries and compactions."""

    @initialize()
    def begin(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.output = Path(self.scratch.name, "store")
        self.source = Source(Path(self.scratch.name, "photos"))
        self.source.put("a.jpg", picture(0))
        self.source.put("b/c.jpg", picture(1))
        self.run()

    def teardown(self):
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    @rule(name=st.sampled_from(NAMES), number=st.sampled_from(PICTURES))
    def put(self, name, number):
        self.source.put(name, picture(number))

    @rule(name=st.sampled_from(NAMES))
    def spoil(self, name):
        self.source.put(name, BROKEN)

    @rule(name=st.sampled_from(NAMES))
    def touch(self, name):
        if name in self.source.files:
            self.source.touch(name)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name):
        if name in self.source.files and len(self.source.files) > 1:
            self.source.delete(name)

    @rule(compact=st.booleans(), retry_failed=st.booleans(), at=st.integers(0, 150))
    def killed(self, compact, retry_failed, at):
        def kill(*moment):
            raise Killed(moment)

        try:
            with inject_faults(FailAt(at, kill)):
                self.run(compact=compact, retry_failed=retry_failed)
        except Killed:
            states = {verdict.state for verdict in verify(open_folder(str(self.output)))}
            assert states <= {"finished", "unfinished"}

    @rule(retry_failed=st.booleans())
    def run(self, retry_failed=False, compact=False):
        try:
            embed_here(self.source.root, self.output, retry_failed=retry_failed, compact=compact)
        except TooManyFailures:
            good = sum(data != BROKEN for data in self.source.files.values())
            assert good < 0.1 * len(self.source.files)
        else:
            check(self.source, self.output)

    @precondition(lambda self: any(d != BROKEN for d in self.source.files.values()))
    @rule()
    def compact(self):
        embed_here(self.source.root, self.output, compact=True)
        check(self.source, self.output)
        anew = Path(self.scratch.name, "anew")
        embed_here(self.source.root, anew)
        assert tree(self.output) == tree(anew)
        shutil.rmtree(anew)


QUICK = settings(
    max_examples=10, stateful_step_count=12, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestGrowing = Growing.TestCase
TestGrowing.settings = QUICK


@pytest.mark.nightly
class TestGrowingAtLength(Growing.TestCase):
    settings = settings(QUICK, max_examples=300, stateful_step_count=25)


def test_files_that_were_touched_are_counted_while_they_are_read(tmp_path, capsys):
    photos = draw_photos(tmp_path / "photos", 5)
    embed_here(photos, tmp_path / "store")
    for path in photos.glob("*/*"):
        os.utime(path, (1, 1))
    embed_here(photos, tmp_path / "store")
    assert "compare: 5/5 images" in capsys.readouterr().err
