"""Tests that sources skip and count hidden files, hidden folders and outputs of lookalike."""

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError
from retrieval.sources.detect import open_source
from retrieval.sources.folder import FolderSource
from retrieval.sources.vectors import open_vectors
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_json
from retrieval.storage.local import RemoteFolder, open_folder
from tests.retrieval.sources.test_webdataset import member, tar_of
from tests.retrieval.storage.outputs import make_finished_output, make_unfinished_output
from tests.retrieval.storage.s3 import new_prefix, options

HIDDEN_FILES = ("._a.jpg", "cats/._b.jpg", ".hidden.jpg", "cats/.hidden.jpg")
HIDDEN_FOLDERS = (".git", "cats/.ipynb_checkpoints", "@eaDir", "lost+found", ".Trash-1000",
                  "__MACOSX")  # fmt: skip


@pytest.fixture(params=["local", "remote"])
def folder(request):
    return request.getfixturevalue(request.param)


def list_ids(root, **options):
    return sorted(item.image_id for item in open_source(root, **options).items())


def labels_and_source(root):
    """Return labels by image_id, and the source, of a root."""
    source = open_source(root)
    return {item.image_id: item.label for item in source.items()}, source


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_hidden_files_and_folders_are_skipped_and_counted(folder):
    for name in ("a.jpg", "cats/b.jpg", "notes.txt", *HIDDEN_FILES):
        folder.put(name, b"x")
    for name in HIDDEN_FOLDERS:
        folder.put(f"{name}/x/c.jpg", b"x")
        folder.put(f"{name}/d.jpg", b"x")
    labels, source = labels_and_source(folder.root)
    assert labels == {"a.jpg": None, "cats/b.jpg": "cats"}
    assert source.skipped_count == 1 + len(HIDDEN_FILES) + len(HIDDEN_FOLDERS)
    assert "hidden files: 4 (such as " in source.notes()[0]
    assert "hidden folders: 6 (such as " in source.notes()[0]
    list(source.items())
    assert source.skipped_count == 1 + len(HIDDEN_FILES) + len(HIDDEN_FOLDERS)  # counters are reset


def test_no_notes_without_skipped_files(folder):
    folder.put("a.jpg", b"x")
    assert labels_and_source(folder.root)[1].notes() == ()


def test_hidden_root_is_listed(folder):
    folder.put(".photos/a.jpg", b"x")
    folder.put("@eaDir/cats/a.jpg", b"x")
    assert list_ids(f"{folder.root}/.photos") == ["a.jpg"]
    assert list_ids(f"{folder.root}/@eaDir") == ["cats/a.jpg"]


def test_check_reports_hidden_images_of_root_without_others(folder):
    folder.put("._a.jpg", b"x")
    folder.put(".git/a.jpg", b"x")
    with pytest.raises(
        InputError,
        match=r"no images \(skipped: hidden files: 1 \(such as \._a\.jpg\), hidden folders: 1",
    ):
        open_source(folder.root).check()


def test_path_list_may_contain_hidden_files(folder):
    for name in ("._a.jpg", ".git/b.jpg"):
        folder.put(name, b"x")
    folder.put("list.txt", b"._a.jpg\n.git/b.jpg\n")
    folder.put("list.csv", b"path\n._a.jpg\n.git/b.jpg\n")
    for name in ("list.txt", "list.csv"):
        assert list_ids(f"{folder.root}/{name}") == ["._a.jpg", ".git/b.jpg"]


def test_parquet_ids_may_be_hidden_names(folder):
    folder.put("x.parquet", parquet(image_id=[".hidden.jpg"], image=[b"x"]))
    assert list_ids(f"{folder.root}/x.parquet") == [".hidden.jpg"]


def test_hidden_tar_members_are_counted_and_give_no_labels(folder):
    names = ("./a.jpg", "./._a.jpg", "__MACOSX/._b.jpg", ".hidden/c.jpg", "cats/.ipynb/d.jpg")
    data = tar_of(*(member(name, b"x") for name in names), member("._a.cls", b"7"),
                  member("./a.cls", b"3"), member("notes.txt", b"x"))  # fmt: skip
    labels, source = labels_and_source(folder.put("x.tar", data))
    assert labels == {"x.tar/a.jpg": "3"}
    assert source.skipped_count == 6
    assert source.notes()[0].endswith("hidden files: 5 (such as ._a.cls)")


def test_hidden_tars_and_parquet_files_are_skipped(folder):
    folder.put("shards/0.tar", tar_of(member("a.jpg", b"x")))
    folder.put("shards/._0.tar", b"\0\5\x16\7")
    folder.put("rows/0.parquet", parquet(image=[b"x"]))
    folder.put("rows/._0.parquet", b"\0\5\x16\7")
    folder.put("rows/.ipynb_checkpoints/0.parquet", b"garbage")
    assert list_ids(f"{folder.root}/shards") == ["0.tar/a.jpg"]
    assert list_ids(f"{folder.root}/rows") == ["0.parquet/0"]
    assert list_ids(f"{folder.root}/shards/*.tar") == ["0.tar/a.jpg"]
    assert list_ids(f"{folder.root}/rows/**/*.parquet") == ["0.parquet/0"]
    folder.put("shards/.more/1.tar", tar_of(member("b.jpg", b"x")))
    assert list_ids(f"{folder.root}/shards/.more/*.tar") == ["1.tar/b.jpg"]
    assert list_ids(f"{folder.root}/shards/.m*/*.tar") == [".more/1.tar/b.jpg"]
    folder.remove("shards/0.tar")
    with pytest.raises(InputError, match=r"matches no file \(skipped: hidden files: "):
        open_source(f"{folder.root}/shards/*.tar")


