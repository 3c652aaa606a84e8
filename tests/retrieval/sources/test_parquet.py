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


def parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, sink, **options)
    return sink.getvalue()


def rows_of(place, table, **options):
    return list(ParquetSource(place.put("x.parquet", parquet(table)), **options).items())


IMAGES = pa.array([b"1", b"2", b"3"])


class TestFile(SourceContract):
    """One file whose column image_id names the images."""

    others = False

    def source(self, place, images, others=()):
        table = {
            "image_id": pa.array(list(images), pa.string()),
            "bytes": pa.array(images.values(), pa.binary()),
            "more": pa.array(range(len(images))),
        }
        return ParquetSource(place.put("x.parquet", parquet(table, row_group_size=4)))

    def missing(self, place):
        return ParquetSource(f"{place.root}/x.parquet")


class TestFolder(SourceContract):
    """Files of Hugging Face's kind in a folder; ids are places, in files with odd names."""

    def source(self, place, images, others=()):
        for name, data in images.items():
            struct = pa.array([{"bytes": data, "path": "elsewhere.jpg"}])
            place.put(f"{name}.parquet", parquet({"picture": struct}))
        if not images:
            empty = pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            place.put("empty.pq", parquet({"picture": empty}))
        for name in others:
            place.put(name, b"x")
        return ParquetSource(place.root)

    def missing(self, place):
        return ParquetSource(place.root)

    def image_id(self, name):
        return f"{name}.parquet/0"


def test_an_id_is_a_file_and_a_row_where_no_column_names_it(local):
    found = rows_of(local, {"image": IMAGES})
    assert [item.image_id for item in found] == [f"x.parquet/{row}" for row in range(3)]
    assert [item.place for item in found] == [0, 1, 2]
    assert found[2].path == f"parquet://image/2::{local.root}/x.parquet"
    assert {(item.size, item.label) for item in found} == {(None, None)}
    assert {item.mtime_ns for item in found} == {os.stat(f"{local.root}/x.parquet").st_mtime_ns}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["b", "a", "007"], ["b", "a", "007"]),
        ([3, 1, 2], ["3", "1", "2"]),
        (["b", None, ""], ["b", "x.parquet/1", "x.parquet/2"]),
    ],
)
def test_an_id_column_gives_ids_as_text(local, ids, expected):
    for column, option in (("image_id", None), ("key", "key")):
        found = rows_of(local, {"image": IMAGES, column: ids}, id_column=option)
        assert [item.image_id for item in found] == expected


def test_the_name_in_the_structs_of_images_is_an_id_if_it_is_asked_for(local):
    table = {"image": pa.array([{"bytes": b"1", "path": "cats/a.jpg"}, {"bytes": b"2"}])}
    found = rows_of(local, table, id_column="image.path")
    assert [item.image_id for item in found] == ["cats/a.jpg", "x.parquet/1"]
    with pytest.raises(UsageError, match=r"--id-column image\.name"):
        rows_of(local, table, id_column="image.name")


@pytest.mark.parametrize(
    "table",
    [
        {"image": IMAGES, "thumbnail": IMAGES},
        {"anything": IMAGES, "name": ["a", "b", "c"]},
        {"large": IMAGES.cast(pa.large_binary())},
        {"picture": pa.array([{"bytes": b"1"}, {"bytes": b"2"}, {"bytes": b"3"}])},
    ],
)
def test_the_column_of_images_is_found(local, table):
    found = rows_of(local, table)
    with ItemReader() as reader:
        assert [reader.read(item.path, item.place) for item in found] == [b"1", b"2", b"3"]


