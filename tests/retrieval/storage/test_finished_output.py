"""Tests of reading finished outputs: checksums are verified before any data is used."""

import os
import random
from pathlib import Path

import pytest

from retrieval.core.errors import Damaged, InputError, Mismatch
from retrieval.core.output_layout import OUTPUT_LAYOUTS
from retrieval.core.schemas import FORMAT_VERSION, MATCHES
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import LocalFolder
from retrieval.storage.verify import verify
from tests.retrieval.storage.outputs import (
    FILE_WRITERS,
    filled_table,
    flip_bit,
    make_finished_output,
    make_run_output,
    make_unfinished_output,
    output_paths,
    table_bytes,
    temporarily_changed,
)

every_kind = pytest.mark.parametrize("kind", FILE_WRITERS)


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


@pytest.fixture
def finished(folder):
    return make_finished_output(folder, "matches", top_k=10)


def test_read_manifest_refuses_unfinished_output(folder):
    with pytest.raises(InputError, match="is not an output of lookalike"):
        finished_output.read_manifest(folder)
    make_unfinished_output(folder, "store")
    with pytest.raises(InputError, match="is not finished"):
        finished_output.read_manifest(folder)
    with pytest.raises(InputError, match="is a file"):
        finished_output.read_manifest(folder.child("job.json"))


def test_read_manifest_refuses_other_kind_or_format(folder, monkeypatch):
    make_finished_output(folder, "store")
    with pytest.raises(Mismatch, match="is of kind store; specify one of kind index"):
        finished_output.read_manifest(folder, kind="index")
    monkeypatch.setattr(finished_output, "FORMAT_VERSION", FORMAT_VERSION + 1)
    with pytest.raises(
        Mismatch, match=f"has format {FORMAT_VERSION}, this version reads {FORMAT_VERSION + 1}"
    ):
        finished_output.read_manifest(folder)


@every_kind
def test_read_manifest_detects_missing_files_and_wrong_sizes(folder, kind):
    make_finished_output(folder, kind)
    for path in [path for path in output_paths(folder) if path != "manifest.json"]:
        changes = (
            os.unlink,
            lambda disk_path: os.truncate(disk_path, os.path.getsize(disk_path) - 1),
            lambda disk_path: Path(disk_path).write_bytes(Path(disk_path).read_bytes() + b"\0"),
        )
        for change in changes:
            with temporarily_changed(folder, path, change), pytest.raises(Damaged) as raised:
                finished_output.read_manifest(folder)
            assert folder.uri(path) in str(raised.value)
    finished_output.read_manifest(folder)


def test_read_manifest_detects_extra_files(finished):
    for path in ("matches/part-00007.parquet", "notes.txt", "a/notes.txt"):
        finished.put(path, b"")
        with pytest.raises(Damaged, match=f"{path} does not belong there"):
            finished_output.read_manifest(finished)
        finished.delete(path)
    finished_output.read_manifest(finished)


@every_kind
def test_read_verified_detects_altered_file_of_same_size(folder, kind):
    manifest = finished_output.read_manifest(make_finished_output(folder, kind))
    for path, record in manifest.files.items():
        data = folder.read(path)
        folder.put(path, flip_bit(data, len(data) // 2, 0))
        with pytest.raises(Damaged, match="was altered"):
            finished_output.read_verified(folder, record)
        folder.put(path, data)
        assert finished_output.read_verified(folder, record) == data


@pytest.mark.parametrize("path", ["job.json", "files.parquet", "manifest.json"])
def test_read_manifest_detects_altered_checksum_files(finished, path):
    data = finished.read(path)
    for position in range(0, len(data), max(1, len(data) // 50)):
        finished.put(path, flip_bit(data, position, position % 8))
        with pytest.raises(Damaged, match="was altered"):
            finished_output.read_manifest(finished)


def test_read_manifest_detects_files_of_other_output(finished, tmp_path):
    other = make_finished_output(LocalFolder(str(tmp_path / "other")), "matches", top_k=5)
    other.put("matches/part-00002.parquet", checksummed_parquet(filled_table(MATCHES.schema, 1)))
    transaction.finish_output(other, "matches", {"rows": 6})
    for path in ("job.json", "files.parquet", "manifest.json"):
        with (
            temporarily_changed(
                finished,
                path,
                lambda disk_path, source=path: Path(disk_path).write_bytes(other.read(source)),
            ),
            pytest.raises(Damaged),
        ):
            finished_output.read_manifest(finished)


# --- one flipped bit anywhere ---


def random_bits(folder, count):
    """Yield random bits, taking the files in turn: (path, bytes of the file, position, bit)."""
    generator = random.Random(0)
    files = output_paths(folder)
    for number in range(count):
        path = files[number % len(files)]
        data = folder.read(path)
        yield path, data, generator.randrange(len(data)), generator.randrange(8)


def undetected_flips(folder, count):
    """Flip `count` bits, one at a time; return those for which `verify` reports no damage."""
    missed = []
    for path, data, position, bit in random_bits(folder, count):
        Path(folder.uri(path)).write_bytes(flip_bit(data, position, bit))
        if "damaged" not in {verdict.state for verdict in verify(folder)}:
            missed.append((path, position, bit))
        Path(folder.uri(path)).write_bytes(data)
    return missed


@every_kind
def test_flipped_bits_of_finished_output_are_detected(folder, kind):
    make_finished_output(folder, kind)
    assert undetected_flips(folder, 100) == []
    assert [verdict.state for verdict in verify(folder)] == ["finished"]


@every_kind
def test_flipped_bits_of_unfinished_output_are_detected(folder, kind):
    make_unfinished_output(folder, kind)
    folder.put("work/block.parquet", table_bytes(MATCHES))
    assert undetected_flips(folder, 100) == []
    assert [verdict.state for verdict in verify(folder)] == ["unfinished"]


def test_flipped_bits_of_run_output_are_detected(folder):
    make_run_output(folder)
    assert undetected_flips(folder, 100) == []
    assert {verdict.state for verdict in verify(folder)} == {"finished"}


def test_run_json_is_not_verified(finished):
    finished.put("run.json", b"\0")
    assert finished_output.read_manifest(finished)
    assert [verdict.state for verdict in verify(finished)] == ["finished"]


def test_every_output_kind_is_covered():
    assert {*FILE_WRITERS, "run"} == set(OUTPUT_LAYOUTS)
