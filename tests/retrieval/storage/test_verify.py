"""Tests of `verify`, which classifies outputs as finished, unfinished or damaged."""

import os
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from retrieval.core.errors import InputError
from retrieval.core.schemas import FILES, FORMAT_VERSION
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import (
    CHECKSUM_PLACEHOLDER,
    checksummed_json,
    checksummed_parquet,
    fill_checksum,
)
from retrieval.storage.local import LocalFolder, open_folder
from retrieval.storage.verify import verify
from tests.retrieval.storage.outputs import (
    CHECKSUMMED_FILES,
    FILE_WRITERS,
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


def single(verdicts):
    (verdict,) = verdicts
    return verdict


def states(folder):
    """Return the state of each output by its path relative to the outermost output."""
    root = folder.uri()
    return {os.path.relpath(verdict.path, root): verdict.state for verdict in verify(folder)}


# --- undamaged outputs ---


@every_kind
def test_finished_output_is_reported_with_file_count(folder, kind):
    verdict = single(verify(make_finished_output(folder, kind)))
    assert (verdict.kind, verdict.state, verdict.problems) == (kind, "finished", ())
    assert verdict.files == len(output_paths(folder)) - 2  # without manifest and inventory


@every_kind
def test_unfinished_output_is_reported_with_progress(folder, kind):
    verdict = single(verify(make_unfinished_output(folder, kind)))
    assert (verdict.kind, verdict.state, verdict.problems) == (kind, "unfinished", ())
    progress = {"bundle": "6 files", "store": "2 of 2 chunks", "index": "1 shard",
            "matches": "2 parts", "predictions": "1 part", "comparison": "1 network"}  # fmt: skip
    assert verdict.progress == progress[kind]


def test_progress_of_store_without_listing_or_with_missing_chunk(folder):
    transaction.claim_output(folder, "store", {})
    assert single(verify(folder)).progress == "listing not finished"
    make_unfinished_output(folder, "store")
    folder.delete("segments/00000/parts/00000001.parquet")
    folder.put("segments/00000/parts/.tmp-elsewhere-1-1-0", b"half")
    verdict = single(verify(folder))
    assert (verdict.state, verdict.progress) == ("unfinished", "1 of 2 chunks")


def test_empty_and_claimed_folders_are_unfinished(folder):
    os.mkdir(folder.uri())
    assert single(verify(folder)).state == "unfinished"
    folder.put("run.json", b"{}")
    folder.put(".tmp-elsewhere-1-1-0", b"half")
    assert single(verify(folder)).state == "unfinished"
    transaction.claim_output(folder, "store", {})
    assert single(verify(folder)).state == "unfinished"


def test_nested_outputs_are_reported_outermost_first(folder):
    verdicts = verify(make_run_output(folder))
    assert [os.path.relpath(verdict.path, folder.uri()) for verdict in verdicts] == [
        ".",
        "gallery",
        "index",
        "matches",
        "matches/queries",
    ]
    assert {verdict.state for verdict in verdicts} == {"finished"}


@every_kind
def test_remote_outputs_are_verified(kind):
    folder = open_folder(f"memory://verify/{kind}")
    try:
        assert single(verify(make_finished_output(folder, kind))).state == "finished"
        folder.delete("manifest.json")
        assert single(verify(folder)).state == "unfinished"
        folder.put("job.json", b"{}")
        assert single(verify(folder)).state == "damaged"
    finally:
        fsspec.filesystem("memory").rm("/verify", recursive=True)


@pytest.mark.parametrize("path", ["missing", "file", "memory://verify/missing"])
def test_missing_folder_or_file_raises_input_error(tmp_path, monkeypatch, path):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=path):
        verify(open_folder(path))


# --- missing and extra files ---


@every_kind
def test_output_without_manifest_is_unfinished(folder, kind):
    make_finished_output(folder, kind).delete("manifest.json")
    assert single(verify(folder)).state == "unfinished"


@every_kind
def test_each_missing_file_is_reported(folder, kind):
    make_finished_output(folder, kind)
    for path in output_paths(folder):
        if path != "manifest.json":
            with temporarily_changed(folder, path, os.unlink):
                verdict = single(verify(folder))
                assert verdict.state == "damaged"
                assert any(folder.uri(path) in problem for problem in verdict.problems)
    assert single(verify(folder)).state == "finished"


@every_kind
def test_output_without_job_json_is_damaged(folder, kind):
    make_unfinished_output(folder, kind).delete("job.json")
    assert single(verify(folder)).problems == (f"{folder.uri('job.json')} is missing",)
    shutil.rmtree(folder.uri())
    make_finished_output(folder, kind).delete("job.json")
    assert single(verify(folder)).problems == (f"{folder.uri('job.json')} is missing",)


@pytest.mark.parametrize(
    "remaining", ["manifest.json", "files.parquet", "model/weights.safetensors"]
)
def test_single_remaining_file_is_damage(folder, remaining):
    make_finished_output(folder, "bundle")
    for path in output_paths(folder):
        if path != remaining:
            folder.delete(path)
    assert single(verify(folder)).problems == (f"{folder.uri('job.json')} is missing",)


@pytest.mark.parametrize("extra", ["notes.txt", "a/photo.jpg", "matches/part-7.parquet"])
@pytest.mark.parametrize("make", [make_unfinished_output, make_finished_output])
def test_extra_file_is_reported(folder, make, extra):
    make(folder, "matches").put(extra, b"")
    verdict = single(verify(folder))
    assert verdict.state == "damaged"
    assert any(f"{folder.uri(extra)} does not belong" in problem for problem in verdict.problems)