def test_the_column_of_images_is_named_where_there_are_two(local):
    table = {"left": IMAGES, "right": pa.array([b"4", b"5", b"6"])}
    with pytest.raises(InputError, match=r"--image-column \(there are left, right\)"):
        rows_of(local, table)
    assert rows_of(local, table, image_column="right")[0].path.startswith("parquet://right/0::")
    with pytest.raises(UsageError, match=r"--image-column middle .*it has left, right"):
        rows_of(local, table, image_column="middle")
    with pytest.raises(UsageError, match=r"--id-column name .*it has left, right"):
        rows_of(local, table, image_column="left", id_column="name")
    with pytest.raises(InputError, match="holds no bytes"):
        rows_of(local, {"left": IMAGES, "text": ["a", "b", "c"]}, image_column="text")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["cat", None, ""]), ["cat", None, None]),
        (pa.array([1, 2, None]), ["1", "2", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
)
def test_labels_are_text(local, labels, expected):
    assert [item.label for item in rows_of(local, {"image": IMAGES, "label": labels})] == expected


@pytest.mark.parametrize("names", [["cat", "dog"], {"0": "cat", "1": "dog"}])
def test_classes_of_hugging_face_go_by_their_names(local, names):
    feature = {"names": names, "_type": "ClassLabel"}
    notes = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"image": IMAGES, "label": [1, -1, 0]}).replace_schema_metadata(notes)
    assert [item.label for item in rows_of(local, table)] == ["dog", None, "cat"]


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"info": null}', '{"info": {"features": []}}'])
def test_notes_of_another_kind_are_none(local, notes):
    table = pa.table({"image": IMAGES, "label": [1, 2, 3]})
    found = rows_of(local, table.replace_schema_metadata({"huggingface": notes}))
    assert [item.label for item in found] == ["1", "2", "3"]


def test_classes_of_a_column_that_was_dropped_are_no_labels(local):
    feature = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    notes = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"image": IMAGES}).replace_schema_metadata(notes)
    assert [item.label for item in rows_of(local, table)] == [None, None, None]


def test_classes_go_by_their_numbers_and_not_by_their_order(local):
    feature = {"names": {"2": "dog", "1": "cat"}, "_type": "ClassLabel"}
    notes = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"image": IMAGES, "label": [1, 2, 7]}).replace_schema_metadata(notes)
    assert [item.label for item in rows_of(local, table)] == ["cat", "dog", "7"]


SEVERAL = [
    pa.array([["a"], ["b", "c"], None]),
    pa.array([[1], [2], [3]]),
    pa.array([[1], [2], [3]], pa.list_(pa.int8(), 1)),
    pa.array([{"name": "a"}, {"name": "b"}, None]),
    pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    pa.array([[["a"]], [[]], None], pa.list_(pa.list_(pa.string()))),
]


@pytest.mark.parametrize("column", SEVERAL, ids=lambda column: str(column.type))
def test_a_label_of_several_values_is_none_and_said_and_other_columns_are_refused(local, column):
    path = local.put("x.parquet", parquet({"image": IMAGES, "label": column, "more": [1, 2, 3]}))
    source = ParquetSource(path)
    assert source.columns().names == ["more"]
    (note,) = source.column_notes
    kind = str(column.type).partition("<")[0]  # fields within have other names in Parquet
    assert note.startswith(f"the column label of {path} holds {kind}<")
    assert "which is no label" in note
    assert [(item.label, item.more) for item in source.items()] == [(None, (n,)) for n in (1, 2, 3)]
    source = ParquetSource(local.put("y.parquet", parquet({"image": IMAGES, "image_id": column})))
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
def test_labels_of_odd_types_are_text(local, column, expected):
    found = rows_of(local, {"image": IMAGES, "label": column}, image_column="image")
    assert [item.label for item in found] == expected


def test_bytes_that_are_no_text_are_no_label(local):
    table = {"image": IMAGES, "label": pa.array([b"cat", b"\xff", b"dog"])}
    message = r"the column label of .*x\.parquet holds binary, which cannot be read as string"
    with pytest.raises(InputError, match=message):
        rows_of(local, table, image_column="image")


