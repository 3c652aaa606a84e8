"""Tests that listings skip and count hidden files, hidden folders and outputs of lookalike."""

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
from tests.retrieval.storage.outputs import begin, made
from tests.retrieval.storage.s3 import new_prefix, options

HIDDEN = ("._a.jpg", "cats/._b.jpg", ".hidden.jpg", "cats/.hidden.jpg")
HIDDEN_FOLDERS = (".git", "cats/.ipynb_checkpoints", "@eaDir", "lost+found", ".Trash-1000",
                  "__MACOSX")  # fmt: skip


@pytest.fixture(params=["local", "remote"])
def place(request):
    return request.getfixturevalue(request.param)


def ids(root, **options):
    return sorted(item.image_id for item in open_source(root, **options).items())


def listed(root):
    source = open_source(root)
    return {item.image_id: item.label for item in source.items()}, source


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_hidden_files_and_folders_are_no_images_and_no_classes_but_others(place):
    for name in ("a.jpg", "cats/b.jpg", "notes.txt", *HIDDEN):
        place.put(name, b"x")
    for name in HIDDEN_FOLDERS:
        place.put(f"{name}/x/c.jpg", b"x")
        place.put(f"{name}/d.jpg", b"x")
    labels, source = listed(place.root)
    assert labels == {"a.jpg": None, "cats/b.jpg": "cats"}
    assert source.others == 1 + len(HIDDEN) + len(HIDDEN_FOLDERS)
    assert "hidden files: 4 (such as " in source.notes()[0]
    assert "hidden folders: 6 (such as " in source.notes()[0]
    list(source.items())
    assert source.others == 1 + len(HIDDEN) + len(HIDDEN_FOLDERS)  # counted anew each time


def test_nothing_is_said_where_nothing_is_passed_over(place):
    place.put("a.jpg", b"x")
    assert listed(place.root)[1].notes() == ()


def test_a_root_that_is_hidden_itself_is_read(place):
    place.put(".photos/a.jpg", b"x")
    place.put("@eaDir/cats/a.jpg", b"x")
    assert ids(f"{place.root}/.photos") == ["a.jpg"]
    assert ids(f"{place.root}/@eaDir") == ["cats/a.jpg"]


def test_a_root_with_nothing_but_hidden_images_says_so(place):
    place.put("._a.jpg", b"x")
    place.put(".git/a.jpg", b"x")
    with pytest.raises(
        InputError,
        match=r"no images \(passed over: hidden files: 1 \(such as \._a\.jpg\), hidden folders: 1",
    ):
        open_source(place.root).check()


def test_a_list_that_names_a_hidden_file_reads_it(place):
    for name in ("._a.jpg", ".git/b.jpg"):
        place.put(name, b"x")
    place.put("list.txt", b"._a.jpg\n.git/b.jpg\n")
    place.put("list.csv", b"path\n._a.jpg\n.git/b.jpg\n")
    for name in ("list.txt", "list.csv"):
        assert ids(f"{place.root}/{name}") == ["._a.jpg", ".git/b.jpg"]


def test_a_row_of_parquet_may_have_a_hidden_name(place):
    place.put("x.parquet", parquet(image_id=[".hidden.jpg"], image=[b"x"]))
    assert ids(f"{place.root}/x.parquet") == [".hidden.jpg"]


def test_members_that_are_hidden_are_others_and_give_no_labels(place):
    names = ("./a.jpg", "./._a.jpg", "__MACOSX/._b.jpg", ".hidden/c.jpg", "cats/.ipynb/d.jpg")
    data = tar_of(*(member(name, b"x") for name in names), member("._a.cls", b"7"),
                  member("./a.cls", b"3"), member("notes.txt", b"x"))  # fmt: skip
    labels, source = listed(place.put("x.tar", data))
    assert labels == {"x.tar/a.jpg": "3"}
    assert source.others == 6
    assert source.notes()[0].endswith("hidden files: 5 (such as ._a.jpg)")


def test_hidden_containers_are_passed_over(place):
    place.put("shards/0.tar", tar_of(member("a.jpg", b"x")))
    place.put("shards/._0.tar", b"\0\5\x16\7")
    place.put("rows/0.parquet", parquet(image=[b"x"]))
    place.put("rows/._0.parquet", b"\0\5\x16\7")
    place.put("rows/.ipynb_checkpoints/0.parquet", b"rubbish")
    assert ids(f"{place.root}/shards") == ["0.tar/a.jpg"]
    assert ids(f"{place.root}/rows") == ["0.parquet/0"]
    assert ids(f"{place.root}/shards/*.tar") == ["0.tar/a.jpg"]
    assert ids(f"{place.root}/rows/**/*.parquet") == ["0.parquet/0"]
    place.put("shards/.more/1.tar", tar_of(member("b.jpg", b"x")))
    assert ids(f"{place.root}/shards/.more/*.tar") == ["1.tar/b.jpg"]
    assert ids(f"{place.root}/shards/.m*/*.tar") == [".more/1.tar/b.jpg"]
    place.remove("shards/0.tar")
    with pytest.raises(InputError, match=r"matches no file \(passed over: hidden files: "):
        open_source(f"{place.root}/shards/*.tar")


