"""Tests of Parquet sources: ids, labels, metadata, and that listing does not read the images."""

import datetime as dt
import decimal
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError, UsageError
from retrieval.sources import item_reader
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.parquet import ParquetSource
from tests.retrieval.sources.contract import SourceContract


def parquet_bytes(table, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, sink, **options)
    return sink.getvalue()


def items_of(folder, table, **options):
    return list(ParquetSource(folder.put("x.parquet", parquet_bytes(table)), **options).items())


IMAGES = pa.array([b"1", b"2", b"3"])


class TestFile(SourceContract):
    """The source contract for a single file with a column image_id."""

    has_other_files = False

    def make_source(self, folder, images, other_files=()):
        table = {
            "image_id": pa.array(list(images), pa.string()),
            "bytes": pa.array(images.values(), pa.binary()),
            "more": pa.array(range(len(images))),
        }
        return ParquetSource(folder.put("x.parquet", parquet_bytes(table, row_group_size=4)))

    def missing_source(self, folder):
        return ParquetSource(f"{folder.root}/x.parquet")


class TestFolder(SourceContract):
    """The source contract for a folder of Hugging Face files, without an id column."""

    def make_source(self, folder, images, other_files=()):
        for name, data in images.items():
            struct = pa.array([{"bytes": data, "path": "elsewhere.jpg"}])
            folder.put(f"{name}.parquet", parquet_bytes({"picture": struct}))
        if not images:
            empty = pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            folder.put("empty.pq", parquet_bytes({"picture": empty}))
        for name in other_files:
            folder.put(name, b"x")
        return ParquetSource(folder.root)

    def missing_source(self, folder):
        return ParquetSource(folder.root)

    def expected_id(self, name):
        return f"{name}.parquet/0"


def test_ids_without_id_column_are_file_and_row(local):
    items = items_of(local, {"image": IMAGES})
    assert [item.image_id for item in items] == [f"x.parquet/{row}" for row in range(3)]
    assert [item.place for item in items] == [0, 1, 2]
    assert items[2].path == f"parquet://image/2::{local.root}/x.parquet"
    assert {(item.size, item.label) for item in items} == {(None, None)}
    assert {item.mtime_ns for item in items} == {os.stat(f"{local.root}/x.parquet").st_mtime_ns}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["b", "a", "007"], ["b", "a", "007"]),
        ([3, 1, 2], ["3", "1", "2"]),
        (["b", None, ""], ["b", "x.parquet/1", "x.parquet/2"]),
    ],
)
def test_id_column_is_read_as_text(local, ids, expected):
    for column, option in (("image_id", None), ("key", "key")):
        items = items_of(local, {"image": IMAGES, column: ids}, id_column=option)
        assert [item.image_id for item in items] == expected


def test_struct_field_as_id_column(local):
    table = {"image": pa.array([{"bytes": b"1", "path": "cats/a.jpg"}, {"bytes": b"2"}])}
    items = items_of(local, table, id_column="image.path")
    assert [item.image_id for item in items] == ["cats/a.jpg", "x.parquet/1"]
    with pytest.raises(UsageError, match=r"--id-column image\.name"):
        items_of(local, table, id_column="image.name")


@pytest.mark.parametrize(
    "table",
    [
        {"image": IMAGES, "thumbnail": IMAGES},
        {"anything": IMAGES, "name": ["a", "b", "c"]},
        {"large": IMAGES.cast(pa.large_binary())},
        {"picture": pa.array([{"bytes": b"1"}, {"bytes": b"2"}, {"bytes": b"3"}])},
    ],
)
def test_image_column_is_detected(local, table):
    items = items_of(local, table)
    with ItemReader() as reader:
        assert [reader.read(item.path, item.place) for item in items] == [b"1", b"2", b"3"]


def test_image_column_must_be_given_if_ambiguous(local):
    table = {"left": IMAGES, "right": pa.array([b"4", b"5", b"6"])}
    with pytest.raises(InputError, match=r"--image-column \(columns: left, right\)"):
        items_of(local, table)
    assert items_of(local, table, image_column="right")[0].path.startswith("parquet://right/0::")
    with pytest.raises(UsageError, match=r"--image-column middle .*it has left, right"):
        items_of(local, table, image_column="middle")
    with pytest.raises(UsageError, match=r"--id-column name .*it has left, right"):
        items_of(local, table, image_column="left", id_column="name")
    with pytest.raises(InputError, match="holds no bytes"):
        items_of(local, {"left": IMAGES, "text": ["a", "b", "c"]}, image_column="text")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["cat", None, ""]), ["cat", None, None]),
        (pa.array([1, 2, None]), ["1", "2", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
)
def test_labels_are_read_as_text(local, labels, expected):
    assert [item.label for item in items_of(local, {"image": IMAGES, "label": labels})] == expected


@pytest.mark.parametrize("names", [["cat", "dog"], {"0": "cat", "1": "dog"}])
def test_hugging_face_class_labels_are_mapped_to_names(local, names):
    feature = {"names": names, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"image": IMAGES, "label": [1, -1, 0]}).replace_schema_metadata(metadata)
    assert [item.label for item in items_of(local, table)] == ["dog", None, "cat"]