@pytest.mark.parametrize(
    ("first", "second", "kind", "values"),
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
def test_a_column_has_a_type_that_takes_the_values_of_all_files(local, first, second, kind, values):
    for name, column, value in (("a", first, values[0]), ("b", second, values[1])):
        array = pa.array([value], column)
        local.put(f"{name}.parquet", parquet({"image": [name.encode()], "more": array}))
    source = ParquetSource(local.root)
    assert source.columns() == pa.schema([("more", kind)])
    wanted = values
    if kind == pa.string():
        wanted = [None if value is None else str(value).lower() for value in values]
    assert [item.more for item in source.items()] == [(value,) for value in wanted]


@pytest.mark.parametrize("value", [["a"], 1 << 60])
def test_a_later_file_whose_values_fit_no_common_type_is_refused_by_column(local, value):
    local.put("a.parquet", parquet({"image": [b"1"], "more": [0.5]}))
    local.put(
        "b.parquet", parquet({"image": [b"2"], "more": [value if value != 1 << 60 else value + 1]})
    )
    with pytest.raises(
        InputError, match=r"the column more of .*b\.parquet holds .*cannot be read as"
    ):
        list(ParquetSource(local.root).items())


def test_what_is_named_like_a_file_and_is_none_has_a_problem(local):
    local.put("b.parquet", parquet({"image": [b"1"], "more": [7]}))
    os.mkfifo(f"{local.root}/a.parquet")
    source = ParquetSource(local.root)
    assert source.columns().names == ["more"]
    pipe, image = source.items()
    assert (pipe.image_id, pipe.problem) == ("a.parquet", "it is a named pipe, not a file")
    assert (pipe.more, image.more) == ((None,), (7,))


def test_each_footer_is_read_once_for_the_columns(local, monkeypatch):
    for number in range(5):
        local.put(f"{number}.parquet", parquet({"image": [b"1"], "more": [number]}))
    opened = []
    plain = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda *a, **k: opened.append(a) or plain(*a, **k))
    source = ParquetSource(local.root)
    source.columns()
    assert len(list(source.items())) == 5
    assert len(opened) == 1 + 5 + 5  # the label of the first, the columns, the rows


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
def test_times_that_no_calendar_has_are_null(local, column):
    path = local.put("x.parquet", parquet({"image": IMAGES, "seen": column}))
    found = [item.more[0] for item in ParquetSource(path).items()]
    assert found[0] is not None
    assert found[1:] == [None, None]


def test_times_of_a_zone_that_is_unknown_here_are_those_of_utc(local):
    column = pa.array([0, 1, None], pa.timestamp("s", "Nonsense/Zone"))
    found = rows_of(local, {"image": IMAGES, "seen": column})
    assert found[1].more == (dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC),)


def test_scalars_become_metadata_and_all_else_does_not(local):
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    table = {
        "image": IMAGES,
        "name": ["a", "", None],
        "count": pa.array([1, 2, None], pa.int16()),
        "price": pa.array([decimal.Decimal("1.50"), None, None]),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "good": [True, False, None],
        "day": pa.array([when.date()] * 3),
        "when": pa.array([when] * 3, pa.timestamp("ns", "UTC")),
        "half": pa.array([1.5, 2.5, None], pa.float16()),
        "list": [[1], [2], []],
        "struct": [{"a": 1}] * 3,
        "thumbnail": IMAGES,
        "row": [7, 8, 9],
        "path": ["p", "q", "r"],
    }
    source = ParquetSource(local.put("x.parquet", parquet(table)))
    assert dict(zip(source.columns().names, source.columns().types, strict=True)) == {
        "name": pa.string(), "count": pa.int16(), "price": pa.float64(), "kind": pa.string(),
        "good": pa.bool_(), "day": pa.date32(), "when": pa.timestamp("us", "UTC"),
        "half": pa.float32(),
    }  # fmt: skip
    first, second, third = source.items()
    assert first.more == ("a", 1, 1.5, "x", True, when.date(), when, 1.5)
    assert second.more[:5] == ("", 2, None, "y", False)
    assert third.more == (None, None, None, "x", None, when.date(), when, None)


