"""Tests of later attempts at a chunk: images one at a time, each noted, with the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding import embed_batch
from retrieval.embedding.attempt import Attempt
from retrieval.embedding.embed_batch import DecodeSettings
from retrieval.embedding.embed_chunk import embed_chunk
from retrieval.sources.item_reader import ItemReader
from tests.retrieval.embedding.test_embed_chunk import Run, Scripted
from tests.trees import tree


def embed(run, attempt, threads=0):
    for chunk in run.grid:
        embed_chunk(
            chunk, run.folder, run.embedder, DecodeSettings(10**6, "float16", threads), attempt
        )
    return tree(Path(run.folder.uri()), but=())


@pytest.mark.parametrize("threads", [0, 3])
def test_one_image_at_a_time_gives_the_same_bytes(run, source, tmp_path, embedder, threads):
    again = Run(source, tmp_path / "again", embedder).begin()
    assert embed(again, Attempt(2), threads) == embed(run, Attempt(1))


def test_each_image_is_noted_before_it_is_touched_and_alone(run, monkeypatch):
    seen = []
    read, submit = ItemReader.read, run.embedder.submit

    def noted_read(self, path, *place):
        seen.append(f"read {path}")
        return read(self, path, *place)

    def noted_submit(images):
        seen.extend("embed" for _ in images)
        return submit(images)

    monkeypatch.setattr(ItemReader, "read", noted_read)
    monkeypatch.setattr(run.embedder, "submit", noted_submit, raising=False)
    embed(run, Attempt(2, note=lambda image: seen.append(f"note {image}")), threads=2)
    rows = [row for chunk in run.grid for row in run.rows(chunk)]
    assert seen.count("embed") == len(rows)
    assert seen.count("note None") == len(run.grid)
    for place, what in enumerate(seen):
        if what.startswith("read"):
            assert seen[place - 1] == "note" + what.removeprefix("read")
        if what == "embed":
            assert seen[place - 1].startswith("read")


def test_an_engine_that_works_ahead_has_one_image_at_a_time(tmp_path, photos, embedder):
    vectors = [np.full(embedder.bundle.dimension, 1 + n, np.float32) for n in range(5)]
    engine = Scripted(embedder, *vectors, ahead=3)
    at_hand = []
    run = Run(str(photos("photos", 5)), tmp_path / "store", engine, chunk_rows=8).begin()

    def note(image):
        assert engine.under_way == 0
        at_hand.append(image)

    embed(run, Attempt(2, note=note))
    assert len(at_hand) == 6


@pytest.mark.parametrize("number", [1, 4])
def test_what_is_given_up_is_a_line_of_the_ledger_unread(run, source, tmp_path, embedder, number):
    embed(run, Attempt(1))
    poison = str(Path(source, "class1", "photo0004.jpg"))
    less = Run(source, tmp_path / "less", embedder).begin()
    noted = []
    embed(less, Attempt(number, frozenset([poison]), noted.append))
    assert poison not in noted
    for chunk, same in zip(run.grid, less.grid, strict=True):
        assert less.rows(same) == [row for row in run.rows(chunk) if row["path"] != poison]
        lines = [line for line in less.ledger(same) if line["path"] == poison]
        assert [line for line in less.ledger(same) if line not in lines] == run.ledger(chunk)
        for line in lines:
            said = (line["stage"], line["error"], line["message"])
            assert said == ("embed", "WorkerDied", str(embed_batch.WorkerDied()))
