"""Tests of `verify`: finished, unfinished and damaged outputs are told apart."""

import os
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from retrieval.core.errors import InputError
from retrieval.core.schemas import FILES
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import (
    CHECKSUM_PLACEHOLDER,
    checksummed_json,
    checksummed_parquet,
    fill_checksum,
)
from retrieval.storage.local import LocalFolder, open_folder
from retrieval.storage.verify import verify
from tests.retrieval.storage.outputs import PUT, VOUCHED, begin, instead, job, made, paths, rows_of

every_kind = pytest.mark.parametrize("kind", PUT)


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


def only(verdicts):
    (verdict,) = verdicts
    return verdict


def states(folder):
    """The state of each output, by its path below the outermost."""
    root = folder.uri()
    return {os.path.relpath(verdict.path, root): verdict.state for verdict in verify(folder)}


# --- what is sound ---


@every_kind
def test_a_finished_output(folder, kind):
    verdict = only(verify(made(folder, kind)))
    assert (verdict.kind, verdict.state, verdict.problems) == (kind, "finished", ())
    assert verdict.files == len(paths(folder)) - 2  # without manifest and inventory


@every_kind
def test_an_unfinished_output_says_how_far_it_is(folder, kind):
    verdict = only(verify(begin(folder, kind)))
    assert (verdict.kind, verdict.state, verdict.problems) == (kind, "unfinished", ())
    done = {"bundle": "6 files", "store": "2 of 2 chunks", "index": "1 shards",
            "matches": "2 parts", "predictions": "1 parts", "comparison": "1 networks"}  # fmt: skip
    assert verdict.done == done[kind]


def test_a_store_whose_listing_is_not_finished_or_has_a_chunk_left(folder):
    transaction.claim_output(folder, "store", {})
    assert only(verify(folder)).done == "listing not finished"
    begin(folder, "store")
    folder.delete("segments/00000/parts/00000001.parquet")
    folder.put("segments/00000/parts/.tmp-elsewhere-1-1-0", b"half")
    verdict = only(verify(folder))
    assert (verdict.state, verdict.done) == ("unfinished", "1 of 2 chunks")


def test_a_claimed_and_an_empty_folder_are_unfinished(folder):
    os.mkdir(folder.uri())
    assert only(verify(folder)).state == "unfinished"
    folder.put("run.json", b"{}")
    folder.put(".tmp-elsewhere-1-1-0", b"half")
    assert only(verify(folder)).state == "unfinished"
    transaction.claim_output(folder, "store", {})
    assert only(verify(folder)).state == "unfinished"


def test_every_output_inside_is_judged_outermost_first(folder):
    verdicts = verify(job(folder))
    assert [os.path.relpath(verdict.path, folder.uri()) for verdict in verdicts] == [
        ".",
        "gallery",
        "index",
        "matches",
        "matches/queries",
    ]
    assert {verdict.state for verdict in verdicts} == {"finished"}


@every_kind
def test_an_output_in_a_bucket_is_judged_alike(kind):
    folder = open_folder(f"memory://verify/{kind}")
    try:
        assert only(verify(made(folder, kind))).state == "finished"
        folder.delete("manifest.json")
        assert only(verify(folder)).state == "unfinished"
        folder.put("job.json", b"{}")
        assert only(verify(folder)).state == "damaged"
    finally:
        fsspec.filesystem("memory").rm("/verify", recursive=True)


@pytest.mark.parametrize("place", ["nothing", "file", "memory://verify/nothing"])
def test_what_is_no_folder_is_a_missing_input(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=place):
        verify(open_folder(place))


# --- what is missing or extra ---


@every_kind
def test_without_its_manifest_an_output_is_unfinished(folder, kind):
    made(folder, kind).delete("manifest.json")
    assert only(verify(folder)).state == "unfinished"


@every_kind
def test_each_missing_file_is_named(folder, kind):
    made(folder, kind)
    for path in paths(folder):
        if path != "manifest.json":
            with instead(folder, path, os.unlink):
                verdict = only(verify(folder))
                assert verdict.state == "damaged"
                assert any(folder.uri(path) in problem for problem in verdict.problems)
    assert only(verify(folder)).state == "finished"


@every_kind
def test_without_job_json_an_output_is_damaged_finished_or_not(folder, kind):
    begin(folder, kind).delete("job.json")
    assert only(verify(folder)).problems == (f"{folder.uri('job.json')} is missing",)
    shutil.rmtree(folder.uri())
    made(folder, kind).delete("job.json")
    assert only(verify(folder)).problems == (f"{folder.uri('job.json')} is missing",)


@pytest.mark.parametrize("left", ["manifest.json", "files.parquet", "model/weights.safetensors"])
def test_a_single_file_that_is_left_is_damage(folder, left):
    made(folder, "bundle")
    for path in paths(folder):
        if path != left:
            folder.delete(path)
    assert only(verify(folder)).problems == (f"{folder.uri('job.json')} is missing",)


@pytest.mark.parametrize("extra", ["notes.txt", "a/photo.jpg", "matches/part-7.parquet"])
@pytest.mark.parametrize("make", [begin, made])
def test_what_does_not_belong_there_is_named(folder, make, extra):
    make(folder, "matches").put(extra, b"")
    verdict = only(verify(folder))
    assert verdict.state == "damaged"
    assert any(f"{folder.uri(extra)} does not belong" in problem for problem in verdict.problems)