@pytest.mark.parametrize("make", [make_unfinished_output, make_finished_output])
def test_output_among_photos_is_skipped(folder, make):
    folder.put("cats/a.jpg", b"x")
    make(open_folder(f"{folder.root}/cats/result"), "matches")
    folder.put("cats/result/pictures/map.png", b"x")
    folder.put("cats/result/deep/er/map.png", b"x")
    labels, source = labels_and_source(folder.root)
    assert labels == {"cats/a.jpg": "cats"}
    assert source.notes()[0] == (
        f"skipped in {folder.root}: folders that lookalike wrote: 1 (such as result)"
    )
    assert source.skipped_count == 1


def test_output_with_altered_job_json_is_skipped(folder):
    folder.put("a.jpg", b"x")
    make_finished_output(open_folder(f"{folder.root}/result"), "matches")
    folder.put("result/map.png", b"x")
    folder.put("result/job.json", b"garbage")  # the manifest still identifies the output
    assert list_ids(folder.root) == ["a.jpg"]


@pytest.mark.parametrize(
    "data", [b"{}", b"", b"[1]", b'{"kind": "Job", "format": 1, "settings": {}}']
)
def test_foreign_job_json_does_not_hide_photos(folder, data):
    for name in ("a.jpg", "cats/b.jpg"):
        folder.put(name, b"x")
    for name in ("job.json", "cats/job.json", "cats/manifest.json"):
        folder.put(name, data)
    labels, source = labels_and_source(folder.root)
    assert sorted(labels) == ["a.jpg", "cats/b.jpg"]
    assert source.skipped_count == 3


def test_tables_and_tars_in_outputs_are_skipped(folder):
    folder.put("rows/0.parquet", parquet(image=[b"x"]))
    folder.put("vectors/0.parquet", parquet(embedding=[[1.0, 2.0]]))
    folder.put("shards/0.tar", tar_of(member("a.jpg", b"x")))
    for name in ("rows", "vectors", "shards"):
        make_finished_output(open_folder(f"{folder.root}/{name}/result"), "store")
        folder.put(f"{name}/result/1.tar", b"garbage")
    assert (
        list_ids(f"{folder.root}/rows")
        == list_ids(f"{folder.root}/rows/**/*.parquet")
        == ["0.parquet/0"]
    )
    assert list_ids(f"{folder.root}/shards") == ["0.tar/a.jpg"]
    assert list_ids(f"{folder.root}/shards/**/*.tar") == ["0.tar/a.jpg"]
    vectors = open_vectors(f"{folder.root}/vectors")
    assert [item.image_id for item in vectors.items()] == ["0.parquet/0"]


def test_output_as_root_is_refused(folder):
    make_finished_output(open_folder(folder.root), "matches")
    folder.put("pictures/map.png", b"x")
    with pytest.raises(InputError, match="photos is a folder that lookalike wrote"):
        open_source(folder.root)
    assert list_ids(f"{folder.root}/pictures") == [
        "map.png"
    ]  # a folder inside an output may be the root


def test_folders_of_report_pages_are_skipped(folder):
    folder.put("a.jpg", b"x")
    for name in ("r_files/thumbnails/0000/000.jpg", "r_pictures/map.png", "my_files/b.jpg"):
        folder.put(name, b"x")
    for name in ("r_files", "r_pictures"):
        folder.put(f"{name}/report.json", checksummed_json({"pages": "x", "thumbnails": "y"}))
    folder.put("my_files/report.json", b"{}")
    assert list_ids(folder.root) == ["a.jpg", "my_files/b.jpg"]


def test_linked_output_is_skipped(local, tmp_path):
    local.put("a.jpg", b"x")
    folder = open_folder(str(tmp_path / "result"))
    transaction.claim_output(folder, "run", {})
    folder.put("matches/pictures/map.png", b"x")
    os.symlink(tmp_path / "result", f"{local.root}/link")
    assert list_ids(local.root) == ["a.jpg"]


def test_hidden_link_to_itself_is_counted_as_hidden_file(local):
    local.put("a.jpg", b"x")
    os.symlink(".circle", f"{local.root}/.circle")
    labels, source = labels_and_source(local.root)
    assert labels == {"a.jpg": None}
    assert source.skipped_count == 1


def test_unreadable_hidden_folder_is_skipped(local, monkeypatch):
    local.put("a.jpg", b"x")
    local.put("lost+found/b.jpg", b"x")
    original_scandir = os.scandir

    def scandir(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return original_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list_ids(local.root) == ["a.jpg"]


def test_pipe_named_job_json_is_not_opened(local):
    local.put("cats/a.jpg", b"x")
    os.mkfifo(f"{local.root}/cats/job.json")
    assert list_ids(local.root) == ["cats/a.jpg"]


def test_s3_bucket_skips_hidden_files_and_outputs(s3):
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    folder = RemoteFolder(new_prefix(), options(s3))
    for name in ("a.jpg", "._a.jpg", ".git/b.jpg", "cats/b.jpg", "cats/job.json"):
        folder.put(name, b"" if name.endswith("job.json") else b"x")
    make_unfinished_output(folder.child("result"), "matches").put("pictures/map.png", b"x")
    source = FolderSource(folder.uri(), folder.options)
    assert sorted(item.image_id for item in source.items()) == ["a.jpg", "cats/b.jpg"]
    assert source.skipped_count == 4
    assert "folders that lookalike wrote: 1 (such as result)" in source.notes()[0]