def test_a_file_that_lacks_a_column_of_the_first_has_nulls(local):
    local.put("a.parquet", parquet({"image": IMAGES, "more": [1, 2, 3]}))
    local.put("b.parquet", parquet({"image": IMAGES, "other": [1, 2, 3]}))
    source = ParquetSource(local.root)
    assert source.columns().names == ["more"]
    assert [item.more for item in source.items()] == [(1,), (2,), (3,), *[(None,)] * 3]


def test_listing_reads_no_image(local, monkeypatch):
    asked = []
    plain = pq.ParquetFile.iter_batches

    def note(self, *args, **options):
        asked.append(options["columns"])
        return plain(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", note)
    assert len(rows_of(local, {"image": IMAGES, "label": ["a", "b", "c"]})) == 3
    assert len(rows_of(local, {"image": IMAGES})) == 3
    assert asked == [["label"]]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000])
def test_what_is_no_parquet_is_refused_by_name(local, data):
    source = ParquetSource(local.put("x.parquet", data))
    for use in (lambda: list(source.items()), source.columns):
        with pytest.raises(InputError, match=r"photos/x\.parquet cannot be read as Parquet"):
            use()


def test_two_columns_of_one_name_are_refused(local):
    table = pa.table([IMAGES, pa.array([1, 2, 3]), pa.array([1, 2, 3])], ["image", "a", "a"])
    with pytest.raises(InputError, match="two columns a"):
        rows_of(local, table)


# --- reading ---


@pytest.fixture
def numbered(local):
    table = {"image": pa.array([f"{row}".encode() for row in range(500)])}
    path = local.put("x.parquet", parquet(table, row_group_size=200))
    return path, list(ParquetSource(path).items())


@pytest.mark.parametrize(
    "order",
    [
        range(500), range(499, -1, -1), [0, 499, 0, 250, 249, 3], [*range(16, 32), *range(16)],
        [199, 200, 199, 400, 399],
    ],
)  # fmt: skip
def test_rows_are_read_in_any_order(numbered, order):
    with ItemReader() as reader:
        for row in order:
            assert reader.read(numbered[1][row].path) == f"{row}".encode()


def test_consecutive_rows_cost_one_pass_even_a_little_out_of_order(numbered, monkeypatch):
    starts = []
    plain = pq.ParquetFile.iter_batches

    def note(self, *args, **options):
        starts.append(options["row_groups"])
        return plain(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", note)
    with ItemReader() as reader:
        for first in range(0, 200, 10):
            for row in range(first + 9, first - 1, -1):
                assert reader.read(numbered[1][row].path) == f"{row}".encode()
            assert len(reader._open._kept) <= item_reader._KEPT
    assert starts == [[0]]


def test_a_null_image_a_missing_row_and_a_missing_column_are_told(local):
    path = local.put("x.parquet", parquet({"image": pa.array([None, b"2"])}))
    with ItemReader() as reader:
        for found, message in (
            (f"parquet://image/0::{path}", r"row 0 .* no image \(null\)"),
            (f"parquet://image/9::{path}", "no row 9"),
            (f"parquet://other/0::{path}", "no column other"),
        ):
            with pytest.raises(ValueError, match=message):
                reader.read(found)
        assert reader.read(f"parquet://image/1::{path}") == b"2"


def test_damage_is_an_error_of_the_image_and_no_reason_to_wait(numbered, monkeypatch):
    monkeypatch.setattr("retrieval.storage.retry.wait", lambda seconds: pytest.fail("waited"))
    path, items = numbered
    data = bytearray(Path(path).read_bytes())
    data[4:400] = b"\xff" * 396
    Path(path).write_bytes(data)
    with ItemReader() as reader:
        with pytest.raises(ValueError, match=r"x\.parquet"):
            reader.read(items[0].path)
        assert reader.read(items[250].path) == b"250"
        Path(path).write_bytes(b"nothing")
    with ItemReader() as reader, pytest.raises(ValueError, match=r"x\.parquet|Parquet"):
        reader.read(items[0].path)
