"""Tests of path lists in text, CSV and Parquet: choice of columns, and relative paths."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError, UsageError
from retrieval.sources import csv_rows
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.path_list import ListSource
from tests.retrieval.sources.contract import SourceContract


def encode_csv(columns):
    def cell(value):
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    encode_text = [",".join(columns)]
    encode_text += [",".join(map(cell, row)) for row in zip(*columns.values(), strict=True)]
    return ("\n".join(encode_text) + "\n").encode()


def encode_parquet(columns):
    sink = io.BytesIO()
    arrays = {name: values or pa.array([], pa.string()) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), sink)
    return sink.getvalue()


def encode_text(columns):
    (paths,) = columns.values()
    return "".join(f"{path}\n" for path in paths).encode()


ENCODERS = {"x.txt": encode_text, "x.csv": encode_csv, "x.parquet": encode_parquet}
tables = pytest.mark.parametrize("name", ["x.csv", "x.parquet"])


def make_list(folder, name, columns, **options):
    return ListSource(folder.put(name, ENCODERS[name](columns)), **options)


class ListContract(SourceContract):
    """The source contract for a list in the folder of its images."""

    name = ""
    has_other_files = False

    def make_source(self, folder, images, other_files=()):
        for name, data in images.items():
            folder.put(name, data)
        return make_list(folder, self.name, {"path": list(images)})

    def missing_source(self, folder):
        return ListSource(f"{folder.root}/{self.name}")


class TestText(ListContract):
    name = "x.txt"


class TestCsv(ListContract):
    name = "x.csv"


class TestParquet(ListContract):
    name = "x.parquet"


def test_blank_lines_crlf_and_byte_order_mark_are_stripped(local):
    local.put("a b.jpg", b"1")
    source = ListSource(local.put("x.TXT", b"\xef\xbb\xbfa b.jpg\r\n\r\n  \n/x/cats/b.jpg"))
    first, second = source.items()
    assert (first.image_id, first.path, first.size) == ("a b.jpg", f"{local.root}/a b.jpg", 1)
    assert (second.image_id, second.label, second.size) == ("/x/cats/b.jpg", "cats", None)


def test_non_utf8_path_is_escaped_and_readable(local):
    name = b"caf\xe9.jpg"
    Path(local.put("x", b"")).unlink()
    Path(os.fsdecode(os.fsencode(local.root) + b"/" + name)).write_bytes(b"1")
    (item,) = ListSource(local.put("x.txt", name + b"\n")).items()
    assert (item.image_id, item.size) == ("caf%E9.jpg", 1)
    with ItemReader() as reader:
        assert reader.read(item.path) == b"1"


@pytest.mark.parametrize(
    ("listed_path", "path"),
    [
        ("a.jpg", "{root}/a.jpg"),
        ("./cats/a.jpg", "{root}/cats/a.jpg"),
        ("../a.jpg", "{parent}/a.jpg"),
        ("/x/a.jpg", "/x/a.jpg"),
        ("file:///x/a.jpg", "/x/a.jpg"),
        ("file://localhost/x/a.jpg", "/x/a.jpg"),
        ("file:///x/a%20b%231.jpg", "/x/a b#1.jpg"),
        ("file:///x/%C3%B6%2520.jpg", "/x/ö%20.jpg"),
        ("file:///x/caf%E9.jpg", "/x/caf%E9.jpg"),  # not UTF-8: listings use the escaped name
        ("file:///x/50%.jpg", "/x/50%.jpg"),
        ("/x/a%20b%231.jpg", "/x/a%20b%231.jpg"),
        ("a%20b#1.jpg", "{root}/a%20b#1.jpg"),
        ("~/a.jpg", "/home/me/a.jpg"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("tar://a.jpg::/x/y.tar", "tar://a.jpg::/x/y.tar"),
    ],
)
def test_paths_are_resolved_against_list_folder(local, monkeypatch, listed_path, path):
    monkeypatch.setenv("HOME", "/home/me")
    (item,) = make_list(local, "x.txt", {"path": [listed_path]}).items()
    parent = str(Path(local.root).parent)
    assert item.path == path.format(root=local.root, parent=parent)
    assert item.image_id == listed_path


def test_file_uri_is_unquoted_unless_literal_file_exists(local):
    for name, data in (("a b#1.jpg", b"1"), ("c%20d.jpg", b"2"), ("ö.jpg", b"3")):
        local.put(name, data)
    uris = [f"file://{local.root}/{name}" for name in ("a%20b%231.jpg", "c%20d.jpg", "%C3%B6.jpg")]
    items = list(make_list(local, "x.txt", {"path": uris}).items())
    assert [item.size for item in items] == [1, 1, 1]
    with ItemReader() as reader:
        assert [reader.read(item.path) for item in items] == [b"1", b"2", b"3"]


def test_relative_path_of_remote_list_is_remote(remote):
    remote.put("cats/a.jpg", b"1")
    (item,) = make_list(remote, "x.txt", {"path": ["cats/a.jpg"]}).items()
    assert (item.path, item.size, item.mtime_ns) == (f"{remote.root}/cats/a.jpg", None, None)


def test_local_files_have_size_and_time_and_missing_files_none(local):
    os.utime(local.put("a.jpg", b"12"), ns=(1, 1_700_000_000_123_456_789))
    existing, missing = make_list(local, "x.txt", {"path": ["a.jpg", "missing.jpg"]}).items()
    assert (existing.size, existing.mtime_ns) == (2, 1_700_000_000_123_456_789)
    assert (missing.size, missing.mtime_ns, missing.problem) == (None, None, None)


@tables
@pytest.mark.parametrize(
    ("columns", "path"),
    [
        (("image", "url", "path"), "path"),
        (("note", "image", "url"), "url"),
        (("note", "file"), "file"),
        (("count", "photo", "note"), "photo"),
        (("label", "image_id", "photo"), "photo"),
        (("image_id", "label"), "image_id"),
    ],
)
def test_path_column_is_detected(local, name, columns, path):
    table = {
        column: [1, 2] if column == "count" else [f"{column}/1.jpg", f"{column}/2.jpg"]
        for column in columns
    }
    items = list(make_list(local, name, table).items())
    assert [item.path for item in items] == [
        f"{local.root}/{path}/{number}.jpg" for number in (1, 2)
    ]


@tables
def test_column_options_select_columns_and_refuse_missing_ones(local, name):
    table = {"path": ["a", "b"], "other": ["c", "d"], "key": ["007", "08"]}
    source = make_list(local, name, table, image_column="other", id_column="key")
    assert [(entry.image_id, entry.path) for entry in source.items()] == [
        ("007", f"{local.root}/c"), ("08", f"{local.root}/d"),
    ]  # fmt: skip
    assert source.columns().names == []
    for option, flag in (("image_column", "--image-column"), ("id_column", "--id-column")):
        source = make_list(local, name, table, **{option: "none"})
        for call in (lambda source=source: list(source.items()), source.check_columns):
            with pytest.raises(UsageError, match=f"{flag} none .*it has path, other, key"):
                call()


@tables
def test_labels_are_column_or_else_parent_folders(local, name):
    paths = ["cats/a.jpg", "b.jpg", "s3://x/dogs/c.jpg"]
    source = make_list(local, name, {"path": paths})
    assert [item.label for item in source.items()] == ["cats", None, "dogs"]
    source = make_list(local, name, {"path": paths, "label": ["007", None, "x"]})
    assert [item.label for item in source.items()] == ["007", None, "x"]
    source = make_list(local, name, {"path": paths, "image_id": ["1", "z/2", "3"]})
    assert [item.label for item in source.items()] == [None, "z", None]


@tables
@pytest.mark.parametrize("names", [("Path", "Label", "Image_ID"), ("PATH", "LABEL", "IMAGE_ID")])
def test_column_names_are_case_insensitive(local, name, names):
    table = dict(zip(names, (["c/a.jpg"], ["007"], ["00120"]), strict=True))
    source = make_list(local, name, {"note": ["x"], **table})
    (item,) = source.items()
    assert (item.image_id, item.path, item.label) == ("00120", f"{local.root}/c/a.jpg", "007")
    assert source.columns().names == ["note"]


def test_spaces_around_csv_names_and_values_are_stripped(local):
    data = b"path, label , price\na b.jpg, cat , 200\nb.jpg, dog, 99\n"
    source = ListSource(local.put("x.csv", data))
    assert source.columns() == pa.schema([("price", pa.int64())])
    items = [(Path(item.path).name, item.label, item.more) for item in source.items()]
    assert items == [("a b.jpg", "cat", (200,)), ("b.jpg", "dog", (99,))]


def test_values_with_leading_zeros_stay_text(local):
    table = {"path": ["a.jpg", "b.jpg"], "sku": ["00120", "120"], "long": ["9" * 20, "1"]}
    source = make_list(local, "x.csv", table)
    assert [item.more for item in source.items()] == [("00120", "9" * 20), ("120", "1")]


def test_utf16_text_list_is_refused(local):
    with pytest.raises(InputError, match=r"x\.txt is no text in UTF-8"):
        list(ListSource(local.put("x.txt", "a.jpg\nb.jpg\n".encode("utf-16"))).items())


@tables
def test_row_without_path_has_problem(local, name):
    table = {"path": ["a.jpg", None, None], "image_id": ["1", "2", None]}
    items = list(make_list(local, name, table).items())
    assert [item.image_id for item in items] == ["1", "2", "row 3 of the list"]
    assert [item.problem is None for item in items] == [True, False, False]


@tables
def test_extra_columns_become_metadata(local, name):
    table = {
        "path": ["a.jpg", "b.jpg"],
        "text": ["NA", None],
        "count": [1, None],
        "ratio": [1, 2.5],
        "good": [True, None],
        "size": [7, 8],
    }
    source = make_list(local, name, table)
    columns = source.columns()
    assert columns.names == ["text", "count", "ratio", "good"]
    assert columns.types == [pa.string(), pa.int64(), pa.float64(), pa.bool_()]
    assert [item.more for item in source.items()] == [("NA", 1, 1.0, True), (None, None, 2.5, None)]


@pytest.mark.parametrize(
    ("values", "expected_type"),
    [
        (["1", "2", ""], pa.int64()),
        (["1", "x"], pa.string()),
        (["1", "2.5", "nan"], pa.float64()),
        (["1", "true"], pa.bool_()),
        (["5", "true"], pa.string()),
        (["2026-01-02", "NA"], pa.date32()),
        (["2026-01-02", "2026-01-02 03:04:05"], pa.timestamp("us")),
        (["99999999999999999999"], pa.string()),  # not exactly representable as float64
        (["12345678901234567", "2.5"], pa.string()),
        (["9223372036854775807", "-1"], pa.int64()),
        (["00120", "7"], pa.string()),
        (["-007.5", "2"], pa.string()),
        (["0", "0.25", "10"], pa.float64()),
    ],
)
def test_inferred_csv_type_fits_all_values(local, values, expected_type, monkeypatch):
    monkeypatch.setattr(csv_rows, "_BLOCK", 100)  # each batch has a few rows
    paths = [f"{number:060d}.jpg" for number in range(len(values))]
    source = make_list(local, "x.csv", {"path": paths, "more": values})
    assert source.columns().types == [expected_type]
    assert len(list(source.items())) == len(values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as CSV"),
        (b"path,b\n1\n", "cannot be read as CSV"),
        (b"path\n\xff\xfe.jpg\n", "cannot be read as CSV"),
        (b"photos/a.jpg\nphotos/b.jpg\n", "begins with photos/a.jpg and has no header"),
        (b"path,path\na,b\n", "two columns path"),
        (b"x,y\n1,2\n", "no column of paths"),
        (b"path;label\na.jpg;cat\n", "is separated by ;, as 'path;label' shows"),
        (b"path\tlabel\na.jpg\tcat\n", "is separated by tabs"),
        ("path,label\na.jpg,cat\n".encode("utf-16"), "no text in UTF-8"),
    ],
)
def test_invalid_csv_list_is_refused_by_name(local, data, message):
    with pytest.raises(InputError, match=rf"photos/x\.csv .*{message}"):
        list(ListSource(local.put("x.csv", data)).items())


def test_invalid_parquet_file_is_refused_by_name(local):
    with pytest.raises(InputError, match=r"photos/x\.parquet cannot be read as Parquet"):
        list(ListSource(local.put("x.parquet", b"not Parquet")).items())


def test_nested_label_is_ignored_with_note(local):
    table = {"path": ["cats/a.jpg", "b.jpg"], "label": [["x"], ["y", "z"]]}
    source = ListSource(local.put("x.parquet", encode_parquet(table)))
    source.columns()
    (note,) = source.column_notes
    assert note.startswith(f"the column label of {local.root}/x.parquet holds list<")
    assert [item.label for item in source.items()] == [None, None]


@pytest.mark.parametrize("option", ["image_column", "id_column"])
def test_nested_path_and_id_columns_are_refused_by_name(local, option):
    table = {"path": ["a.jpg", "b.jpg"], "odd": [["x"], ["y"]]}
    source = ListSource(local.put("x.parquet", encode_parquet(table)), **{option: "odd"})
    with pytest.raises(
        InputError, match=r"the column odd of .*x\.parquet holds list<.*rename or drop"
    ):
        list(source.items())


def test_special_files_have_problems_and_are_not_opened(local):
    for name in ("a.jpg", "folder/b.jpg"):
        local.put(name, b"1")
    os.mkfifo(f"{local.root}/pipe.jpg")
    items = make_list(
        local, "x.txt", {"path": ["a.jpg", "pipe.jpg", "/dev/null", "folder"]}
    ).items()
    assert [item.problem for item in items] == [
        None, "it is a named pipe, not a file", "it is a device, not a file", None,
    ]  # fmt: skip
    with ItemReader() as reader:
        with pytest.raises(ValueError, match="named pipe"):
            reader.read(f"{local.root}/pipe.jpg")
        with pytest.raises(IsADirectoryError):
            reader.read(f"{local.root}/folder")


def test_modification_time_out_of_range_is_none(local, monkeypatch):
    local.put("a.jpg", b"1")
    original_stat = os.stat

    def stat_with_late_mtime(path, **options):
        info = original_stat(path, **options)
        fields = {name: getattr(info, name) for name in dir(info) if name.startswith("st_")}
        return SimpleNamespace(**{**fields, "st_mtime_ns": 13_569_465_600 * 10**9})

    source = make_list(local, "x.txt", {"path": ["a.jpg"]})
    monkeypatch.setattr(os, "stat", stat_with_late_mtime)
    (item,) = source.items()
    assert (item.size, item.mtime_ns) == (1, None)