@pytest.mark.parametrize(("kind", "path"), VOUCHED)
def test_what_differs_from_its_checksum_in_another_file_is_named(folder, kind, path):
    begin(folder, kind)
    folder.put(path, rows_of(FILES))  # sealed, but not what was there
    assert only(verify(folder)).problems == (f"{folder.uri(path)} was altered",)


def test_all_problems_are_named_not_only_the_first(folder):
    made(folder, "matches")
    named = [f"matches/part-{number:05d}.parquet" for number in range(2)]
    for path in named:
        data = folder.read(path)
        folder.put(path, data[:-1] + b"\0")
    problems = only(verify(folder)).problems
    assert [path for path in named for problem in problems if path in problem] == named


def test_damage_inside_is_the_inner_outputs_alone(folder):
    job(folder)
    part = "gallery/segments/00000/parts/00000000.parquet"
    folder.put(part, folder.read(part)[:-1] + b"\0")
    assert states(folder) == {
        ".": "finished",
        "gallery": "damaged",
        "index": "finished",
        "matches": "finished",
        "matches/queries": "finished",
    }


def test_an_output_that_was_made_again_does_not_belong_to_the_job_around_it(folder):
    job(folder)
    shutil.rmtree(folder.uri("gallery"))
    made(folder.child("gallery"), "store", other="settings")
    found = states(folder)
    assert (found["."], found["gallery"]) == ("damaged", "finished")


# --- whatever the damage resembles ---


def odd(path, other):
    """Bytes that may stand where a file was: rubbish, cut off, of another file, sealed nonsense."""
    yield from (b"", b"\0" * 64, b"{", b"null", b"[]", b"{}", b"PAR1", b"\xff\xfe", b"[" * 9999)
    yield other
    yield from (other[:-1], other[1:], other[: len(other) // 2])
    yield fill_checksum(CHECKSUM_PLACEHOLDER.encode())
    yield fill_checksum(f'"{CHECKSUM_PLACEHOLDER}"'.encode())
    yield fill_checksum(f'["{CHECKSUM_PLACEHOLDER}"]'.encode())
    yield fill_checksum(b'\xff"' + CHECKSUM_PLACEHOLDER.encode())
    yield checksummed_json({})
    shapes = (1, {"x": {}}, [["x"]])
    for key in ("kind", "format", "settings", "files", "counts", "files_sha256", "chunks"):
        for shape in shapes:
            yield checksummed_json({"format": 1, "kind": "store", "settings": {}, key: shape})
    yield checksummed_parquet(pa.table({}))
    yield checksummed_parquet(pa.table({"path": ["x"], "more": [1]}))
    yield checksummed_parquet(FILES.schema.empty_table())


def laid(data):
    return lambda at: Path(at).write_bytes(data)


def a_folder(at):
    os.unlink(at)
    os.mkdir(at)


def a_full_folder(at):
    a_folder(at)
    Path(at, "x").write_bytes(b"x")


def a_link_to_nothing(at):
    os.unlink(at)
    os.symlink("nowhere", at)


def a_link_to_itself(at):
    os.unlink(at)
    os.symlink(os.path.basename(at), at)


NO_FILES = [a_folder, a_full_folder, a_link_to_nothing, a_link_to_itself]


@every_kind
def test_a_finished_output_is_damaged_whatever_a_file_is_replaced_by(folder, tmp_path, kind):
    made(folder, kind)
    other = made(LocalFolder(str(tmp_path / "other")), kind, other="settings")
    other.put("files.parquet", folder.read("files.parquet"))
    for path in paths(folder):
        kept = folder.read(path)
        for data in odd(path, other.read(path)):
            Path(folder.uri(path)).write_bytes(data)
            verdict = only(verify(folder))
            assert data == kept or verdict.state == "damaged", (path, data)
            assert data == kept or all(folder.uri() in problem for problem in verdict.problems)
        folder.put(path, kept)
    assert only(verify(folder)).state == "finished"


@every_kind
def test_an_unfinished_output_is_judged_whatever_a_file_is_replaced_by(folder, kind):
    """Another sealed file in its place cannot be known as such yet; but nothing may go wrong."""
    begin(folder, kind)
    for path in paths(folder):
        kept = folder.read(path)
        for data in odd(path, kept):
            Path(folder.uri(path)).write_bytes(data)
            verdict = only(verify(folder))
            assert verdict.state != "finished"
            assert all(folder.uri() in problem for problem in verdict.problems), verdict
        folder.put(path, kept)
    assert only(verify(folder)).state == "unfinished"


@every_kind
@pytest.mark.parametrize("make", [begin, made])
@pytest.mark.parametrize("change", NO_FILES)
def test_folders_and_links_where_files_were_are_judged(folder, kind, make, change):
    make(folder, kind)
    for path in paths(folder):
        with instead(folder, path, change):
            verdict = verify(folder)[0]
            if make is made and path != "manifest.json":
                assert verdict.state == "damaged", path
            assert make is made or verdict.state != "finished"


def test_a_manifest_that_fits_an_empty_inventory_only(folder):
    """Both sealed, each naming the other: but there are files nobody names."""
    made(folder, "matches")
    manifest = finished_output.read_manifest(folder)
    inventory = checksummed_parquet(FILES.schema.empty_table())
    folder.put("files.parquet", inventory)
    values = {"format": 1, "kind": "matches", "counts": {}, "job_sha256": manifest.job_sha256}
    from hashlib import sha256

    values["files_sha256"] = sha256(inventory).hexdigest()
    folder.put("manifest.json", checksummed_json(values))
    verdict = only(verify(folder))
    assert verdict.state == "damaged"
    assert "does not belong there" in verdict.problems[0]
