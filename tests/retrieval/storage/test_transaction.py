"""Tests of writing outputs: claims, published manifests, and verification of existing files."""

import os
import shutil
from pathlib import Path

import pytest

from retrieval.core.errors import Damaged, Mismatch, StorageFailure, UsageError
from retrieval.core.records import FileRecord
from retrieval.core.schemas import FORMAT_VERSION, MATCHES
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import LocalFolder, open_folder
from tests.file_tree import read_tree
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, record_operations
from tests.retrieval.storage.outputs import (
    CHECKSUMMED_FILES,
    FILE_WRITERS,
    flip_bit,
    make_finished_output,
    make_run_output,
    make_unfinished_output,
    output_paths,
    sha256,
    table_bytes,
)

every_kind = pytest.mark.parametrize("kind", FILE_WRITERS)


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


@pytest.fixture
def finished(folder):
    return make_finished_output(folder, "matches", top_k=10)


def contents(folder):
    return read_tree(Path(folder.uri()), exclude=())


# --- claim_output ---


def test_claim_writes_job_json(folder):
    transaction.claim_output(folder, "store", {"top_k": 10})
    assert output_paths(folder) == ["job.json"]
    assert finished_output.read_settings(folder) == {"top_k": 10}
    assert parse_checksummed_json(folder.read("job.json"))["kind"] == "store"


def test_claim_with_same_settings_keeps_existing_files(folder):
    make_unfinished_output(folder, "store", a=1, b=2)
    before = contents(folder)
    transaction.claim_output(folder, "store", {"b": 2, "a": 1})
    assert contents(folder) == before


def test_claim_with_other_settings_reports_only_differences(folder):
    make_unfinished_output(
        folder, "store", top_k=10, metric="cosine", engine={"name": "torch", "threads": 1}
    )
    before = contents(folder)
    other = {"top_k": 5, "metric": "cosine", "engine": {"name": "torch", "threads": 2}, "seed": 1}
    with pytest.raises(Mismatch) as raised:
        transaction.claim_output(folder, "store", other)
    message = str(raised.value)
    assert folder.uri() in message
    assert "engine.threads was 1, is 2; seed was None, is 1; top_k was 10, is 5" in message
    assert "metric" not in message
    assert contents(folder) == before


def test_claim_with_other_kind_or_format_is_refused(folder):
    current, other = FORMAT_VERSION, FORMAT_VERSION + 1
    make_unfinished_output(folder, "store")
    with pytest.raises(Mismatch, match=f"kind store and format {current}, not index and {current}"):
        transaction.claim_output(folder, "index", {})
    job = checksummed_json({"format": other, "kind": "store", "settings": {}})
    folder.put("job.json", job)
    with pytest.raises(Mismatch, match=f"kind store and format {other}, not store and {current}"):
        transaction.claim_output(folder, "store", {})


@every_kind
def test_overwrite_removes_existing_output(folder, kind):
    make_finished_output(folder, kind, a=1)
    transaction.claim_output(folder, kind, {"a": 2}, overwrite=True)
    assert [entry.path for entry in folder.entries()] == ["job.json"]
    assert finished_output.read_settings(folder) == {"a": 2}


def test_overwrite_with_same_settings_removes_existing_output(finished):
    transaction.claim_output(finished, "matches", {"top_k": 10}, overwrite=True)
    assert [entry.path for entry in finished.entries()] == ["job.json"]


def test_reuse_if_same_removes_only_output_with_other_settings(finished):
    before = contents(finished)
    transaction.claim_output(finished, "matches", {"top_k": 10}, overwrite=True, reuse_if_same=True)
    assert contents(finished) == before
    transaction.claim_output(finished, "matches", {"top_k": 5}, overwrite=True, reuse_if_same=True)
    assert [entry.path for entry in finished.entries()] == ["job.json"]


def test_overwrite_keeps_nested_outputs(folder):
    make_run_output(folder)
    before = contents(folder)
    transaction.claim_output(folder, "run", {"top_k": 5}, overwrite=True)
    after = contents(folder)
    assert {path for path in before if "/" in path} == {path for path in after if "/" in path}
    assert {path for path in after if "/" not in path} == {"job.json"}
    assert all(before[path] == data for path, data in after.items() if path != "job.json")


