"""Tests of writing outputs: claims, published manifests, and verification of existing files."""

import os
import shutil
from pathlib import Path

import pytest

from retrieval.core.errors import Damaged, Mismatch, StorageFailure, UsageError
from retrieval.core.records import FileRecord
from retrieval.core.schemas import MATCHES
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import LocalFolder, open_folder
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, operations
from tests.retrieval.storage.outputs import (
    PUT,
    VOUCHED,
    begin,
    flip,
    job,
    made,
    paths,
    rows_of,
    sha256,
)
from tests.trees import tree

every_kind = pytest.mark.parametrize("kind", PUT)


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


@pytest.fixture
def whole(folder):
    return made(folder, "matches", top_k=10)


def contents(folder):
    return tree(Path(folder.uri()), but=())


# --- claiming a folder ---


def test_an_empty_folder_is_claimed_by_job_json(folder):
    transaction.claim_output(folder, "store", {"top_k": 10})
    assert paths(folder) == ["job.json"]
    assert finished_output.read_settings(folder) == {"top_k": 10}
    assert parse_checksummed_json(folder.read("job.json"))["kind"] == "store"


def test_the_same_job_goes_on_with_what_is_there(folder):
    begin(folder, "store", a=1, b=2)
    before = contents(folder)
    transaction.claim_output(folder, "store", {"b": 2, "a": 1})
    assert contents(folder) == before


def test_another_job_is_refused_naming_what_differs_and_only_that(folder):
    begin(folder, "store", top_k=10, metric="cosine", engine={"name": "torch", "threads": 1})
    before = contents(folder)
    other = {"top_k": 5, "metric": "cosine", "engine": {"name": "torch", "threads": 2}, "seed": 1}
    with pytest.raises(Mismatch) as raised:
        transaction.claim_output(folder, "store", other)
    message = str(raised.value)
    assert folder.uri() in message
    assert "engine.threads was 1, is 2; seed was None, is 1; top_k was 10, is 5" in message
    assert "metric" not in message
    assert contents(folder) == before


def test_another_kind_or_format_is_refused(folder):
    begin(folder, "store")
    with pytest.raises(Mismatch, match=r"kind store and format 1, not index and 1"):
        transaction.claim_output(folder, "index", {})
    folder.put("job.json", checksummed_json({"format": 2, "kind": "store", "settings": {}}))
    with pytest.raises(Mismatch, match=r"kind store and format 2, not store and 1"):
        transaction.claim_output(folder, "store", {})


@every_kind
def test_overwrite_starts_anew(folder, kind):
    made(folder, kind, a=1)
    transaction.claim_output(folder, kind, {"a": 2}, overwrite=True)
    assert [entry.path for entry in folder.entries()] == ["job.json"]
    assert finished_output.read_settings(folder) == {"a": 2}


def test_overwrite_starts_anew_on_the_same_job_too(whole):
    transaction.claim_output(whole, "matches", {"top_k": 10}, overwrite=True)
    assert [entry.path for entry in whole.entries()] == ["job.json"]


def test_overwrite_that_keeps_equal_ones_removes_only_another_job(whole):
    before = contents(whole)
    transaction.claim_output(whole, "matches", {"top_k": 10}, overwrite=True, reuse_if_same=True)
    assert contents(whole) == before
    transaction.claim_output(whole, "matches", {"top_k": 5}, overwrite=True, reuse_if_same=True)
    assert [entry.path for entry in whole.entries()] == ["job.json"]


def test_overwrite_leaves_the_outputs_inside_alone(folder):
    job(folder)
    before = contents(folder)
    transaction.claim_output(folder, "run", {"top_k": 5}, overwrite=True)
    after = contents(folder)
    assert {path for path in before if "/" in path} == {path for path in after if "/" in path}
    assert {path for path in after if "/" not in path} == {"job.json"}
    assert all(before[path] == data for path, data in after.items() if path != "job.json")


