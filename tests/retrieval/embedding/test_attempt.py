"""Tests of repeated attempts at a chunk after worker crashes.

From the second attempt on, images are processed and noted one at a time; the output is the same.
"""

from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding import embed_batch
from retrieval.embedding.attempt import Attempt
from retrieval.embedding.embed_batch import DecodeSettings
from retrieval.embedding.embed_chunk import embed_chunk
from retrieval.sources.item_reader import ItemReader
from tests.file_tree import read_tree
from tests.retrieval.embedding.conftest import ScriptedEmbedder, StoreBuilder


def folder_bytes(builder, attempt, threads=0):
    """Embed every chunk and return the files of the store, path -> bytes."""
    for chunk in builder.grid:
        embed_chunk(
            chunk,
            builder.folder,
            builder.embedder,
            DecodeSettings(10**6, "float16", threads),
            attempt,
        )
    return read_tree(Path(builder.folder.uri()), exclude=())


@pytest.mark.parametrize("threads", [0, 3])
def test_second_attempt_writes_same_bytes_as_first(builder, source, tmp_path, embedder, threads):
    second_run = StoreBuilder(source, tmp_path / "second-run", embedder).prepare()
    assert folder_bytes(second_run, Attempt(2), threads) == folder_bytes(builder, Attempt(1))


def test_second_attempt_notes_each_image_before_reading(builder, monkeypatch):
    events = []
    read, submit = ItemReader.read, builder.embedder.submit

    def noted_read(self, path, *position):
        events.append(f"read {path}")
        return read(self, path, *position)

    def noted_submit(images):
        events.extend("embed" for _ in images)
        return submit(images)

    monkeypatch.setattr(ItemReader, "read", noted_read)
    monkeypatch.setattr(builder.embedder, "submit", noted_submit, raising=False)
    folder_bytes(builder, Attempt(2, note=lambda image: events.append(f"note {image}")), threads=2)
    rows = [row for chunk in builder.grid for row in builder.rows(chunk)]
    assert events.count("embed") == len(rows)
    assert events.count("note None") == len(builder.grid)
    for position, event in enumerate(events):
        if event.startswith("read"):
            assert events[position - 1] == "note" + event.removeprefix("read")
        if event == "embed":
            assert events[position - 1].startswith("read")


def test_second_attempt_keeps_one_image_in_flight(tmp_path, photos, embedder):
    vectors = [np.full(embedder.bundle.dimension, 1 + n, np.float32) for n in range(5)]
    engine = ScriptedEmbedder(embedder, *vectors, ahead=3)
    noted = []
    builder = StoreBuilder(
        str(photos("photos", 5)), tmp_path / "store", engine, chunk_rows=8
    ).prepare()

    def note(image):
        assert engine.in_flight == 0
        noted.append(image)

    folder_bytes(builder, Attempt(2, note=note))
    assert len(noted) == 6


@pytest.mark.parametrize("attempt_number", [1, 4])
def test_given_up_images_are_recorded_as_failures_without_reading(
    builder, source, tmp_path, embedder, attempt_number
):
    folder_bytes(builder, Attempt(1))
    poison = str(Path(source, "class1", "photo0004.jpg"))
    partial_run = StoreBuilder(source, tmp_path / "partial", embedder).prepare()
    noted = []
    folder_bytes(partial_run, Attempt(attempt_number, frozenset([poison]), noted.append))
    assert poison not in noted
    for chunk, partial_chunk in zip(builder.grid, partial_run.grid, strict=True):
        assert partial_run.rows(partial_chunk) == [
            row for row in builder.rows(chunk) if row["path"] != poison
        ]
        failures = [
            failure for failure in partial_run.failures(partial_chunk) if failure["path"] == poison
        ]
        assert [
            failure for failure in partial_run.failures(partial_chunk) if failure not in failures
        ] == builder.failures(chunk)
        for failure in failures:
            recorded = (failure["stage"], failure["error"], failure["message"])
            assert recorded == ("embed", "WorkerDied", str(embed_batch.WorkerDied()))
