"""Tests of reading finished outputs: nothing is used before its checksum is verified."""

import os
import random
from pathlib import Path

import pytest

from retrieval.core.errors import Damaged, InputError, Mismatch
from retrieval.core.output_layout import OUTPUT_LAYOUTS
from retrieval.core.schemas import MATCHES
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import LocalFolder
from retrieval.storage.verify import verify
from tests.retrieval.storage.outputs import (
    PUT,
    begin,
    filled,
    flip,
    instead,
    job,
    made,
    paths,
    rows_of,
)

every_kind = pytest.mark.parametrize("kind", PUT)


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


@pytest.fixture
def whole(folder):
    return made(folder, "matches", top_k=10)


def test_what_is_not_finished_is_a_missing_input(folder):
    with pytest.raises(InputError, match="is not an output of lookalike"):
        finished_output.read_manifest(folder)
    begin(folder, "store")
    with pytest.raises(InputError, match="is not finished"):
        finished_output.read_manifest(folder)
    with pytest.raises(InputError, match="is a file"):
        finished_output.read_manifest(folder.child("job.json"))


def test_another_kind_or_format_does_not_fit(folder, monkeypatch):
    made(folder, "store")
    with pytest.raises(Mismatch, match="is of kind store; name one of kind index"):
        finished_output.read_manifest(folder, kind="index")
    monkeypatch.setattr(finished_output, "FORMAT_VERSION", 2)
    with pytest.raises(Mismatch, match="has format 1, this version reads 2"):
        finished_output.read_manifest(folder)


@every_kind
def test_every_missing_shortened_or_lengthened_file_is_found_on_opening(folder, kind):
    made(folder, kind)
    for path in [path for path in paths(folder) if path != "manifest.json"]:
        changes = (
            os.unlink,
            lambda at: os.truncate(at, os.path.getsize(at) - 1),
            lambda at: Path(at).write_bytes(Path(at).read_bytes() + b"\0"),
        )
        for change in changes:
            with instead(folder, path, change), pytest.raises(Damaged) as raised:
                finished_output.read_manifest(folder)
            assert folder.uri(path) in str(raised.value)
    finished_output.read_manifest(folder)


def test_an_extra_file_is_found_on_opening(whole):
    for path in ("matches/part-00007.parquet", "notes.txt", "a/notes.txt"):
        whole.put(path, b"")
        with pytest.raises(Damaged, match=f"{path} does not belong there"):
            finished_output.read_manifest(whole)
        whole.delete(path)
    finished_output.read_manifest(whole)


@every_kind
def test_a_file_altered_at_the_same_length_is_found_when_it_is_read(folder, kind):
    manifest = finished_output.read_manifest(made(folder, kind))
    for path, record in manifest.files.items():
        data = folder.read(path)
        folder.put(path, flip(data, len(data) // 2, 0))
        with pytest.raises(Damaged, match="was altered"):
            finished_output.read_verified(folder, record)
        folder.put(path, data)
        assert finished_output.read_verified(folder, record) == data


@pytest.mark.parametrize("path", ["job.json", "files.parquet", "manifest.json"])
def test_whatever_vouches_for_others_is_checked_on_opening(whole, path):
    data = whole.read(path)
    for position in range(0, len(data), max(1, len(data) // 50)):
        whole.put(path, flip(data, position, position % 8))
        with pytest.raises(Damaged, match="was altered"):
            finished_output.read_manifest(whole)


def test_sealed_files_of_another_output_are_found_on_opening(whole, tmp_path):
    other = made(LocalFolder(str(tmp_path / "other")), "matches", top_k=5)
    other.put("matches/part-00002.parquet", checksummed_parquet(filled(MATCHES.schema, 1)))
    transaction.finish_output(other, "matches", {"rows": 6})
    for path in ("job.json", "files.parquet", "manifest.json"):
        with (
            instead(whole, path, lambda at, p=path: Path(at).write_bytes(other.read(p))),
            pytest.raises(Damaged),
        ):
            finished_output.read_manifest(whole)


# --- one flipped bit anywhere ---


def flips(folder, count):
    """Some bits of an output, spread over all its files: (path, data, position, bit)."""
    draw = random.Random(0)
    names = paths(folder)
    for number in range(count):
        path = names[number % len(names)]
        data = folder.read(path)
        yield path, data, draw.randrange(len(data)), draw.randrange(8)


def undetected(folder, count):
    """Flip bits one after the other; those after which nobody says damaged."""
    missed = []
    for path, data, position, bit in flips(folder, count):
        Path(folder.uri(path)).write_bytes(flip(data, position, bit))
        if "damaged" not in {verdict.state for verdict in verify(folder)}:
            missed.append((path, position, bit))
        Path(folder.uri(path)).write_bytes(data)
    return missed


@every_kind
def test_every_flipped_bit_of_a_finished_output_is_found(folder, kind):
    made(folder, kind)
    assert undetected(folder, 100) == []
    assert [verdict.state for verdict in verify(folder)] == ["finished"]


@every_kind
def test_every_flipped_bit_of_an_unfinished_output_is_found(folder, kind):
    begin(folder, kind)
    folder.put("work/block.parquet", rows_of(MATCHES))
    assert undetected(folder, 100) == []
    assert [verdict.state for verdict in verify(folder)] == ["unfinished"]


def test_every_flipped_bit_of_a_whole_job_is_found(folder):
    job(folder)
    assert undetected(folder, 100) == []
    assert {verdict.state for verdict in verify(folder)} == {"finished"}


def test_run_json_may_be_anything(whole):
    whole.put("run.json", b"\0")
    assert finished_output.read_manifest(whole)
    assert [verdict.state for verdict in verify(whole)] == ["finished"]


def test_every_kind_is_tried_here():
    assert {*PUT, "run"} == set(OUTPUT_LAYOUTS)