@pytest.mark.parametrize(
    "metadata", ["", "[]", "{}", '{"info": null}', '{"info": {"features": []}}']
)
def test_invalid_hugging_face_metadata_is_ignored(local, metadata):
    table = pa.table({"image": IMAGES, "label": [1, 2, 3]})
    items = items_of(local, table.replace_schema_metadata({"huggingface": metadata}))
    assert [item.label for item in items] == ["1", "2", "3"]


def test_class_names_of_missing_column_are_ignored(local):
    feature = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"image": IMAGES}).replace_schema_metadata(metadata)
    assert [item.label for item in items_of(local, table)] == [None, None, None]


def test_class_names_are_keyed_by_number_not_by_order(local):
    feature = {"names": {"2": "dog", "1": "cat"}, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"image": IMAGES, "label": [1, 2, 7]}).replace_schema_metadata(metadata)
    assert [item.label for item in items_of(local, table)] == ["cat", "dog", "7"]


NESTED_COLUMNS = [
    pa.array([["a"], ["b", "c"], None]),
    pa.array([[1], [2], [3]]),
    pa.array([[1], [2], [3]], pa.list_(pa.int8(), 1)),
    pa.array([{"name": "a"}, {"name": "b"}, None]),
    pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    pa.array([[["a"]], [[]], None], pa.list_(pa.list_(pa.string()))),
]


@pytest.mark.parametrize("column", NESTED_COLUMNS, ids=lambda column: str(column.type))
def test_nested_label_is_ignored_with_note_and_nested_id_is_refused(local, column):
    path = local.put(
        "x.parquet", parquet_bytes({"image": IMAGES, "label": column, "more": [1, 2, 3]})
    )
    source = ParquetSource(path)
    assert source.columns().names == ["more"]
    (note,) = source.column_notes
    type_name = str(column.type).partition("<")[0]  # Parquet renames nested fields
    assert note.startswith(f"the column label of {path} holds {type_name}<")
    assert "which is no label" in note
    assert [(item.label, item.more) for item in source.items()] == [
        (None, (number,)) for number in (1, 2, 3)
    ]
    source = ParquetSource(
        local.put("y.parquet", parquet_bytes({"image": IMAGES, "image_id": column}))
    )
    with pytest.raises(InputError, match=r"the column image_id of .*y\.parquet holds .*rename"):
        list(source.items())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([b"cat", None, b""]), ["cat", None, None]),
        (pa.array([1.0, float("nan"), 2.5]), ["1", None, "2.5"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.nulls(3), [None] * 3),
        (pa.array([7, None, 8], pa.uint8()).dictionary_encode(), ["7", None, "8"]),
        (
            pa.array([bytes(16), None, bytes(15) + b"\1"], pa.uuid()),
            ["00000000-0000-0000-0000-000000000000", None, "00000000-0000-0000-0000-000000000001"],
        ),
    ],
    ids=lambda column: str(getattr(column, "type", "")),
)
def test_labels_of_uncommon_types_are_read_as_text(local, column, expected):
    items = items_of(local, {"image": IMAGES, "label": column}, image_column="image")
    assert [item.label for item in items] == expected


def test_labels_that_are_not_utf8_are_refused(local):
    table = {"image": IMAGES, "label": pa.array([b"cat", b"\xff", b"dog"])}
    message = r"the column label of .*x\.parquet holds binary, which cannot be read as string"
    with pytest.raises(InputError, match=message):
        items_of(local, table, image_column="image")


