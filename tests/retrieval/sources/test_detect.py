"""Tests of source detection, and of the errors for paths that are no source."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError, UsageError
from retrieval.sources.detect import open_source
from retrieval.sources.folder import FolderSource
from retrieval.sources.parquet import ParquetSource
from retrieval.sources.path_list import ListSource
from retrieval.sources.webdataset import TarSource


def parquet_bytes(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def tar_bytes():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    return sink.getvalue()


FILES = {
    "photos/a/b.jpg": b"1",
    "photos/a/c.tar": b"2",
    "tars/x/1.tar": tar_bytes(),
    "tars/x/2.TAR": tar_bytes(),
    "tars/notes.txt": b"3",
    "rows/1.parquet": parquet_bytes(image=[b"1"]),
    "rows/2.parquet": parquet_bytes(image=[b"1"]),
    "other/notes.md": b"4",
    "list.txt": b"photos/a/b.jpg",
    "list.CSV": b"path\nphotos/a/b.jpg\n",
    "list.parquet": parquet_bytes(path=["photos/a/b.jpg"]),
    "both.pq": parquet_bytes(path=["photos/a/b.jpg"], image=[b"1"]),
    "lists/1.parquet": parquet_bytes(path=["a.jpg"]),
    "two.parquet": parquet_bytes(left=[b"1"], right=[b"1"]),
    "numbers.parquet": parquet_bytes(a=[1]),
    "x.tar.gz": b"\x1f\x8b0000",
    "[a]*/b.jpg": b"1",
    "[b].tar": tar_bytes(),
}


@pytest.fixture(params=["local", "remote"])
def folder(request):
    folder = request.getfixturevalue(request.param)
    for name, data in FILES.items():
        folder.put(name, data)
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("photos", FolderSource),
        ("photos/", FolderSource),
        ("other", FolderSource),
        ("tars", TarSource),
        ("tars/x/1.tar", TarSource),
        ("tars/*/*.tar", TarSource),
        ("tars/x/[12].tar", TarSource),
        ("x.tar.gz", TarSource),
        ("[b].tar", TarSource),
        ("rows", ParquetSource),
        ("rows/1.parquet", ParquetSource),
        ("rows/?.parquet", ParquetSource),
        ("both.pq", ParquetSource),
        ("two.parquet", ParquetSource),
        ("list.txt", ListSource),
        ("list.CSV", ListSource),
        ("list.parquet", ListSource),
        ("[a]*", FolderSource),
    ],
)
def test_source_kind_is_detected_from_files(folder, name, kind):
    assert type(open_source(f"{folder.root}/{name}")) is kind


@pytest.mark.parametrize(
    "name", ["photos", "tars", "rows", "list.txt", "list.CSV", "list.parquet", "[a]*", "[b].tar"]
)
def test_each_detected_source_lists_images(folder, name):
    source = open_source(f"{folder.root}/{name}")
    source.check()
    assert source.root == f"{folder.root}/{name}"


def test_image_column_selects_source_kind(folder):
    path = f"{folder.root}/both.pq"
    assert isinstance(open_source(path, image_column="path"), ListSource)
    assert isinstance(open_source(path, image_column="image"), ParquetSource)
    right = open_source(f"{folder.root}/two.parquet", image_column="right")
    assert next(right.items()).path.startswith("parquet://right/")


@pytest.mark.parametrize("name", ["both.pq", "rows", "list.CSV", "list.parquet", "rows/*"])
@pytest.mark.parametrize("option", ["image_column", "id_column"])
def test_missing_column_is_refused_with_existing_columns(folder, name, option):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UsageError, match=f"{flag} missing .*it has .*(path|image)"):
        open_source(f"{folder.root}/{name}", **{option: "missing"})


def test_sources_without_columns_ignore_column_options(folder):
    for name in ("photos", "tars", "list.txt"):
        open_source(f"{folder.root}/{name}", image_column="a", id_column="b").check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "photos/missing does not exist; specify"),
        ("missing.tar", "photos/missing.tar does not exist; specify"),
        ("missing*.tar", "matches no file"),
        ("photos/a/b.jpg", "is neither a folder, a list nor"),
        ("other/*", "matches files that are neither"),
        ("lists", "names several"),
        ("numbers.parquet", "no column of images or paths"),
    ],
)
def test_path_that_is_no_source_is_refused_by_name(folder, name, message):
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        open_source(f"{folder.root}/{name}")


def test_repr_of_sources_excludes_secrets(local):
    for name, data in FILES.items():
        local.put(name, data)
    for name in ("photos", "tars", "rows", "list.txt"):
        source = open_source(f"{local.root}/{name}", options={"secret": "hunter2"})
        assert "hunter2" not in repr(source)
