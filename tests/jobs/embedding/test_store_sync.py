"""Test that the live rows of a store match its source after any sequence of changes."""

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
from tests.file_tree import read_tree
from tests.jobs.in_process import embed_in_process, small_model
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults

NAMES = ["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg", "g.jpg", "h.jpg"]
PICTURE_NUMBERS = range(5)
BROKEN_IMAGE = b"no photo at all"


@cache
def make_picture(number):
    sink = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (40, 40 + number, 3), np.uint8)
    Image.fromarray(noise).save(sink, "PNG")
    return sink.getvalue()


@cache
def embed_picture(data):
    embedder = Embedder(small_model().bundle, small_model().plan)
    pixels = decode(data, small_model().bundle.transform, max_pixels=10**6).pixels
    return embedder.embed([pixels])[0].astype(np.float16)


class Source:
    """A folder of photos with explicit modification times; `files` holds the expected contents."""

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


def read_live_rows(store):
    """Return (sha256, vector) of the live rows by image_id, and the set of ids in the ledger.

    Assert that each id occurs once.
    """
    rows, failed = {}, []
    for table in store.blocks():
        for row, stored in zip(table.to_pylist(), read_vectors(table), strict=True):
            assert row["image_id"] not in rows
            rows[row["image_id"]] = (row["sha256"], stored)
    for table in store.failures():
        failed += table["image_id"].to_pylist()
    assert len(failed) == len(set(failed))
    assert not rows.keys() & set(failed)
    return rows, set(failed)


def check_store(source, output):
    """Assert that a finished store matches its source, and return the opened store."""
    store = open_store(open_folder(str(output)))
    rows, failed = read_live_rows(store)
    assert failed == {name for name, data in source.files.items() if data == BROKEN_IMAGE}
    assert rows.keys() | failed == source.files.keys()
    for name, (sha256, stored) in rows.items():
        assert sha256 == hashlib.sha256(source.files[name]).hexdigest()
        assert np.array_equal(stored, embed_picture(source.files[name]))
    counts = store.manifest.counts
    assert (counts["images"], counts["rows"], counts["failures"]) == (
        len(source.files), len(rows), len(failed),
    )  # fmt: skip
    assert [verdict.state for verdict in verify(open_folder(str(output)))] == ["finished"]
    return store


class StoreMachine(RuleBasedStateMachine):
    """State machine of source changes, runs, kills, retries and compactions."""

    @initialize()
    def begin(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.output = Path(self.scratch.name, "store")
        self.source = Source(Path(self.scratch.name, "photos"))
        self.source.put("a.jpg", make_picture(0))
        self.source.put("b/c.jpg", make_picture(1))
        self.run()

    def teardown(self):
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    @rule(name=st.sampled_from(NAMES), number=st.sampled_from(PICTURE_NUMBERS))
    def put(self, name, number):
        self.source.put(name, make_picture(number))

    @rule(name=st.sampled_from(NAMES))
    def corrupt(self, name):
        self.source.put(name, BROKEN_IMAGE)

    @rule(name=st.sampled_from(NAMES))
    def touch(self, name):
        if name in self.source.files:
            self.source.touch(name)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name):
        if name in self.source.files and len(self.source.files) > 1:
            self.source.delete(name)

    @rule(compact=st.booleans(), retry_failed=st.booleans(), kill_at=st.integers(0, 150))
    def run_killed(self, compact, retry_failed, kill_at):
        def kill(*operation):
            raise Killed(operation)

        try:
            with inject_faults(FailAt(kill_at, kill)):
                self.run(compact=compact, retry_failed=retry_failed)
        except Killed:
            states = {verdict.state for verdict in verify(open_folder(str(self.output)))}
            assert states <= {"finished", "unfinished"}

    @rule(retry_failed=st.booleans())
    def run(self, retry_failed=False, compact=False):
        try:
            embed_in_process(
                self.source.root, self.output, retry_failed=retry_failed, compact=compact
            )
        except TooManyFailures:
            readable = sum(data != BROKEN_IMAGE for data in self.source.files.values())
            assert readable < 0.1 * len(self.source.files)
        else:
            check_store(self.source, self.output)

    @precondition(lambda self: any(d != BROKEN_IMAGE for d in self.source.files.values()))
    @rule()
    def compact(self):
        embed_in_process(self.source.root, self.output, compact=True)
        check_store(self.source, self.output)
        rebuilt = Path(self.scratch.name, "anew")
        embed_in_process(self.source.root, rebuilt)
        assert read_tree(self.output) == read_tree(rebuilt)
        shutil.rmtree(rebuilt)


QUICK_SETTINGS = settings(
    max_examples=6, stateful_step_count=12, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestStoreSync = StoreMachine.TestCase
TestStoreSync.settings = QUICK_SETTINGS


@pytest.mark.nightly
class TestStoreSyncNightly(StoreMachine.TestCase):
    settings = settings(QUICK_SETTINGS, max_examples=300, stateful_step_count=25)


def test_touched_files_are_counted_while_they_are_read(tmp_path, capsys):
    photos = draw_photos(tmp_path / "photos", 5)
    embed_in_process(photos, tmp_path / "store")
    for path in photos.glob("*/*"):
        os.utime(path, (1, 1))
    embed_in_process(photos, tmp_path / "store")
    assert "compare: 5/5 images" in capsys.readouterr().err