@pytest.mark.parametrize(
    ("first_type", "second_type", "expected_type", "values"),
    [
        (pa.int8(), pa.int16(), pa.int16(), [1, 300]),
        (pa.int16(), pa.int8(), pa.int16(), [1, 100]),
        (pa.uint8(), pa.int8(), pa.int16(), [200, -1]),
        (pa.int64(), pa.float64(), pa.float64(), [1, 2.5]),
        (pa.int64(), pa.string(), pa.string(), [1, "x"]),
        (pa.null(), pa.int64(), pa.string(), [None, 5]),
        (pa.bool_(), pa.int64(), pa.string(), [True, 5]),
        (pa.date32(), pa.string(), pa.string(), [dt.date(2026, 1, 2), "x"]),
        (pa.float32(), pa.float64(), pa.float64(), [0.5, 0.1]),
    ],
)
def test_column_types_of_files_are_unified(local, first_type, second_type, expected_type, values):
    for name, column, value in (("a", first_type, values[0]), ("b", second_type, values[1])):
        array = pa.array([value], column)
        local.put(f"{name}.parquet", parquet_bytes({"image": [name.encode()], "more": array}))
    source = ParquetSource(local.root)
    assert source.columns() == pa.schema([("more", expected_type)])
    expected_values = values
    if expected_type == pa.string():
        expected_values = [None if value is None else str(value).lower() for value in values]
    assert [item.more for item in source.items()] == [(value,) for value in expected_values]


@pytest.mark.parametrize("value", [["a"], 1 << 60])
def test_column_without_common_type_is_refused_by_name(local, value):
    local.put("a.parquet", parquet_bytes({"image": [b"1"], "more": [0.5]}))
    local.put(
        "b.parquet",
        parquet_bytes({"image": [b"2"], "more": [value if value != 1 << 60 else value + 1]}),
    )
    with pytest.raises(
        InputError, match=r"the column more of .*b\.parquet holds .*cannot be read as"
    ):
        list(ParquetSource(local.root).items())


def test_named_pipe_has_problem(local):
    local.put("b.parquet", parquet_bytes({"image": [b"1"], "more": [7]}))
    os.mkfifo(f"{local.root}/a.parquet")
    source = ParquetSource(local.root)
    assert source.columns().names == ["more"]
    pipe, image = source.items()
    assert (pipe.image_id, pipe.problem) == ("a.parquet", "it is a named pipe, not a file")
    assert (pipe.more, image.more) == ((None,), (7,))


def test_footers_are_read_once_for_columns(local, monkeypatch):
    for number in range(5):
        local.put(f"{number}.parquet", parquet_bytes({"image": [b"1"], "more": [number]}))
    opened = []
    original = pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda *args, **kwargs: opened.append(args) or original(*args, **kwargs)
    )
    source = ParquetSource(local.root)
    source.columns()
    assert len(list(source.items())) == 5
    assert len(opened) == 1 + 5 + 5  # label of the first file, columns of 5, rows of 5


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 1 << 40, -(1 << 40)], pa.timestamp("s")),
        pa.array([0, 1 << 62, -(1 << 62)], pa.timestamp("ms")),
        pa.array([0, 1 << 50, -(1 << 50)], pa.timestamp("ms", "UTC")),
        pa.array([0, 1 << 62, -(1 << 62)], pa.timestamp("us", "+02:00")),
        pa.array([0, 1 << 30, -(1 << 30)], pa.date32()),
        pa.array([0, 1 << 60, -(1 << 60)], pa.int64()).cast(pa.date64(), safe=False),
    ],
    ids=lambda column: str(column.type),
)
def test_timestamps_out_of_calendar_range_are_null(local, column):
    path = local.put("x.parquet", parquet_bytes({"image": IMAGES, "seen": column}))
    items = [item.more[0] for item in ParquetSource(path).items()]
    assert items[0] is not None
    assert items[1:] == [None, None]


def test_timestamps_of_unknown_time_zone_are_utc(local):
    column = pa.array([0, 1, None], pa.timestamp("s", "Nonsense/Zone"))
    items = items_of(local, {"image": IMAGES, "seen": column})
    assert items[1].more == (dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC),)


def test_only_scalar_columns_become_metadata(local):
    timestamp = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    table = {
        "image": IMAGES,
        "name": ["a", "", None],
        "count": pa.array([1, 2, None], pa.int16()),
        "price": pa.array([decimal.Decimal("1.50"), None, None]),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "good": [True, False, None],
        "day": pa.array([timestamp.date()] * 3),
        "when": pa.array([timestamp] * 3, pa.timestamp("ns", "UTC")),
        "half": pa.array([1.5, 2.5, None], pa.float16()),
        "list": [[1], [2], []],
        "struct": [{"a": 1}] * 3,
        "thumbnail": IMAGES,
        "row": [7, 8, 9],
        "path": ["p", "q", "r"],
    }
    source = ParquetSource(local.put("x.parquet", parquet_bytes(table)))
    assert dict(zip(source.columns().names, source.columns().types, strict=True)) == {
        "name": pa.string(), "count": pa.int16(), "price": pa.float64(), "kind": pa.string(),
        "good": pa.bool_(), "day": pa.date32(), "when": pa.timestamp("us", "UTC"),
        "half": pa.float32(),
    }  # fmt: skip
    first, second, third = source.items()
    assert first.more == ("a", 1, 1.5, "x", True, timestamp.date(), timestamp, 1.5)
    assert second.more[:5] == ("", 2, None, "y", False)
    assert third.more == (None, None, None, "x", None, timestamp.date(), timestamp, None)


