"""Tests that files left by desktops and file systems are ignored in outputs, on every store."""

import shutil
import uuid
from pathlib import Path

import fsspec
import pytest

from retrieval.core.errors import UsageError
from retrieval.storage import finished_output, transaction
from retrieval.storage.ignored_files import hidden_part, is_hidden, is_system_name
from retrieval.storage.local import LocalFolder, open_folder
from retrieval.storage.verify import verify
from tests.retrieval.storage.outputs import PUT, job, made

SYSTEM = [
    ".DS_Store", "._photo.jpg", "._.DS_Store", "Thumbs.db", "thumbs.db", "Desktop.ini", "Icon\r",
    ".nfs000000000012ab34", ".fuse_hidden0000ab01", ".~lock.matches.csv#", ".directory",
    "lost+found", "@eaDir", ".Trash", ".Trash-1000", "__MACOSX", "$RECYCLE.BIN",
    ".ipynb_checkpoints",
]  # fmt: skip


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    if request.param == "local":
        yield LocalFolder(str(tmp_path / "out"))
        return
    root = f"memory://{uuid.uuid4()}/out"
    yield open_folder(root)
    system = fsspec.filesystem("memory")
    for path in system.find(root):
        system.rm_file(path)


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_name_is_hidden(name):
    assert is_system_name(name)
    assert is_hidden(name)


@pytest.mark.parametrize(
    "name",
    ["photo.jpg", "_a.jpg", "DS_Store", "desktop.ini.jpg", "a.nfs12", "lost and found", ".", "..",
     "job.json", "a._b"],
)  # fmt: skip
def test_other_names_are_not(name):
    assert not is_hidden(name)


def test_a_hidden_name_is_no_system_name_unless_it_is_known():
    for name in (".git", ".hidden.jpg", ".tmp-host-1-2-3", ".gitignore"):
        assert is_hidden(name)
        assert not is_system_name(name)
    assert hidden_part("a/.git/b.jpg") == ".git"
    assert hidden_part("./a/../b.jpg") is None


def test_entries_hold_none_and_still_hold_temporary_files(folder):
    ours = {"a/b.parquet", "a/.tmp-elsewhere-1-1-0"}
    for path in ours | {f"a/{name}" for name in SYSTEM}:
        folder.put(path, b"x")
    assert {entry.path for entry in folder.entries()} == ours


def test_what_lies_in_a_system_folder_is_absent_too(folder):
    folder.put("a.parquet", b"1")
    for name in ("@eaDir", "lost+found", ".Trash-1000", ".ipynb_checkpoints"):
        folder.put(f"{name}/files/photo.jpg", b"x")
    assert [entry.path for entry in folder.entries()] == ["a.parquet"]


@pytest.mark.parametrize("kind", PUT)
def test_a_copy_with_a_companion_beside_every_file_is_finished(folder, kind):
    """As macOS copies to a disk that has no room for its attributes."""
    made(folder, kind)
    manifest = finished_output.read_manifest(folder)
    for entry in list(folder.entries()):
        head, slash, name = entry.path.rpartition("/")
        folder.put(f"{head}{slash}._{name}", b"\0\5\x16\7")
        folder.put(f"{head}{slash}.DS_Store", b"x")
    (verdict,) = verify(folder)
    assert (verdict.state, verdict.problems) == ("finished", ())
    assert finished_output.read_manifest(folder) == manifest
    transaction.claim_output(folder, kind, {})
    assert finished_output.read_manifest(folder) == manifest
    transaction.claim_output(folder, kind, {"other": 1}, overwrite=True)
    assert finished_output.read_settings(folder) == {"other": 1}


def test_an_unfinished_one_with_companions_goes_on_and_names_none_of_them(folder):
    transaction.claim_output(folder, "matches", {})
    PUT["matches"](folder)
    for path in ("._job.json", "matches/._part-00000.parquet", "matches/Thumbs.db", ".DS_Store"):
        folder.put(path, b"x")
    assert [verdict.state for verdict in verify(folder)] == ["unfinished"]
    manifest = transaction.finish_output(folder, "matches", {})
    assert not [path for path in manifest.files if hidden_part(path) or "Thumbs" in path]


