"""Tests that files of desktops and file systems are ignored in local and remote outputs."""

import shutil
import uuid
from pathlib import Path

import fsspec
import pytest

from retrieval.core.errors import UsageError
from retrieval.core.schemas import FORMAT_VERSION
from retrieval.storage import finished_output, transaction
from retrieval.storage.ignored_files import hidden_part, is_hidden, is_system_name
from retrieval.storage.local import LocalFolder, open_folder
from retrieval.storage.verify import verify
from tests.retrieval.storage.outputs import FILE_WRITERS, make_finished_output, make_run_output

SYSTEM_NAMES = [
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


@pytest.mark.parametrize("name", SYSTEM_NAMES)
def test_system_names_are_hidden(name):
    assert is_system_name(name)
    assert is_hidden(name)


@pytest.mark.parametrize(
    "name",
    ["photo.jpg", "_a.jpg", "DS_Store", "desktop.ini.jpg", "a.nfs12", "lost and found", ".", "..",
     "job.json", "a._b"],
)  # fmt: skip
def test_ordinary_names_are_not_hidden(name):
    assert not is_hidden(name)


def test_hidden_names_are_not_system_names():
    for name in (".git", ".hidden.jpg", ".tmp-host-1-2-3", ".gitignore"):
        assert is_hidden(name)
        assert not is_system_name(name)
    assert hidden_part("a/.git/b.jpg") == ".git"
    assert hidden_part("./a/../b.jpg") is None


def test_entries_skip_system_files_and_list_temporary_files(folder):
    expected = {"a/b.parquet", "a/.tmp-elsewhere-1-1-0"}
    for path in expected | {f"a/{name}" for name in SYSTEM_NAMES}:
        folder.put(path, b"x")
    assert {entry.path for entry in folder.entries()} == expected


def test_entries_skip_files_in_system_folders(folder):
    folder.put("a.parquet", b"1")
    for name in ("@eaDir", "lost+found", ".Trash-1000", ".ipynb_checkpoints"):
        folder.put(f"{name}/files/photo.jpg", b"x")
    assert [entry.path for entry in folder.entries()] == ["a.parquet"]


@pytest.mark.parametrize("kind", FILE_WRITERS)
def test_output_with_macos_companion_files_is_finished(folder, kind):
    """macOS writes companion files to disks that cannot store its extended attributes."""
    make_finished_output(folder, kind)
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


def test_manifest_of_resumed_output_excludes_companion_files(folder):
    transaction.claim_output(folder, "matches", {})
    FILE_WRITERS["matches"](folder)
    for path in ("._job.json", "matches/._part-00000.parquet", "matches/Thumbs.db", ".DS_Store"):
        folder.put(path, b"x")
    assert [verdict.state for verdict in verify(folder)] == ["unfinished"]
    manifest = transaction.finish_output(folder, "matches", {})
    assert not [path for path in manifest.files if hidden_part(path) or "Thumbs" in path]


def test_moved_and_copied_outputs_are_finished(tmp_path):
    make_run_output(LocalFolder(str(tmp_path / "out")))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    for name in ("copy", "moved"):
        for path in list((tmp_path / name).rglob("*")):
            (path.parent / f"._{path.name}").write_bytes(b"x")
        assert {verdict.state for verdict in verify(open_folder(f"{tmp_path}/{name}"))} == {
            "finished"
        }


def test_folder_of_system_files_can_be_claimed(folder):
    for name in SYSTEM_NAMES:
        folder.put(name, b"x")
    transaction.check_output_claim(folder, "store")
    transaction.claim_output(folder, "store", {"a": 1})
    assert finished_output.read_settings(folder) == {"a": 1}
    assert folder.read(".DS_Store") == b"x"


def test_folder_with_foreign_hidden_file_is_refused(folder):
    folder.put(".git/config", b"x")
    for claim in (
        lambda: transaction.check_output_claim(folder, "store"),
        lambda: transaction.claim_output(folder, "store", {}),
    ):
        with pytest.raises(UsageError, match=r"not lookalike's \(\.git/config\)"):
            claim()


@pytest.mark.parametrize("data", [b"{}", b'{"kind": "Job", "format": 1}', b"[]", b'"x"'])
@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_job_json_is_refused_and_kept(folder, data, overwrite):
    folder.put("job.json", data)
    for claim in (
        transaction.check_output_claim,
        lambda *args, **kwargs: transaction.claim_output(*args, {}, **kwargs),
    ):
        with pytest.raises(UsageError, match=r"not lookalike's \(job\.json\)"):
            claim(folder, "store", overwrite=overwrite)
    assert folder.read("job.json") == data
    assert not finished_output.is_output(folder)


def test_output_is_recognised_by_job_or_manifest(folder):
    make_finished_output(folder, "store")
    assert finished_output.is_output(folder)
    folder.put("job.json", b"garbage")
    assert finished_output.is_output(folder)
    folder.delete("manifest.json")
    assert not finished_output.is_output(folder)


def test_check_output_claim_writes_nothing(folder):
    transaction.check_output_claim(folder, "store")
    assert not list(folder.entries())
    make_finished_output(folder, "store")
    transaction.check_output_claim(folder, "store")
    with pytest.raises(Exception, match=f"kind store and format {FORMAT_VERSION}, not index"):
        transaction.check_output_claim(folder, "index")
    transaction.check_output_claim(folder, "index", overwrite=True)
    folder.put("photo.jpg", b"x")
    with pytest.raises(UsageError, match=r"photo\.jpg"):
        transaction.check_output_claim(folder, "index", overwrite=True)
    assert finished_output.is_finished(folder)


def test_output_inside_output_is_refused_except_its_stages(tmp_path):
    make_run_output(LocalFolder(str(tmp_path / "out")))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out/more", "out/gallery/more", "link/more"):
        with pytest.raises(UsageError, match="an output of lookalike"):
            transaction.check_output_claim(open_folder(f"{tmp_path}/{name}"), "bundle")
    transaction.check_output_claim(open_folder(f"{tmp_path}/out/gallery"), "store")
    assert finished_output.enclosing_output(f"{tmp_path}/out/page.html") == f"{tmp_path}/out"
    assert finished_output.enclosing_output(f"{tmp_path}/page.html") is None
    assert finished_output.enclosing_output("memory://somewhere/page.html") is None


def test_unwritable_folder_is_refused(tmp_path, monkeypatch):
    Path(tmp_path, "file").write_bytes(b"")
    Path(tmp_path, "dangling").symlink_to("missing")
    for name in ("file/out", "dangling/out"):
        with pytest.raises(UsageError, match="cannot be written"):
            transaction.check_output_claim(open_folder(f"{tmp_path}/{name}"), "store")
    monkeypatch.setattr(transaction.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"cannot be written \(Permission denied\)"):
        transaction.check_output_claim(open_folder(f"{tmp_path}/a/b"), "store")