def test_missing_column_in_later_file_yields_nulls(local):
    local.put("a.parquet", parquet_bytes({"image": IMAGES, "more": [1, 2, 3]}))
    local.put("b.parquet", parquet_bytes({"image": IMAGES, "other": [1, 2, 3]}))
    source = ParquetSource(local.root)
    assert source.columns().names == ["more"]
    assert [item.more for item in source.items()] == [(1,), (2,), (3,), *[(None,)] * 3]


def test_listing_does_not_read_image_column(local, monkeypatch):
    requested = []
    original = pq.ParquetFile.iter_batches

    def record_columns(self, *args, **options):
        requested.append(options["columns"])
        return original(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record_columns)
    assert len(items_of(local, {"image": IMAGES, "label": ["a", "b", "c"]})) == 3
    assert len(items_of(local, {"image": IMAGES})) == 3
    assert requested == [["label"]]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000])
def test_invalid_parquet_file_is_refused_by_name(local, data):
    source = ParquetSource(local.put("x.parquet", data))
    for call in (lambda: list(source.items()), source.columns):
        with pytest.raises(InputError, match=r"photos/x\.parquet cannot be read as Parquet"):
            call()


def test_duplicate_column_names_are_refused(local):
    table = pa.table([IMAGES, pa.array([1, 2, 3]), pa.array([1, 2, 3])], ["image", "a", "a"])
    with pytest.raises(InputError, match="two columns a"):
        items_of(local, table)


# --- reading ---


@pytest.fixture
def numbered_rows(local):
    table = {"image": pa.array([f"{row}".encode() for row in range(500)])}
    path = local.put("x.parquet", parquet_bytes(table, row_group_size=200))
    return path, list(ParquetSource(path).items())


@pytest.mark.parametrize(
    "order",
    [
        range(500), range(499, -1, -1), [0, 499, 0, 250, 249, 3], [*range(16, 32), *range(16)],
        [199, 200, 199, 400, 399],
    ],
)  # fmt: skip
def test_rows_are_read_in_any_order(numbered_rows, order):
    with ItemReader() as reader:
        for row in order:
            assert reader.read(numbered_rows[1][row].path) == f"{row}".encode()


def test_nearly_ordered_rows_are_read_in_single_pass(numbered_rows, monkeypatch):
    starts = []
    original = pq.ParquetFile.iter_batches

    def record_row_groups(self, *args, **options):
        starts.append(options["row_groups"])
        return original(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record_row_groups)
    with ItemReader() as reader:
        for first in range(0, 200, 10):
            for row in range(first + 9, first - 1, -1):
                assert reader.read(numbered_rows[1][row].path) == f"{row}".encode()
            assert len(reader._open._kept) <= item_reader._KEPT_BATCHES
    assert starts == [[0]]


def test_null_image_missing_row_and_missing_column_raise(local):
    path = local.put("x.parquet", parquet_bytes({"image": pa.array([None, b"2"])}))
    with ItemReader() as reader:
        for uri, message in (
            (f"parquet://image/0::{path}", r"row 0 .* no image \(null\)"),
            (f"parquet://image/9::{path}", "no row 9"),
            (f"parquet://other/0::{path}", "no column other"),
        ):
            with pytest.raises(ValueError, match=message):
                reader.read(uri)
        assert reader.read(f"parquet://image/1::{path}") == b"2"


def test_damaged_file_raises_value_error_without_retries(numbered_rows, monkeypatch):
    monkeypatch.setattr("retrieval.storage.retry.wait", lambda seconds: pytest.fail("waited"))
    path, items = numbered_rows
    data = bytearray(Path(path).read_bytes())
    data[4:400] = b"\xff" * 396
    Path(path).write_bytes(data)
    with ItemReader() as reader:
        with pytest.raises(ValueError, match=r"x\.parquet"):
            reader.read(items[0].path)
        assert reader.read(items[250].path) == b"250"
        Path(path).write_bytes(b"not Parquet")
    with ItemReader() as reader, pytest.raises(ValueError, match=r"x\.parquet|Parquet"):
        reader.read(items[0].path)