def test_killed_overwrite_can_be_repeated(folder):
    def overwrite():
        transaction.claim_output(folder, "matches", {"top_k": 5}, overwrite=True)

    def kill(*event):
        raise Killed

    original = make_finished_output(
        LocalFolder(folder.uri() + "-original"), "matches", top_k=10
    ).uri()
    shutil.copytree(original, folder.uri())
    events = record_operations(overwrite)
    assert len(events) > 20
    for number in range(len(events)):
        shutil.rmtree(folder.uri())
        shutil.copytree(original, folder.uri())
        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            overwrite()
        if number > 4:  # the manifest is deleted: the remaining files are not a finished output
            assert not finished_output.is_finished(folder)
        overwrite()
        assert [entry.path for entry in folder.entries()] == ["job.json"]


@pytest.mark.parametrize("foreign", ["photo.jpg", "a/b/photo.jpg", "matches/part-00000.parquet"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_foreign_files_is_never_changed(folder, foreign, overwrite):
    folder.put(foreign, b"holidays")
    with pytest.raises(UsageError, match=f"holds files that are not lookalike's.*{foreign}"):
        transaction.claim_output(folder, "store", {}, overwrite=overwrite)
    assert contents(folder) == {foreign: b"holidays"}


@pytest.mark.parametrize("foreign", ["photo.jpg", "a/b/photo.jpg", "matches/part-0.parquet"])
def test_overwrite_refuses_output_with_foreign_files(finished, foreign):
    finished.put(foreign, b"holidays")
    before = contents(finished)
    with pytest.raises(UsageError, match=f"holds files that are not lookalike's.*{foreign}"):
        transaction.claim_output(finished, "matches", {"top_k": 5}, overwrite=True)
    assert contents(finished) == before


def test_claim_of_output_without_job_json_is_refused(finished):
    finished.delete("job.json")
    with pytest.raises((Damaged, UsageError)):
        transaction.claim_output(finished, "matches", {"top_k": 10})
    for path in output_paths(finished):
        if path != "manifest.json":
            finished.delete(path)
    with pytest.raises(Damaged, match=r"job\.json is missing"):
        transaction.claim_output(finished, "matches", {"top_k": 10})


def test_claim_ignores_temporary_files_and_run_json(folder):
    folder.put(".tmp-elsewhere-1-1-0", b"{")
    folder.put("run.json", b"{}")
    transaction.claim_output(folder, "store", {})
    assert finished_output.read_settings(folder) == {}


def test_altered_job_json_is_damage(folder):
    make_unfinished_output(folder, "store", top_k=10)
    data = folder.read("job.json")
    for position in range(0, len(data), 3):
        folder.put("job.json", flip_bit(data, position, position % 8))
        with pytest.raises(Damaged, match=r"job\.json was altered"):
            transaction.claim_output(folder, "store", {"top_k": 10})
        with pytest.raises(Damaged, match=r"job\.json was altered"):
            finished_output.read_settings(folder)
    transaction.claim_output(folder, "store", {"top_k": 10}, overwrite=True)
    assert finished_output.read_settings(folder) == {"top_k": 10}


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_unwritable_output_raises_usage_error(tmp_path, below):
    (tmp_path / "file").write_bytes(b"existing file")
    with pytest.raises(UsageError, match=r"--output .*/file.* cannot be written"):
        transaction.claim_output(open_folder(f"{tmp_path}/file{below}"), "store", {})
    assert (tmp_path / "file").read_bytes() == b"existing file"


def test_claim_on_full_disk_reports_reason(folder):
    def raise_disk_full(when, operation, path):
        raise OSError(28, "No space left on device")

    events = record_operations(
        lambda: transaction.claim_output(folder.child("rehearsal"), "store", {})
    )
    for number in range(len(events)):
        refusal = pytest.raises((UsageError, StorageFailure), match="No space left")
        with inject_faults(FailAt(number, raise_disk_full)), refusal:
            transaction.claim_output(folder.child(str(number)), "store", {})


def test_put_if_absent_keeps_existing_file(folder):
    first, second = table_bytes(MATCHES, 2), table_bytes(MATCHES, 3)
    assert transaction.put_if_absent(folder, "a.parquet", first) == FileRecord(
        "a.parquet", 2, len(first), sha256(first)
    )
    assert transaction.put_if_absent(folder, "a.parquet", second) == FileRecord(
        "a.parquet", 2, len(first), sha256(first)
    )
    assert transaction.put_if_absent(folder, "a.faiss", b"12").rows is None


# --- finish_output ---


@every_kind
def test_manifest_records_every_file(folder, kind):
    manifest = transaction.finish_output(
        make_unfinished_output(folder, kind), kind, {"rows": 5, "segments": 1, "shards": 1}
    )
    assert finished_output.read_manifest(folder, kind=kind) == manifest
    assert (manifest.kind, manifest.counts) == (kind, {"rows": 5, "segments": 1, "shards": 1})
    assert manifest.sha256 == sha256(folder.read("manifest.json"))
    assert sorted(manifest.files) == sorted(
        set(output_paths(folder)) - {"manifest.json", "files.parquet"}
    )
    for path, record in manifest.files.items():
        data = finished_output.read_verified(folder, record)
        assert record == transaction.file_record(path, data)
        assert (record.size, record.sha256) == (len(data), sha256(data))


def test_finish_does_not_reread_files_with_given_records(folder):
    make_unfinished_output(folder, "matches")
    records = transaction.collect_records(folder)
    events = record_operations(lambda: transaction.finish_output(folder, "matches", {}, records))
    paths_read = {path for _, operation, path in events if operation == "read"}
    assert paths_read == {folder.uri("manifest.json")}
    expected = folder.read("manifest.json")
    transaction.finish_output(folder, "matches", {})
    assert folder.read("manifest.json") == expected


def test_finish_refuses_altered_file(folder):
    make_unfinished_output(folder, "matches")
    data = folder.read("matches/part-00000.parquet")
    folder.put("matches/part-00000.parquet", flip_bit(data, len(data) // 2, 3))
    with pytest.raises(Damaged, match=r"part-00000\.parquet was altered"):
        transaction.finish_output(folder, "matches", {})
    assert not finished_output.is_finished(folder)


@pytest.mark.parametrize(("kind", "path"), CHECKSUMMED_FILES)
def test_finish_refuses_file_that_differs_from_recorded_checksum(folder, kind, path):
    make_unfinished_output(folder, kind)
    folder.put(path, table_bytes(MATCHES))  # a valid checksummed file, but another one
    with pytest.raises(Damaged, match=f"{path} was altered"):
        transaction.finish_output(folder, kind, {})
    assert not finished_output.is_finished(folder)


def test_work_folder_is_removed_and_not_recorded(folder):
    make_unfinished_output(folder, "matches")
    folder.put("work/candidates/1.parquet", b"1")
    manifest = transaction.finish_output(folder, "matches", {})
    assert not any("work" in path for path in [*manifest.files, *output_paths(folder)])
    assert not os.path.exists(folder.uri("work"))
    folder.put("work/candidates/1.parquet", b"left by a killed run")
    assert finished_output.read_manifest(folder) == manifest
    transaction.claim_output(folder, "matches", {})
    assert not os.path.exists(folder.uri("work"))


def test_nested_outputs_are_recorded_by_manifest(folder):
    manifest = finished_output.read_manifest(make_run_output(folder))
    assert set(manifest.files) == {
        "job.json",
        "gallery/manifest.json",
        "index/manifest.json",
        "matches/manifest.json",
    }


@pytest.mark.parametrize("inner", ["a", "queries"])
def test_outputs_nested_twice_are_recorded_by_their_parent(folder, inner):
    """Five outputs, since the iteration order of a set differs between processes."""
    for number in range(5):
        for name in (f"{number}", f"{number}/{inner}"):
            transaction.claim_output(folder.child(name), "bundle", {})
            transaction.finish_output(folder.child(name), "bundle", {})
    actual = [entry.path for entry in finished_output.list_output_files(folder)]
    assert actual == [f"{number}/manifest.json" for number in range(5)]