def test_a_killed_overwrite_leaves_an_output_that_overwrite_takes(folder):
    def overwrite():
        transaction.claim_output(folder, "matches", {"top_k": 5}, overwrite=True)

    def kill(*moment):
        raise Killed

    kept = made(LocalFolder(folder.uri() + "-kept"), "matches", top_k=10).uri()
    shutil.copytree(kept, folder.uri())
    moments = operations(overwrite)
    assert len(moments) > 20
    for number in range(len(moments)):
        shutil.rmtree(folder.uri())
        shutil.copytree(kept, folder.uri())
        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            overwrite()
        if number > 4:  # the manifest is gone: nobody takes the remains for a finished output
            assert not finished_output.is_finished(folder)
        overwrite()
        assert [entry.path for entry in folder.entries()] == ["job.json"]


@pytest.mark.parametrize("foreign", ["photo.jpg", "a/b/photo.jpg", "matches/part-00000.parquet"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(folder, foreign, overwrite):
    folder.put(foreign, b"holidays")
    with pytest.raises(UsageError, match=f"holds files that are not lookalike's.*{foreign}"):
        transaction.claim_output(folder, "store", {}, overwrite=overwrite)
    assert contents(folder) == {foreign: b"holidays"}


@pytest.mark.parametrize("foreign", ["photo.jpg", "a/b/photo.jpg", "matches/part-0.parquet"])
def test_overwrite_refuses_an_output_into_which_something_else_was_laid(whole, foreign):
    whole.put(foreign, b"holidays")
    before = contents(whole)
    with pytest.raises(UsageError, match=f"holds files that are not lookalike's.*{foreign}"):
        transaction.claim_output(whole, "matches", {"top_k": 5}, overwrite=True)
    assert contents(whole) == before


def test_a_manifest_without_its_job_is_damage(whole):
    whole.delete("job.json")
    with pytest.raises((Damaged, UsageError)):
        transaction.claim_output(whole, "matches", {"top_k": 10})
    for path in paths(whole):
        if path != "manifest.json":
            whole.delete(path)
    with pytest.raises(Damaged, match=r"job\.json is missing"):
        transaction.claim_output(whole, "matches", {"top_k": 10})


def test_what_a_killed_first_put_left_does_not_count(folder):
    folder.put(".tmp-elsewhere-1-1-0", b"{")
    folder.put("run.json", b"{}")
    transaction.claim_output(folder, "store", {})
    assert finished_output.read_settings(folder) == {}


def test_an_altered_job_json_is_damage_not_another_job(folder):
    begin(folder, "store", top_k=10)
    data = folder.read("job.json")
    for position in range(0, len(data), 3):
        folder.put("job.json", flip(data, position, position % 8))
        with pytest.raises(Damaged, match=r"job\.json was altered"):
            transaction.claim_output(folder, "store", {"top_k": 10})
        with pytest.raises(Damaged, match=r"job\.json was altered"):
            finished_output.read_settings(folder)
    transaction.claim_output(folder, "store", {"top_k": 10}, overwrite=True)
    assert finished_output.read_settings(folder) == {"top_k": 10}


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_where_nothing_can_be_written_is_a_wrong_option(tmp_path, below):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(UsageError, match=r"--output .*/file.* cannot be written"):
        transaction.claim_output(open_folder(f"{tmp_path}/file{below}"), "store", {})
    assert (tmp_path / "file").read_bytes() == b"in the way"


def test_a_full_disk_at_the_start_is_told_with_its_reason(folder):
    def full(when, operation, path):
        raise OSError(28, "No space left on device")

    moments = operations(lambda: transaction.claim_output(folder.child("rehearsal"), "store", {}))
    for number in range(len(moments)):
        refusal = pytest.raises((UsageError, StorageFailure), match="No space left")
        with inject_faults(FailAt(number, full)), refusal:
            transaction.claim_output(folder.child(str(number)), "store", {})


def test_whoever_comes_second_keeps_what_is_there(folder):
    first, second = rows_of(MATCHES, 2), rows_of(MATCHES, 3)
    assert transaction.put_if_absent(folder, "a.parquet", first) == FileRecord(
        "a.parquet", 2, len(first), sha256(first)
    )
    assert transaction.put_if_absent(folder, "a.parquet", second) == FileRecord(
        "a.parquet", 2, len(first), sha256(first)
    )
    assert transaction.put_if_absent(folder, "a.faiss", b"12").rows is None


# --- finishing it ---


@every_kind
def test_a_manifest_tells_of_every_file(folder, kind):
    manifest = transaction.finish_output(
        begin(folder, kind), kind, {"rows": 5, "segments": 1, "shards": 1}
    )
    assert finished_output.read_manifest(folder, kind=kind) == manifest
    assert (manifest.kind, manifest.counts) == (kind, {"rows": 5, "segments": 1, "shards": 1})
    assert manifest.sha256 == sha256(folder.read("manifest.json"))
    assert sorted(manifest.files) == sorted(set(paths(folder)) - {"manifest.json", "files.parquet"})
    for path, record in manifest.files.items():
        data = finished_output.read_verified(folder, record)
        assert record == transaction.file_record(path, data)
        assert (record.size, record.sha256) == (len(data), sha256(data))


def test_records_that_are_known_are_not_read_again(folder):
    begin(folder, "matches")
    known = transaction.collect_records(folder)
    reads = operations(lambda: transaction.finish_output(folder, "matches", {}, known))
    looked_for = {path for _, operation, path in reads if operation == "read"}
    assert looked_for == {folder.uri("manifest.json")}
    first = folder.read("manifest.json")
    transaction.finish_output(folder, "matches", {})
    assert folder.read("manifest.json") == first


def test_what_an_earlier_run_left_altered_is_not_finished(folder):
    begin(folder, "matches")
    data = folder.read("matches/part-00000.parquet")
    folder.put("matches/part-00000.parquet", flip(data, len(data) // 2, 3))
    with pytest.raises(Damaged, match=r"part-00000\.parquet was altered"):
        transaction.finish_output(folder, "matches", {})
    assert not finished_output.is_finished(folder)


@pytest.mark.parametrize(("kind", "path"), VOUCHED)
def test_what_differs_from_its_checksum_in_another_file_is_not_finished(folder, kind, path):
    begin(folder, kind)
    folder.put(path, rows_of(MATCHES))  # sealed, but not what was there
    with pytest.raises(Damaged, match=f"{path} was altered"):
        transaction.finish_output(folder, kind, {})
    assert not finished_output.is_finished(folder)


def test_work_is_no_part_of_an_output_and_goes_when_it_is_finished(folder):
    begin(folder, "matches")
    folder.put("work/candidates/1.parquet", b"1")
    manifest = transaction.finish_output(folder, "matches", {})
    assert not any("work" in path for path in [*manifest.files, *paths(folder)])
    assert not os.path.exists(folder.uri("work"))
    folder.put("work/candidates/1.parquet", b"of a run that was killed before it cleared up")
    assert finished_output.read_manifest(folder) == manifest
    transaction.claim_output(folder, "matches", {})
    assert not os.path.exists(folder.uri("work"))


def test_an_output_inside_counts_by_its_manifest_alone(folder):
    manifest = finished_output.read_manifest(job(folder))
    assert set(manifest.files) == {
        "job.json",
        "gallery/manifest.json",
        "index/manifest.json",
        "matches/manifest.json",
    }


@pytest.mark.parametrize("inner", ["a", "queries"])
def test_each_output_inside_answers_for_those_inside_it(folder, inner):
    """Several, since the order of a set of names differs from process to process."""
    for number in range(5):
        for name in (f"{number}", f"{number}/{inner}"):
            transaction.claim_output(folder.child(name), "bundle", {})
            transaction.finish_output(folder.child(name), "bundle", {})
    own = [entry.path for entry in finished_output.list_output_files(folder)]
    assert own == [f"{number}/manifest.json" for number in range(5)]