@pytest.mark.parametrize(("kind", "path"), CHECKSUMMED_FILES)
def test_file_that_differs_from_recorded_checksum_is_reported(folder, kind, path):
    make_unfinished_output(folder, kind)
    folder.put(path, table_bytes(FILES))  # a valid checksummed file, but another one
    assert single(verify(folder)).problems == (f"{folder.uri(path)} was altered",)


def test_all_problems_are_reported(folder):
    make_finished_output(folder, "matches")
    altered = [f"matches/part-{number:05d}.parquet" for number in range(2)]
    for path in altered:
        data = folder.read(path)
        folder.put(path, data[:-1] + b"\0")
    problems = single(verify(folder)).problems
    assert [path for path in altered for problem in problems if path in problem] == altered


def test_damage_of_nested_output_does_not_affect_outer_output(folder):
    make_run_output(folder)
    part = "gallery/segments/00000/parts/00000000.parquet"
    folder.put(part, folder.read(part)[:-1] + b"\0")
    assert states(folder) == {
        ".": "finished",
        "gallery": "damaged",
        "index": "finished",
        "matches": "finished",
        "matches/queries": "finished",
    }


def test_replaced_nested_output_damages_outer_output(folder):
    make_run_output(folder)
    shutil.rmtree(folder.uri("gallery"))
    make_finished_output(folder.child("gallery"), "store", other="settings")
    actual = states(folder)
    assert (actual["."], actual["gallery"]) == ("damaged", "finished")


# --- files replaced by other contents ---


def replacement_contents(path, other):
    """Yield replacements of a file: garbage, truncated, `other`, bad JSON with valid checksum."""
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
            yield checksummed_json(
                {"format": FORMAT_VERSION, "kind": "store", "settings": {}, key: shape}
            )
    yield checksummed_parquet(pa.table({}))
    yield checksummed_parquet(pa.table({"path": ["x"], "more": [1]}))
    yield checksummed_parquet(FILES.schema.empty_table())


def overwrite_with(data):
    return lambda disk_path: Path(disk_path).write_bytes(data)


def replace_by_empty_folder(disk_path):
    os.unlink(disk_path)
    os.mkdir(disk_path)


def replace_by_nonempty_folder(disk_path):
    replace_by_empty_folder(disk_path)
    Path(disk_path, "x").write_bytes(b"x")


def replace_by_dangling_link(disk_path):
    os.unlink(disk_path)
    os.symlink("nowhere", disk_path)


def replace_by_link_to_itself(disk_path):
    os.unlink(disk_path)
    os.symlink(os.path.basename(disk_path), disk_path)


REPLACEMENTS = [
    replace_by_empty_folder,
    replace_by_nonempty_folder,
    replace_by_dangling_link,
    replace_by_link_to_itself,
]


@every_kind
def test_replaced_file_contents_in_finished_output_are_damage(folder, tmp_path, kind):
    make_finished_output(folder, kind)
    other = make_finished_output(LocalFolder(str(tmp_path / "other")), kind, other="settings")
    other.put("files.parquet", folder.read("files.parquet"))
    for path in output_paths(folder):
        original = folder.read(path)
        for data in replacement_contents(path, other.read(path)):
            Path(folder.uri(path)).write_bytes(data)
            verdict = single(verify(folder))
            assert data == original or verdict.state == "damaged", (path, data)
            assert data == original or all(folder.uri() in problem for problem in verdict.problems)
        folder.put(path, original)
    assert single(verify(folder)).state == "finished"


@every_kind
def test_replaced_file_contents_in_unfinished_output_never_look_finished(folder, kind):
    """Without a manifest another valid file cannot be detected, but `verify` must not fail."""
    make_unfinished_output(folder, kind)
    for path in output_paths(folder):
        original = folder.read(path)
        for data in replacement_contents(path, original):
            Path(folder.uri(path)).write_bytes(data)
            verdict = single(verify(folder))
            assert verdict.state != "finished"
            assert all(folder.uri() in problem for problem in verdict.problems), verdict
        folder.put(path, original)
    assert single(verify(folder)).state == "unfinished"


@every_kind
@pytest.mark.parametrize("make", [make_unfinished_output, make_finished_output])
@pytest.mark.parametrize("change", REPLACEMENTS)
def test_files_replaced_by_folders_or_links_are_damage(folder, kind, make, change):
    make(folder, kind)
    for path in output_paths(folder):
        with temporarily_changed(folder, path, change):
            verdict = verify(folder)[0]
            if make is make_finished_output and path != "manifest.json":
                assert verdict.state == "damaged", path
            assert make is make_finished_output or verdict.state != "finished"


def test_valid_manifest_with_empty_inventory_is_damaged(folder):
    """The checksums of manifest and inventory are valid, but the files are in no inventory."""
    make_finished_output(folder, "matches")
    manifest = finished_output.read_manifest(folder)
    inventory = checksummed_parquet(FILES.schema.empty_table())
    folder.put("files.parquet", inventory)
    values = {
        "format": FORMAT_VERSION,
        "kind": "matches",
        "counts": {},
        "job_sha256": manifest.job_sha256,
    }
    from hashlib import sha256

    values["files_sha256"] = sha256(inventory).hexdigest()
    folder.put("manifest.json", checksummed_json(values))
    verdict = single(verify(folder))
    assert verdict.state == "damaged"
    assert "does not belong there" in verdict.problems[0]