def test_a_job_moved_or_copied_is_finished_all_through(tmp_path):
    job(LocalFolder(str(tmp_path / "out")))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    for name in ("copy", "moved"):
        for path in list((tmp_path / name).rglob("*")):
            (path.parent / f"._{path.name}").write_bytes(b"x")
        assert {verdict.state for verdict in verify(open_folder(f"{tmp_path}/{name}"))} == {
            "finished"
        }


def test_a_folder_that_holds_only_such_files_is_empty(folder):
    for name in SYSTEM:
        folder.put(name, b"x")
    transaction.check_output_claim(folder, "store")
    transaction.claim_output(folder, "store", {"a": 1})
    assert finished_output.read_settings(folder) == {"a": 1}
    assert folder.read(".DS_Store") == b"x"


def test_a_folder_that_holds_a_hidden_file_of_somebody_is_not(folder):
    folder.put(".git/config", b"x")
    for claim in (
        lambda: transaction.check_output_claim(folder, "store"),
        lambda: transaction.claim_output(folder, "store", {}),
    ):
        with pytest.raises(UsageError, match=r"not lookalike's \(\.git/config\)"):
            claim()


@pytest.mark.parametrize("data", [b"{}", b'{"kind": "Job", "format": 1}', b"[]", b'"x"'])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_job_json_of_somebody_else_is_neither_ours_nor_removed(folder, data, overwrite):
    folder.put("job.json", data)
    for claim in (
        transaction.check_output_claim,
        lambda *a, **k: transaction.claim_output(*a, {}, **k),
    ):
        with pytest.raises(UsageError, match=r"not lookalike's \(job\.json\)"):
            claim(folder, "store", overwrite=overwrite)
    assert folder.read("job.json") == data
    assert not finished_output.is_output(folder)


def test_an_output_is_told_by_its_job_or_its_manifest(folder):
    made(folder, "store")
    assert finished_output.is_output(folder)
    folder.put("job.json", b"rubbish")
    assert finished_output.is_output(folder)
    folder.delete("manifest.json")
    assert not finished_output.is_output(folder)


def test_a_claim_is_checked_without_writing(folder):
    transaction.check_output_claim(folder, "store")
    assert not list(folder.entries())
    made(folder, "store")
    transaction.check_output_claim(folder, "store")
    with pytest.raises(Exception, match="kind store and format 1, not index"):
        transaction.check_output_claim(folder, "index")
    transaction.check_output_claim(folder, "index", overwrite=True)
    folder.put("photo.jpg", b"x")
    with pytest.raises(UsageError, match=r"photo\.jpg"):
        transaction.check_output_claim(folder, "index", overwrite=True)
    assert finished_output.is_finished(folder)


def test_an_output_in_an_output_is_refused_but_for_those_that_belong_there(tmp_path):
    job(LocalFolder(str(tmp_path / "out")))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out/more", "out/gallery/more", "link/more"):
        with pytest.raises(UsageError, match="an output of lookalike"):
            transaction.check_output_claim(open_folder(f"{tmp_path}/{name}"), "bundle")
    transaction.check_output_claim(open_folder(f"{tmp_path}/out/gallery"), "store")
    assert finished_output.enclosing_output(f"{tmp_path}/out/page.html") == f"{tmp_path}/out"
    assert finished_output.enclosing_output(f"{tmp_path}/page.html") is None
    assert finished_output.enclosing_output("memory://somewhere/page.html") is None


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path, monkeypatch):
    Path(tmp_path, "file").write_bytes(b"")
    Path(tmp_path, "nowhere").symlink_to("gone")
    for name in ("file/out", "nowhere/out"):
        with pytest.raises(UsageError, match="cannot be written"):
            transaction.check_output_claim(open_folder(f"{tmp_path}/{name}"), "store")
    monkeypatch.setattr(transaction.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"cannot be written \(Permission denied\)"):
        transaction.check_output_claim(open_folder(f"{tmp_path}/a/b"), "store")
