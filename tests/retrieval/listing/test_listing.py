"""Tests of listings: unique images in a fixed order, in bytes that depend on the images only."""

import datetime as dt
import hashlib
import io
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.core.schemas import LISTING, extra_columns
from retrieval.listing import listing
from retrieval.listing.chunking import ROW_GROUP_CHUNKS
from retrieval.listing.listing import open_database, read_labels, sample_items, write_listing
from retrieval.storage.checksum import has_valid_checksum
from retrieval.storage.local import LocalFolder, sha256_of_file
from retrieval.storage.parquet import read_rows

ID_LISTS = st.lists(
    st.text("ab-/.%Zz~äé\u0301猫\U0001f408\uffff", min_size=1, max_size=6) | st.text(min_size=1),
    unique=True,
    max_size=30,
)


def item(image_id, *, label=None, mtime_ns=5):
    return Item(image_id, f"/root/{image_id}", len(image_id), mtime_ns, label)


def items(count):
    return [item(f"{number:06d}.jpg", label=f"class{number % 3}") for number in range(count)]


def write_items(input_items, **options):
    """Return the bytes of the listing of some items, and the result of `write_listing`."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "listing.parquet")
        result = write_listing(input_items, target, **options)
        return target.read_bytes(), result


def table_of(input_items, **options):
    return pq.read_table(io.BytesIO(write_items(input_items, **options)[0]))


def ids_of(input_items, **options):
    return table_of(input_items, **options)["image_id"].to_pylist()


# --- order and content ---


@settings(deadline=None, max_examples=20)
@given(ID_LISTS, st.randoms())
def test_rows_are_sorted_by_id_bytes_for_any_input_order(ids, generator):
    shuffled = generator.sample(ids, len(ids))
    data, (rows, _) = write_items(map(item, shuffled))
    table = pq.read_table(io.BytesIO(data))
    assert table["image_id"].to_pylist() == sorted(ids, key=str.encode)
    assert table["row"].to_pylist() == list(range(rows)) == list(range(len(ids)))
    assert data == write_items(map(item, ids))[0]


def test_order_compares_whole_ids_not_path_components():
    assert ids_of(map(item, ["a/b", "a-b", "a.b", "A", "a", "ä", "a/"])) == [
        "A", "a", "a-b", "a.b", "a/", "a/b", "ä",
    ]  # fmt: skip


def test_columns_hold_item_fields():
    input_items = [
        Item("b", "s3://x/b", 7, None, None),
        Item("a", "/x/a", 0, 1_700_000_000_123_456_789, "cat"),
        Item("c", "/x/c", 1 << 40, 0, ""),
    ]
    table = table_of(input_items)
    assert table.schema.equals(LISTING.schema)
    assert [tuple(row.values())[1:6] for row in table.to_pylist()] == [
        ("a", "/x/a", 0, 1_700_000_000_123_456_789, "cat"),
        ("b", "s3://x/b", 7, None, None),
        ("c", "/x/c", 1 << 40, 0, ""),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 200])
def test_bytes_are_independent_of_input_order_and_batch_size(count, monkeypatch):
    input_items = items(count)
    expected, expected_result = write_items(input_items, chunk_rows=2)
    assert expected_result == (count, 2)
    for seed, batch in enumerate((1, 7, 1 << 14)):
        monkeypatch.setattr(listing, "_BATCH", batch)
        shuffled = random.Random(seed).sample(input_items, count)
        assert write_items(iter(shuffled), chunk_rows=2) == (expected, expected_result)


def test_sha256_of_file_equals_hashlib(tmp_path):
    write_listing(items(10), tmp_path / "x", chunk_rows=2)
    assert (
        sha256_of_file(tmp_path / "x") == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    )


def test_listing_is_checksummed_and_row_groups_hold_whole_chunks():
    data, _ = write_items(items(100), chunk_rows=3)
    assert has_valid_checksum(io.BytesIO(data))
    metadata = pq.read_metadata(io.BytesIO(data))
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert groups == [3 * ROW_GROUP_CHUNKS] * 2 + [100 % (3 * ROW_GROUP_CHUNKS)]


def test_chunk_size_depends_on_rows_within_limit():
    assert write_items(items(300))[1] == (300, 256)
    assert write_items(items(300), limit=10)[1] == (10, 256)
    assert write_items(items(300), chunk_rows=7)[1] == (300, 7)
    assert write_items([])[1] == (0, 256)


@pytest.mark.parametrize("limit", [0, 1, 5, 20, 10**9])
def test_limit_keeps_first_rows_in_order(limit):
    input_items = random.Random(0).sample(items(20), 20)
    data, (rows, _) = write_items(input_items, limit=limit)
    assert rows == min(limit, 20)
    table = pq.read_table(io.BytesIO(data))
    assert table["image_id"].to_pylist() == [each.image_id for each in items(20)][:limit]


def test_repeated_items_are_dropped_with_note():
    notes = []
    input_items = [*items(5), *items(3), item("000000.jpg", label="class0")]
    assert ids_of(input_items, note=notes.append) == ids_of(items(5))
    assert notes == ["4 of 9 lines repeat others and count once"]
    assert write_items(input_items) == write_items(items(5))
    write_items(items(5), note=notes.append)
    assert len(notes) == 1


def test_repeated_item_with_other_values_is_refused():
    input_items = [*items(5), item("000003.jpg", label="class1")]
    with pytest.raises(InputError, match=r"000003\.jpg is listed twice with different labels"):
        write_items(input_items)
    columns = pa.schema([("price", pa.float64())])
    input_items = [Item("a", "/a", 1, 1, None, more=(price,)) for price in (float("nan"), 2.0)]
    assert ids_of([input_items[0]] * 2, columns=columns) == ["a"]
    with pytest.raises(InputError, match="a is listed twice"):
        write_items(input_items, columns=columns)


def test_same_id_with_different_paths_is_refused():
    input_items = [*items(5), Item("000003.jpg", "/other/3", 1, 1, None)]
    with pytest.raises(InputError, match=r"000003\.jpg .*/other/3 and /root/000003\.jpg"):
        write_items(input_items)


def test_ids_are_not_normalized():
    assert ids_of(map(item, ["\u00e9", "e\u0301", "a", "A", "a "])) == [
        "A", "a", "a ", "e\u0301", "\u00e9",
    ]  # fmt: skip


# --- containers and extra columns ---

CONTAINER_PATHS = st.sampled_from(
    ["/x/a.jpg", "s3://b/a.jpg", "tar://{}::/x/b.tar", "tar://a::b{}::/x/a.tar", "tar://no.jpg",
     "parquet://image/{}::/x/ä.parquet", "parquet://image/{}::s3://b/B.parquet"]
)  # fmt: skip


def container_of(path):
    return path.rpartition("::")[2] if "::" in path else None


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.tuples(CONTAINER_PATHS, st.none() | st.integers(0, 3), st.text("abä/", min_size=1)),
             unique_by=lambda spec: spec[2], max_size=20),
    st.randoms(),
)  # fmt: skip
def test_rows_are_sorted_by_container_position_and_id(specs, generator):
    input_items = [
        Item(name, path.format(number), 1, None, None, position)
        for number, (path, position, name) in enumerate(specs)
    ]
    expected = sorted(
        input_items,
        key=lambda entry: (
            (container_of(entry.path) or "").encode(), -1 if entry.place is None else entry.place,
            entry.image_id.encode(),
        ),
    )  # fmt: skip
    data = write_items(generator.sample(input_items, len(input_items)))[0]
    assert data == write_items(input_items)[0]
    table = pq.read_table(io.BytesIO(data))
    assert table["image_id"].to_pylist() == [each.image_id for each in expected]
    assert table["place"].to_pylist() == [each.place for each in expected]


TIMESTAMP = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
EXTRA_COLUMNS = pa.schema(
    [
        ("text", pa.string()),
        ("Path", pa.string()),  # DuckDB column names are case-insensitive: equals path
        ("small", pa.uint8()),
        ("ratio", pa.float32()),
        ("good", pa.bool_()),
        ("day", pa.date32()),
        ("when", pa.timestamp("us", "Europe/Berlin")),
        ('naïve "name"; --', pa.timestamp("us")),
    ]
)
EXTRA_VALUES = (
    "a",
    "b",
    255,
    0.5,
    True,
    TIMESTAMP.date(),
    TIMESTAMP,
    TIMESTAMP.replace(tzinfo=None),
)


def test_extra_columns_follow_fixed_columns_with_their_types():
    input_items = [
        Item("b", "/x/b", 1, 2, None, more=(None,) * len(EXTRA_COLUMNS)),
        Item("a", "/x/a", 1, 2, None, problem="is a link", more=EXTRA_VALUES),
    ]
    table = table_of(input_items, columns=EXTRA_COLUMNS)
    assert table.schema.equals(pa.schema([*LISTING.schema, *EXTRA_COLUMNS]))
    assert extra_columns(table.schema, LISTING).equals(EXTRA_COLUMNS)
    first, second = table.to_pylist()
    assert tuple(first[name] for name in EXTRA_COLUMNS.names) == EXTRA_VALUES
    assert {second[name] for name in EXTRA_COLUMNS.names} == {None}
    assert (first["problem"], second["problem"]) == ("is a link", None)


def test_extra_label_columns_override_source_columns():
    data, name = as_csv(
        [("a", "cat", 7, "x", "2026-01-02"), ("c", "dog", 8, "", "2026-01-03")],
        ("image_id", "label", "same", "text", "day"),
    )
    labels = read_labels(data, name, None)
    columns = pa.schema([("number", pa.int64()), ("same", pa.string())])
    input_items = [
        Item(image_id, f"/x/{image_id}", 1, 2, None, more=(number, "old"))
        for number, image_id in enumerate("abc")
    ]
    table = table_of(input_items, columns=columns, labels=labels)
    assert extra_columns(table.schema, LISTING).names == ["number", "same", "text", "day"]
    rows = table.to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert [row["same"] for row in rows] == [7, None, 8]
    assert [row["label"] for row in rows] == ["cat", None, "dog"]
    assert rows[0]["day"] == dt.date(2026, 1, 2)


def test_checksum_is_written_without_loading_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("the whole file was read"))
    write_listing(items(100), tmp_path / "x", chunk_rows=2)
    with open(tmp_path / "x", "rb") as file:
        assert has_valid_checksum(file)


# --- labels ---


def labels_of(input_items, labels):
    rows = table_of(input_items, labels=labels).to_pylist()
    return {row["image_id"]: row["label"] for row in rows}


def label_table(**values):
    return pa.table(
        {"image_id": pa.array(list(values), pa.string()), "label": pa.array(values.values())}
    )


def test_labels_file_replaces_folder_labels():
    input_items = [item("a", label="folder"), item("b", label="folder"), item("c")]
    labels = label_table(c="dog", a="cat", nobody="bird")
    assert labels_of(input_items, labels) == {"a": "cat", "b": None, "c": "dog"}
    assert labels_of(input_items, None) == {"a": "folder", "b": "folder", "c": None}


def test_listing_is_independent_of_label_order():
    input_items = items(50)
    values = {entry.image_id: f"label {number % 7}" for number, entry in enumerate(input_items)}
    reversed_labels = dict(reversed(values.items()))
    assert (
        write_items(input_items, labels=label_table(**values))
        == write_items(input_items, labels=label_table(**reversed_labels))
    )  # fmt: skip


def as_csv(rows, columns):
    def cell(value):
        return '"' + str(value).replace('"', '""') + '"'

    lines = [",".join(columns), *(",".join(map(cell, row)) for row in rows)]
    return ("\n".join(lines) + "\n").encode(), "labels.csv"


def as_parquet(rows, columns):
    sink = io.BytesIO()
    pq.write_table(
        pa.table([list(column) for column in zip(*rows, strict=True)], names=columns), sink
    )
    return sink.getvalue(), "LABELS.Parquet"


csv_and_parquet = pytest.mark.parametrize("encode", [as_csv, as_parquet])


def read_label_dict(encode, rows, columns=("image_id", "label"), split=None):
    table = read_labels(*encode(rows, columns), split)
    return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))


@csv_and_parquet
def test_read_labels(encode):
    rows = [("b/ü.jpg", "cat, black"), ("a.jpg", ""), ("007.jpg", "1"), ("x", "null"), ("y", "NA")]
    assert read_label_dict(encode, rows) == {
        "b/ü.jpg": "cat, black", "a.jpg": None, "007.jpg": "1", "x": "null", "y": "NA",
    }  # fmt: skip


@csv_and_parquet
def test_read_labels_with_columns_in_any_order(encode):
    columns = ("more", "label", "other", "image_id")
    assert read_label_dict(encode, [("1", "cat", "x", "a"), ("2", "", "y", "b")], columns) == {
        "a": "cat",
        "b": None,
    }


@csv_and_parquet
def test_read_labels_keeps_extra_scalar_columns(encode):
    columns = ("label", "size", "more", "split", "image_id", "other")
    table = read_labels(*encode([("cat", 5, 1, "gallery", "a", "x")], columns), "gallery")
    assert table.to_pydict() == {"image_id": ["a"], "label": ["cat"], "more": [1], "other": ["x"]}


@csv_and_parquet
def test_split_selects_rows(encode):
    rows = [("gallery", "a", "cat"), ("queries", "b", "dog"), ("", "c", "cow")]
    columns = ("split", "image_id", "label")
    assert read_label_dict(encode, rows, columns, "gallery") == {"a": "cat"}
    assert read_label_dict(encode, rows, columns, "queries") == {"b": "dog"}
    assert read_label_dict(encode, rows, columns) == {"a": "cat", "b": "dog", "c": "cow"}
    assert read_label_dict(encode, [row[1:] for row in rows], columns[1:], "gallery").keys() == {
        "a",
        "b",
        "c",
    }


@csv_and_parquet
def test_image_in_both_splits_is_allowed(encode):
    rows = [("gallery", "a", "cat"), ("queries", "a", "dog")]
    assert read_label_dict(encode, rows, ("split", "image_id", "label"), "queries") == {"a": "dog"}


@csv_and_parquet
@pytest.mark.parametrize("missing", ["image_id", "label"])
def test_missing_column_is_reported(encode, missing):
    columns = ["image_id", "label"]
    columns[columns.index(missing)] = "name"
    with pytest.raises(InputError, match=f"has no column {missing}"):
        read_label_dict(encode, [("a", "cat")], columns)


@csv_and_parquet
def test_duplicate_image_in_labels_is_refused(encode):
    with pytest.raises(InputError, match="names b twice"):
        read_label_dict(encode, [("a", "cat"), ("b", "cat"), ("b", "cat")])


@csv_and_parquet
def test_duplicate_column_in_labels_is_refused(encode):
    with pytest.raises(InputError, match="label"):
        read_label_dict(encode, [("a", "cat", "dog")], ("image_id", "label", "label"))


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\0", b"PAR1", b'image_id,label\n"a'])
def test_invalid_labels_file_is_refused_by_name(data, name):
    with pytest.raises(InputError, match=name):
        read_labels(data, name, None)


def test_numeric_and_dictionary_labels_are_read_as_text():
    table = pa.table(
        {
            "image_id": pa.array(["a", "b"]).dictionary_encode(),
            "label": pa.array([3, None]),
            "split": pa.array(["gallery", "queries"]).dictionary_encode(),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    for split, expected in (("gallery", {"a": "3"}), ("queries", {"b": None})):
        actual = read_labels(sink.getvalue(), "x.pq", split)
        assert actual.to_pydict() == {"image_id": list(expected), "label": list(expected.values())}


def test_byte_order_mark_and_crlf_are_stripped():
    data = "\ufeffimage_id,label\r\na.jpg,Käse\r\n".encode()
    assert read_labels(data, "x.csv", None).to_pydict() == {
        "image_id": ["a.jpg"],
        "label": ["Käse"],
    }


# --- reading a chunk ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return LocalFolder(str(tmp_path_factory.mktemp("listings")))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_read_rows_equals_slice_of_table(folder, data):
    rows, chunk_rows = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 4))
    path = f"{rows}-{chunk_rows}.parquet"
    target = Path(folder.uri(path))
    if not target.exists():
        write_listing(items(rows), target, chunk_rows=chunk_rows)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first, rows))
    assert read_rows(folder, path, first, last).equals(
        pq.read_table(target).slice(first, last - first)
    )


@pytest.fixture(scope="module")
def table():
    return table_of(items(54))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_read_rows_with_row_groups_of_any_size(folder, table, groups, data):
    table = table.slice(0, sum(groups))
    target = folder.uri("groups.parquet")
    with pq.ParquetWriter(target, table.schema, write_page_checksum=True) as writer:
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows
    first = data.draw(st.integers(0, len(table)))
    last = data.draw(st.integers(first, len(table)))
    assert read_rows(folder, "groups.parquet", first, last).equals(table.slice(first, last - first))


def test_read_rows_reads_only_needed_row_groups(folder, monkeypatch):
    write_listing(items(160), Path(folder.uri("many.parquet")), chunk_rows=2)
    requested = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def record_row_groups(self, groups):
        requested.append(groups)
        return read_row_groups(self, groups)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", record_row_groups)
    for first, last in ((0, 2), (30, 32), (32, 34), (62, 66), (158, 160)):
        read_rows(folder, "many.parquet", first, last)
    assert requested == [[0], [0], [1], [1, 2], [4]]


def test_read_rows_detects_every_damaged_page(folder):
    target = Path(folder.uri("damaged.parquet"))
    write_listing(items(90), target, chunk_rows=2)
    original = target.read_bytes()
    metadata = pq.read_metadata(target)
    page_count = 0
    for group in range(metadata.num_row_groups):
        for column_number in range(metadata.num_columns):
            column = metadata.row_group(group).column(column_number)
            # the last byte of the pages of a column is data, not a page header
            start = column.dictionary_page_offset or column.data_page_offset
            position = start + column.total_compressed_size - 1
            target.write_bytes(
                original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :]
            )
            with pytest.raises(OSError, match="CRC"):
                read_rows(folder, "damaged.parquet", group * 32, group * 32 + 2)
            page_count += 1
    assert page_count == 3 * len(LISTING.columns)
    target.write_bytes(original)
    assert read_rows(folder, "damaged.parquet", 0, 90).num_rows == 90


def test_read_rows_of_missing_file_raises_file_not_found(folder):
    with pytest.raises(FileNotFoundError):
        read_rows(folder, "missing.parquet", 0, 1)


# --- samples ---


@pytest.mark.parametrize("batch", [3, 1 << 14])
def test_sample_items_are_unique_ordered_and_reproducible(tmp_path, monkeypatch, batch):
    target = tmp_path / "listing.parquet"
    write_listing(items(50), target)
    monkeypatch.setattr(listing, "_BATCH", batch)
    all_rows = pq.read_table(target).to_pylist()
    sample = sample_items(target, 12, seed=0)
    row_numbers = [row["row"] for row in sample]
    assert len(set(row_numbers)) == 12
    assert row_numbers == sorted(row_numbers)
    assert sample == [all_rows[row] for row in row_numbers]
    assert sample_items(target, 12, seed=0) == sample
    assert sample_items(target, 12, seed=1) != sample
    assert sample_items(target, 50, seed=0) == sample_items(target, 99, seed=1) == all_rows


def test_database_progress_bar_is_disabled(tmp_path):
    with open_database(str(tmp_path)) as database:  # DuckDB shows its bar only after seconds
        assert database.sql("SELECT current_setting('enable_progress_bar')").fetchall() == [
            (False,)
        ]


def test_read_labels_ignores_column_case_and_keeps_leading_zeros():
    data = b"Image_ID, Label, sku, price\n00120, 007, 0042, 3\n1, x, 7, 4\n"
    table = read_labels(data, "labels.csv", None)
    assert table.column_names == ["image_id", "label", "sku", "price"]
    assert table["image_id"].to_pylist() == ["00120", "1"]
    assert table["label"].to_pylist() == ["007", "x"]
    assert table["sku"].to_pylist() == ["0042", "7"]
    assert table["price"].type == pa.int64()
