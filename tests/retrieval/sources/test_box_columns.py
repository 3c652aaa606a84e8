"""Tests of lists and Parquet files with a box per row."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.core.errors import InputError, UsageError
from retrieval.sources.box_columns import BoxColumns
from retrieval.sources.detect import open_source
from retrieval.sources.item_reader import ItemReader

FOUR = BoxColumns(("x", "y", "w", "h"), "pixels")
LIST = BoxColumns(("bbox",), "relative")
TABLE = {
    "path": ["cats/a.jpg", "cats/a.jpg", "b.jpg", "cats/a.jpg"],
    "x": [10, 0, None, 5],
    "y": [20, 0, None, 5],
    "w": [300, 10, None, None],
    "h": [200, 10.6, None, 5],
    "confidence": [0.9, 0.8, 0.7, 0.6],
}
IDS = ["cats/a.jpg#xywh=10,20,300,200", "cats/a.jpg#xywh=0,0,10,11", "b.jpg", "cats/a.jpg#row=4"]


def put(folder, name, table):
    """Write a table as CSV or Parquet; return its path."""
    table = pa.table(table)
    if name.endswith(".csv"):
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
        return folder.put(name, "\n".join([",".join(table.column_names), *lines, ""]).encode())
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return folder.put(name, sink.getvalue())


def items_of(folder, name, table, boxes, **options):
    return list(open_source(put(folder, name, table), boxes=boxes, **options).items())


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_rows_of_a_list_are_crops(local, name):
    local.put("cats/a.jpg", b"12345")
    items = items_of(local, name, TABLE, FOUR)
    assert [item.image_id for item in items] == IDS
    assert [item.label for item in items] == ["cats", "cats", None, "cats"]
    assert [item.more for item in items] == [(0.9,), (0.8,), (0.7,), (0.6,)]
    assert items[0].path == f"{local.root}/cats/a.jpg#xywh=10,20,300,200"
    assert items[2].path == f"{local.root}/b.jpg"
    assert items[0].size == items[1].size == 5
    assert items[0].problem is items[2].problem is None
    assert items[3].problem.startswith("the box has 5, 5, nothing, 5")
    with ItemReader() as reader:
        assert reader.read(items[0].path) == b"12345"


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 4)])
def test_relative_boxes_in_a_column_of_lists(local, kind):
    boxes = [[0.1, 0.2, 0.3, 0.4], None, [0.5, 0.5, 0.9, 0.5]]
    table = {"file": ["a", "b", "c"], "bbox": pa.array(boxes, kind), "image_id": ["1", "2", "3"]}
    items = items_of(local, "x.parquet", table, LIST, image_column="file")
    assert [item.image_id for item in items] == [
        "1#xywh=percent:10,20,30,40", "2", "3#xywh=percent:50,50,50,50"
    ]  # fmt: skip


def test_images_in_parquet_are_cropped(local):
    table = {"image": [b"one", b"one", b"two"], "x": [1, 4, 0], "y": [2, 5, 0], "w": [3, 6, 0],
             "h": [4, 7, 0]}  # fmt: skip
    items = items_of(local, "x.parquet", table, FOUR)
    assert [item.image_id for item in items] == [
        "x.parquet/0#xywh=1,2,3,4", "x.parquet/1#xywh=4,5,6,7", "x.parquet/2#row=2"
    ]  # fmt: skip
    assert [item.place for item in items] == [0, 1, 2]
    assert items[2].problem == "the box 0, 0, 0, 0 has no area"
    with ItemReader() as reader:
        assert [reader.read(item.path) for item in items] == [b"one", b"one", b"two"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [(["1", "2", "x", "4"], "1, 2, x, 4 is not four numbers"), (["1", "2", "-3", "4"], "negative"),
     (["nan", "2", "3", "4"], "nothing, 2, 3, 4"), (["inf", "2", "3", "4"], "not finite")],
)  # fmt: skip
def test_text_that_is_no_box_is_a_problem_of_its_row(local, values, reason):
    table = {"path": ["a.jpg"], **{n: [v] for n, v in zip("xywh", values, strict=True)}}
    (item,) = items_of(local, "x.csv", table, FOUR)
    assert item.image_id == "a.jpg#row=1"
    assert reason in item.problem


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "null"])
def test_row_without_a_box_is_the_whole_image(local, missing):
    table = {"path": ["a.jpg"], **{name: [missing] for name in "xywh"}}
    (item,) = items_of(local, "x.csv", table, FOUR)
    assert (item.image_id, item.problem) == ("a.jpg", None)


def test_columns_are_checked(local):
    with pytest.raises(UsageError, match=r"--box-columns left is no column of .*x.csv"):
        items_of(local, "x.csv", TABLE, BoxColumns(("left", "y", "w", "h"), "pixels"))
    with pytest.raises(InputError, match=r"column path of .* holds string, not lists of four"):
        items_of(local, "x.csv", TABLE, BoxColumns(("path",), "pixels"))
    table = {"image": [b"1"], "bbox": [[1.0, 2.0, 3.0, 4.0]]}
    with pytest.raises(InputError, match=r"column bbox of .*, not numbers"):
        items_of(local, "x.parquet", table, BoxColumns(("bbox", "a", "b", "c"), "pixels"))
    for names in ((), ("x", "y"), ("x", "y", "w", "w")):
        with pytest.raises(UsageError, match=r"--box-columns .*: write four columns"):
            BoxColumns(names, "pixels")


def test_other_sources_have_no_boxes(local):
    local.put("photos/a.jpg", b"1")
    (item,) = open_source(f"{local.root}/photos", boxes=FOUR).items()
    assert item.image_id == "a.jpg"
    (item,) = open_source(local.put("x.txt", b"photos/a.jpg\n"), boxes=FOUR).items()
    assert item.image_id == "photos/a.jpg"


def test_path_that_ends_as_that_of_a_crop_is_not_read(local):
    (item,) = open_source(local.put("x.txt", b"a.jpg#xywh=1,2,3,4\n")).items()
    assert (
        item.problem == "its path ends as that of a crop; list boxes in columns, with --box-columns"
    )
