"""Tests of listings: each image once, in a fixed order, in bytes that depend on the images only."""

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

IDS = st.lists(
    st.text("ab-/.%Zz~äé\u0301猫\U0001f408\uffff", min_size=1, max_size=6) | st.text(min_size=1),
    unique=True,
    max_size=30,
)


def item(image_id, *, label=None, mtime_ns=5):
    return Item(image_id, f"/root/{image_id}", len(image_id), mtime_ns, label)


def items(count):
    return [item(f"{number:06d}.jpg", label=f"class{number % 3}") for number in range(count)]


def written(offered, **options):
    """The listing of some items: its bytes, and what write_listing answered."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "listing.parquet")
        answer = write_listing(offered, target, **options)
        return target.read_bytes(), answer


def table_of(offered, **options):
    return pq.read_table(io.BytesIO(written(offered, **options)[0]))


def ids_of(offered, **options):
    return table_of(offered, **options)["image_id"].to_pylist()


# --- order and content ---


@settings(deadline=None, max_examples=20)
@given(IDS, st.randoms())
def test_the_order_is_that_of_the_ids_bytes_whatever_order_they_come_in(ids, chance):
    shuffled = chance.sample(ids, len(ids))
    data, (rows, _) = written(map(item, shuffled))
    table = pq.read_table(io.BytesIO(data))
    assert table["image_id"].to_pylist() == sorted(ids, key=str.encode)
    assert table["row"].to_pylist() == list(range(rows)) == list(range(len(ids)))
    assert data == written(map(item, ids))[0]


def test_folders_are_no_units_of_the_order():
    assert ids_of(map(item, ["a/b", "a-b", "a.b", "A", "a", "ä", "a/"])) == [
        "A", "a", "a-b", "a.b", "a/", "a/b", "ä",
    ]  # fmt: skip


def test_every_column_is_as_the_source_said():
    offered = [
        Item("b", "s3://x/b", 7, None, None),
        Item("a", "/x/a", 0, 1_700_000_000_123_456_789, "cat"),
        Item("c", "/x/c", 1 << 40, 0, ""),
    ]
    table = table_of(offered)
    assert table.schema.equals(LISTING.schema)
    assert [tuple(row.values())[1:6] for row in table.to_pylist()] == [
        ("a", "/x/a", 0, 1_700_000_000_123_456_789, "cat"),
        ("b", "s3://x/b", 7, None, None),
        ("c", "/x/c", 1 << 40, 0, ""),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 200])
def test_same_bytes_for_any_order_and_any_batches(count, monkeypatch):
    offered = items(count)
    wanted, answer = written(offered, chunk_rows=2)
    assert answer == (count, 2)
    for seed, batch in enumerate((1, 7, 1 << 14)):
        monkeypatch.setattr(listing, "_BATCH", batch)
        shuffled = random.Random(seed).sample(offered, count)
        assert written(iter(shuffled), chunk_rows=2) == (wanted, answer)


def test_the_digest_is_that_of_its_bytes(tmp_path):
    write_listing(items(10), tmp_path / "x", chunk_rows=2)
    assert (
        sha256_of_file(tmp_path / "x") == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    )


def test_a_listing_is_sealed_and_its_row_groups_are_whole_chunks():
    data, _ = written(items(100), chunk_rows=3)
    assert has_valid_checksum(io.BytesIO(data))
    metadata = pq.read_metadata(io.BytesIO(data))
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert groups == [3 * ROW_GROUP_CHUNKS] * 2 + [100 % (3 * ROW_GROUP_CHUNKS)]


def test_the_chunk_size_follows_the_rows_that_are_kept():
    assert written(items(300))[1] == (300, 256)
    assert written(items(300), limit=10)[1] == (10, 256)
    assert written(items(300), chunk_rows=7)[1] == (300, 7)
    assert written([])[1] == (0, 256)


@pytest.mark.parametrize("limit", [0, 1, 5, 20, 10**9])
def test_a_limit_keeps_the_first_rows_of_the_order(limit):
    offered = random.Random(0).sample(items(20), 20)
    data, (rows, _) = written(offered, limit=limit)
    assert rows == min(limit, 20)
    table = pq.read_table(io.BytesIO(data))
    assert table["image_id"].to_pylist() == [i.image_id for i in items(20)][:limit]


def test_an_item_that_comes_again_counts_once_and_is_said():
    notes = []
    offered = [*items(5), *items(3), item("000000.jpg", label="class0")]
    assert ids_of(offered, note=notes.append) == ids_of(items(5))
    assert notes == ["4 of 9 lines repeat others and count once"]
    assert written(offered) == written(items(5))
    written(items(5), note=notes.append)
    assert len(notes) == 1


def test_an_item_that_comes_again_and_says_another_thing_is_refused():
    offered = [*items(5), item("000003.jpg", label="class1")]
    with pytest.raises(InputError, match=r"000003\.jpg is listed twice with different labels"):
        written(offered)
    more = pa.schema([("price", pa.float64())])
    offered = [Item("a", "/a", 1, 1, None, more=(price,)) for price in (float("nan"), 2.0)]
    assert ids_of([offered[0]] * 2, columns=more) == ["a"]
    with pytest.raises(InputError, match="a is listed twice"):
        written(offered, columns=more)


def test_two_images_of_one_id_are_refused_naming_both():
    offered = [*items(5), Item("000003.jpg", "/other/3", 1, 1, None)]
    with pytest.raises(InputError, match=r"000003\.jpg .*/other/3 and /root/000003\.jpg"):
        written(offered)


def test_ids_that_only_look_alike_are_two():
    assert ids_of(map(item, ["\u00e9", "e\u0301", "a", "A", "a "])) == [
        "A", "a", "a ", "e\u0301", "\u00e9",
    ]  # fmt: skip


# --- containers and further columns ---

CONTAINERS = st.sampled_from(
    ["/x/a.jpg", "s3://b/a.jpg", "tar://{}::/x/b.tar", "tar://a::b{}::/x/a.tar", "tar://no.jpg",
     "parquet://image/{}::/x/ä.parquet", "parquet://image/{}::s3://b/B.parquet"]
)  # fmt: skip


def container(path):
    return path.rpartition("::")[2] if "::" in path else None


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.tuples(CONTAINERS, st.none() | st.integers(0, 3), st.text("abä/", min_size=1)),
             unique_by=lambda drawn: drawn[2], max_size=20),
    st.randoms(),
)  # fmt: skip
def test_what_lies_in_containers_stands_by_container_and_place(drawn, chance):
    offered = [
        Item(name, form.format(n), 1, None, None, place) for n, (form, place, name) in
        enumerate(drawn)
    ]  # fmt: skip
    wanted = sorted(
        offered,
        key=lambda i: (
            (container(i.path) or "").encode(), -1 if i.place is None else i.place,
            i.image_id.encode(),
        ),
    )  # fmt: skip
    data = written(chance.sample(offered, len(offered)))[0]
    assert data == written(offered)[0]
    table = pq.read_table(io.BytesIO(data))
    assert table["image_id"].to_pylist() == [one.image_id for one in wanted]
    assert table["place"].to_pylist() == [one.place for one in wanted]


WHEN = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
MORE = pa.schema(
    [
        ("text", pa.string()),
        ("Path", pa.string()),  # DuckDB takes it for path
        ("small", pa.uint8()),
        ("ratio", pa.float32()),
        ("good", pa.bool_()),
        ("day", pa.date32()),
        ("when", pa.timestamp("us", "Europe/Berlin")),
        ('naïve "name"; --', pa.timestamp("us")),
    ]
)
VALUES = ("a", "b", 255, 0.5, True, WHEN.date(), WHEN, WHEN.replace(tzinfo=None))


def test_further_columns_follow_the_fixed_ones_with_their_types():
    offered = [
        Item("b", "/x/b", 1, 2, None, more=(None,) * len(MORE)),
        Item("a", "/x/a", 1, 2, None, problem="it is a link", more=VALUES),
    ]
    table = table_of(offered, columns=MORE)
    assert table.schema.equals(pa.schema([*LISTING.schema, *MORE]))
    assert extra_columns(table.schema, LISTING).equals(MORE)
    first, second = table.to_pylist()
    assert tuple(first[name] for name in MORE.names) == VALUES
    assert {second[name] for name in MORE.names} == {None}
    assert (first["problem"], second["problem"]) == ("it is a link", None)


def test_further_columns_of_labels_become_metadata_and_win_over_those_of_the_source():
    data, name = as_csv(
        [("a", "cat", 7, "x", "2026-01-02"), ("c", "dog", 8, "", "2026-01-03")],
        ("image_id", "label", "same", "text", "day"),
    )
    labels = read_labels(data, name, None)
    columns = pa.schema([("own", pa.int64()), ("same", pa.string())])
    offered = [Item(i, f"/x/{i}", 1, 2, None, more=(n, "old")) for n, i in enumerate("abc")]
    table = table_of(offered, columns=columns, labels=labels)
    assert extra_columns(table.schema, LISTING).names == ["own", "same", "text", "day"]
    rows = table.to_pylist()
    assert [row["own"] for row in rows] == [0, 1, 2]
    assert [row["same"] for row in rows] == [7, None, 8]
    assert [row["label"] for row in rows] == ["cat", None, "dog"]
    assert rows[0]["day"] == dt.date(2026, 1, 2)


def test_a_listing_is_sealed_without_being_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read as a whole"))
    write_listing(items(100), tmp_path / "x", chunk_rows=2)
    with open(tmp_path / "x", "rb") as file:
        assert has_valid_checksum(file)


# --- labels ---


def labels_of(offered, labels):
    rows = table_of(offered, labels=labels).to_pylist()
    return {row["image_id"]: row["label"] for row in rows}


def given_labels(**values):
    return pa.table(
        {"image_id": pa.array(list(values), pa.string()), "label": pa.array(values.values())}
    )


def test_given_labels_stand_instead_of_all_others():
    offered = [item("a", label="folder"), item("b", label="folder"), item("c")]
    labels = given_labels(c="dog", a="cat", nobody="bird")
    assert labels_of(offered, labels) == {"a": "cat", "b": None, "c": "dog"}
    assert labels_of(offered, None) == {"a": "folder", "b": "folder", "c": None}


def test_the_order_of_labels_makes_no_difference():
    offered = items(50)
    values = {i.image_id: f"label {n % 7}" for n, i in enumerate(offered)}
    turned = dict(reversed(values.items()))
    assert (
        written(offered, labels=given_labels(**values))
        == written(offered, labels=given_labels(**turned))
    )  # fmt: skip


def as_csv(rows, columns):
    def cell(value):
        return '"' + str(value).replace('"', '""') + '"'

    lines = [",".join(columns), *(",".join(map(cell, row)) for row in rows)]
    return ("\n".join(lines) + "\n").encode(), "labels.csv"


def as_parquet(rows, columns):
    sink = io.BytesIO()
    pq.write_table(pa.table([list(c) for c in zip(*rows, strict=True)], names=columns), sink)
    return sink.getvalue(), "LABELS.Parquet"


both = pytest.mark.parametrize("form", [as_csv, as_parquet])


def read(form, rows, columns=("image_id", "label"), split=None):
    table = read_labels(*form(rows, columns), split)
    return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))


@both
def test_a_labels_file_is_read(form):
    rows = [("b/ü.jpg", "cat, black"), ("a.jpg", ""), ("007.jpg", "1"), ("x", "null"), ("y", "NA")]
    assert read(form, rows) == {
        "b/ü.jpg": "cat, black", "a.jpg": None, "007.jpg": "1", "x": "null", "y": "NA",
    }  # fmt: skip


@both
def test_columns_may_stand_in_any_order_among_others(form):
    columns = ("more", "label", "other", "image_id")
    assert read(form, [("1", "cat", "x", "a"), ("2", "", "y", "b")], columns) == {
        "a": "cat",
        "b": None,
    }


@both
def test_further_columns_of_scalars_are_kept(form):
    columns = ("label", "size", "more", "split", "image_id", "other")
    table = read_labels(*form([("cat", 5, 1, "gallery", "a", "x")], columns), "gallery")
    assert table.to_pydict() == {"image_id": ["a"], "label": ["cat"], "more": [1], "other": ["x"]}


@both
def test_a_split_takes_its_own_rows(form):
    rows = [("gallery", "a", "cat"), ("queries", "b", "dog"), ("", "c", "cow")]
    columns = ("split", "image_id", "label")
    assert read(form, rows, columns, "gallery") == {"a": "cat"}
    assert read(form, rows, columns, "queries") == {"b": "dog"}
    assert read(form, rows, columns) == {"a": "cat", "b": "dog", "c": "cow"}
    assert read(form, [row[1:] for row in rows], columns[1:], "gallery").keys() == {"a", "b", "c"}


@both
def test_one_image_may_stand_in_both_splits(form):
    rows = [("gallery", "a", "cat"), ("queries", "a", "dog")]
    assert read(form, rows, ("split", "image_id", "label"), "queries") == {"a": "dog"}


@both
@pytest.mark.parametrize("missing", ["image_id", "label"])
def test_a_missing_column_is_named(form, missing):
    columns = ["image_id", "label"]
    columns[columns.index(missing)] = "name"
    with pytest.raises(InputError, match=f"has no column {missing}"):
        read(form, [("a", "cat")], columns)


@both
def test_an_image_named_twice_is_refused_by_name(form):
    with pytest.raises(InputError, match="names b twice"):
        read(form, [("a", "cat"), ("b", "cat"), ("b", "cat")])


@both
def test_a_column_that_stands_there_twice_is_refused(form):
    with pytest.raises(InputError, match="label"):
        read(form, [("a", "cat", "dog")], ("image_id", "label", "label"))


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\0", b"PAR1", b'image_id,label\n"a'])
def test_rubbish_is_refused_by_name(data, name):
    with pytest.raises(InputError, match=name):
        read_labels(data, name, None)


def test_numbers_and_categories_of_a_data_frame_are_read_as_text():
    table = pa.table(
        {
            "image_id": pa.array(["a", "b"]).dictionary_encode(),
            "label": pa.array([3, None]),
            "split": pa.array(["gallery", "queries"]).dictionary_encode(),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    for split, wanted in (("gallery", {"a": "3"}), ("queries", {"b": None})):
        found = read_labels(sink.getvalue(), "x.pq", split)
        assert found.to_pydict() == {"image_id": list(wanted), "label": list(wanted.values())}


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_names():
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
def test_a_chunk_is_the_same_as_a_slice_of_the_whole(folder, data):
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
def whole():
    return table_of(items(54))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_row_groups_of_any_size_are_read(folder, whole, groups, data):
    whole = whole.slice(0, sum(groups))
    target = folder.uri("groups.parquet")
    with pq.ParquetWriter(target, whole.schema, write_page_checksum=True) as writer:
        start = 0
        for rows in groups:
            writer.write_table(whole.slice(start, rows))
            start += rows
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, len(whole)))
    assert read_rows(folder, "groups.parquet", first, last).equals(whole.slice(first, last - first))


def test_only_the_row_groups_of_a_chunk_are_read(folder, monkeypatch):
    write_listing(items(160), Path(folder.uri("many.parquet")), chunk_rows=2)
    asked = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def note(self, groups):
        asked.append(groups)
        return read_row_groups(self, groups)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", note)
    for first, last in ((0, 2), (30, 32), (32, 34), (62, 66), (158, 160)):
        read_rows(folder, "many.parquet", first, last)
    assert asked == [[0], [0], [1], [1, 2], [4]]


def test_every_damaged_page_is_found(folder):
    target = Path(folder.uri("damaged.parquet"))
    write_listing(items(90), target, chunk_rows=2)
    sound = target.read_bytes()
    metadata = pq.read_metadata(target)
    tried = 0
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            # the last byte of a column's pages is data, whatever their headers are like
            start = column.dictionary_page_offset or column.data_page_offset
            at = start + column.total_compressed_size - 1
            target.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            with pytest.raises(OSError, match="CRC"):
                read_rows(folder, "damaged.parquet", group * 32, group * 32 + 2)
            tried += 1
    assert tried == 3 * len(LISTING.columns)
    target.write_bytes(sound)
    assert read_rows(folder, "damaged.parquet", 0, 90).num_rows == 90


def test_a_missing_listing_is_missing(folder):
    with pytest.raises(FileNotFoundError):
        read_rows(folder, "nowhere.parquet", 0, 1)


# --- samples ---


@pytest.mark.parametrize("batch", [3, 1 << 14])
def test_a_sample_is_drawn_without_doubles_and_in_order(tmp_path, monkeypatch, batch):
    target = tmp_path / "listing.parquet"
    write_listing(items(50), target)
    monkeypatch.setattr(listing, "_BATCH", batch)
    whole = pq.read_table(target).to_pylist()
    drawn = sample_items(target, 12, seed=0)
    rows = [one["row"] for one in drawn]
    assert len(set(rows)) == 12
    assert rows == sorted(rows)
    assert drawn == [whole[row] for row in rows]
    assert sample_items(target, 12, seed=0) == drawn
    assert sample_items(target, 12, seed=1) != drawn
    assert sample_items(target, 50, seed=0) == sample_items(target, 99, seed=1) == whole


def test_the_database_draws_no_bar_into_the_answer_of_the_command(tmp_path):
    with open_database(str(tmp_path)) as base:  # that would take seconds to be seen
        assert base.sql("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]


def test_a_labels_file_may_name_its_columns_in_any_case_and_keeps_digits_that_are_names():
    data = b"Image_ID, Label, sku, price\n00120, 007, 0042, 3\n1, x, 7, 4\n"
    table = read_labels(data, "labels.csv", None)
    assert table.column_names == ["image_id", "label", "sku", "price"]
    assert table["image_id"].to_pylist() == ["00120", "1"]
    assert table["label"].to_pylist() == ["007", "x"]
    assert table["sku"].to_pylist() == ["0042", "7"]
    assert table["price"].type == pa.int64()
