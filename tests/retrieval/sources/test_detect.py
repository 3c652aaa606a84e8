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


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def tar():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    return sink.getvalue()


FILES = {
    "photos/a/b.jpg": b"1",
    "photos/a/c.tar": b"2",
    "tars/x/1.tar": tar(),
    "tars/x/2.TAR": tar(),
    "tars/notes.txt": b"3",
    "rows/1.parquet": parquet(image=[b"1"]),
    "rows/2.parquet": parquet(image=[b"1"]),
    "other/notes.md": b"4",
    "list.txt": b"photos/a/b.jpg",
    "list.CSV": b"path\nphotos/a/b.jpg\n",
    "list.parquet": parquet(path=["photos/a/b.jpg"]),
    "both.pq": parquet(path=["photos/a/b.jpg"], image=[b"1"]),
    "lists/1.parquet": parquet(path=["a.jpg"]),
    "two.parquet": parquet(left=[b"1"], right=[b"1"]),
    "numbers.parquet": parquet(a=[1]),
    "x.tar.gz": b"\x1f\x8b0000",
    "[a]*/b.jpg": b"1",
    "[b].tar": tar(),
}


@pytest.fixture(params=["local", "remote"])
def place(request):
    place = request.getfixturevalue(request.param)
    for name, data in FILES.items():
        place.put(name, data)
    return place


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
def test_what_is_there_decides(place, name, kind):
    assert type(open_source(f"{place.root}/{name}")) is kind


@pytest.mark.parametrize(
    "name", ["photos", "tars", "rows", "list.txt", "list.CSV", "list.parquet", "[a]*", "[b].tar"]
)
def test_each_offers_an_image(place, name):
    source = open_source(f"{place.root}/{name}")
    source.check()
    assert source.root == f"{place.root}/{name}"


def test_a_column_tells_images_from_paths(place):
    both = f"{place.root}/both.pq"
    assert isinstance(open_source(both, image_column="path"), ListSource)
    assert isinstance(open_source(both, image_column="image"), ParquetSource)
    right = open_source(f"{place.root}/two.parquet", image_column="right")
    assert next(right.items()).path.startswith("parquet://right/")


@pytest.mark.parametrize("name", ["both.pq", "rows", "list.CSV", "list.parquet", "rows/*"])
@pytest.mark.parametrize("option", ["image_column", "id_column"])
def test_a_column_that_is_not_there_is_refused_naming_those_there_are(place, name, option):
    way = "--" + option.replace("_", "-")
    with pytest.raises(UsageError, match=f"{way} nothing .*it has .*(path|image)"):
        open_source(f"{place.root}/{name}", **{option: "nothing"})


def test_sources_without_columns_take_no_notice_of_them(place):
    for name in ("photos", "tars", "list.txt"):
        open_source(f"{place.root}/{name}", image_column="a", id_column="b").check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "photos/nowhere does not exist; name"),
        ("nowhere.tar", "photos/nowhere.tar does not exist; name"),
        ("nowhere*.tar", "matches no file"),
        ("photos/a/b.jpg", "is not a folder and no list"),
        ("other/*", "matches files that are neither"),
        ("lists", "names several"),
        ("numbers.parquet", "neither images nor paths"),
    ],
)
def test_what_cannot_be_a_source_is_refused_by_name(place, name, message):
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        open_source(f"{place.root}/{name}")


def test_secrets_stay_out_of_what_is_printed(local):
    for name, data in FILES.items():
        local.put(name, data)
    for name in ("photos", "tars", "rows", "list.txt"):
        source = open_source(f"{local.root}/{name}", options={"secret": "hunter2"})
        assert "hunter2" not in repr(source)