@pytest.mark.parametrize("make", [begin, made])
def test_an_output_among_photos_is_passed_over_finished_or_not(place, make):
    place.put("cats/a.jpg", b"x")
    make(open_folder(f"{place.root}/cats/result"), "matches")
    place.put("cats/result/pictures/map.png", b"x")
    place.put("cats/result/deep/er/map.png", b"x")
    labels, source = listed(place.root)
    assert labels == {"cats/a.jpg": "cats"}
    assert source.notes()[0] == (
        f"passed over in {place.root}: folders that lookalike wrote: 1 (such as result)"
    )
    assert source.others == 1


def test_an_output_whose_job_was_altered_is_still_one(place):
    place.put("a.jpg", b"x")
    made(open_folder(f"{place.root}/result"), "matches")
    place.put("result/map.png", b"x")
    place.put("result/job.json", b"rubbish")  # its manifest is left
    assert ids(place.root) == ["a.jpg"]


@pytest.mark.parametrize(
    "data", [b"{}", b"", b"[1]", b'{"kind": "Job", "format": 1, "settings": {}}']
)
def test_a_job_json_of_somebody_else_hides_no_photos(place, data):
    for name in ("a.jpg", "cats/b.jpg"):
        place.put(name, b"x")
    for name in ("job.json", "cats/job.json", "cats/manifest.json"):
        place.put(name, data)
    labels, source = listed(place.root)
    assert sorted(labels) == ["a.jpg", "cats/b.jpg"]
    assert source.others == 3


def test_tables_and_tars_in_an_output_are_no_input(place):
    place.put("rows/0.parquet", parquet(image=[b"x"]))
    place.put("vectors/0.parquet", parquet(embedding=[[1.0, 2.0]]))
    place.put("shards/0.tar", tar_of(member("a.jpg", b"x")))
    for name in ("rows", "vectors", "shards"):
        made(open_folder(f"{place.root}/{name}/result"), "store")
        place.put(f"{name}/result/1.tar", b"rubbish")
    assert ids(f"{place.root}/rows") == ids(f"{place.root}/rows/**/*.parquet") == ["0.parquet/0"]
    assert ids(f"{place.root}/shards") == ["0.tar/a.jpg"]
    assert ids(f"{place.root}/shards/**/*.tar") == ["0.tar/a.jpg"]
    vectors = open_vectors(f"{place.root}/vectors")
    assert [item.image_id for item in vectors.items()] == ["0.parquet/0"]


def test_an_output_as_the_root_is_refused(place):
    made(open_folder(place.root), "matches")
    place.put("pictures/map.png", b"x")
    with pytest.raises(InputError, match="photos is a folder that lookalike wrote"):
        open_source(place.root)
    assert ids(f"{place.root}/pictures") == ["map.png"]  # named outright


def test_the_folders_beside_a_page_of_report_are_passed_over(place):
    place.put("a.jpg", b"x")
    for name in ("r_files/thumbnails/0000/000.jpg", "r_pictures/map.png", "my_files/b.jpg"):
        place.put(name, b"x")
    for name in ("r_files", "r_pictures"):
        place.put(f"{name}/report.json", checksummed_json({"pages": "x", "thumbnails": "y"}))
    place.put("my_files/report.json", b"{}")
    assert ids(place.root) == ["a.jpg", "my_files/b.jpg"]


def test_an_output_that_a_link_leads_to_is_passed_over(local, tmp_path):
    local.put("a.jpg", b"x")
    folder = open_folder(str(tmp_path / "result"))
    transaction.claim_output(folder, "run", {})
    folder.put("matches/pictures/map.png", b"x")
    os.symlink(tmp_path / "result", f"{local.root}/link")
    assert ids(local.root) == ["a.jpg"]


def test_a_hidden_link_that_leads_in_a_circle_is_a_hidden_file(local):
    local.put("a.jpg", b"x")
    os.symlink(".circle", f"{local.root}/.circle")
    labels, source = listed(local.root)
    assert labels == {"a.jpg": None}
    assert source.others == 1


def test_a_hidden_folder_that_cannot_be_opened_is_no_hindrance(local, monkeypatch):
    local.put("a.jpg", b"x")
    local.put("lost+found/b.jpg", b"x")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert ids(local.root) == ["a.jpg"]


def test_a_pipe_named_job_json_does_not_hang(local):
    local.put("cats/a.jpg", b"x")
    os.mkfifo(f"{local.root}/cats/job.json")
    assert ids(local.root) == ["cats/a.jpg"]


def test_a_bucket_is_listed_alike(s3):
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    folder = RemoteFolder(new_prefix(), options(s3))
    for name in ("a.jpg", "._a.jpg", ".git/b.jpg", "cats/b.jpg", "cats/job.json"):
        folder.put(name, b"" if name.endswith("job.json") else b"x")
    begin(folder.child("result"), "matches").put("pictures/map.png", b"x")
    source = FolderSource(folder.uri(), folder.options)
    assert sorted(item.image_id for item in source.items()) == ["a.jpg", "cats/b.jpg"]
    assert source.others == 4
    assert "folders that lookalike wrote: 1 (such as result)" in source.notes()[0]
