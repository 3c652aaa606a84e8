"""Test a list with a box per row from its store to matches, and its updates."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store
from tests.file_tree import read_tree
from tests.jobs.in_process import embed_in_process, index_in_process, rank_in_process
from tests.retrieval.images.valid_images import photo

BOXES = {"box_columns": "x, y,w,h", "box_units": "relative"}
ROWS = {  # of each photo
    "x": [0.0, 0.5, 0.25, None, 0.2],
    "y": [0.0, 0.5, 0.25, None, 0.2],
    "w": [0.5, 0.5, 0.5, None, -0.1],
    "h": [0.5, 0.5, 0.5, None, 0.1],
}
SUFFIXES = [
    "#xywh=percent:0,0,50,50", "#xywh=percent:50,50,50,50", "#xywh=percent:25,25,50,50", ""
]  # fmt: skip


def write_list(path, names, rows=range(5)):
    columns = {
        column: [values[row] for _ in names for row in rows] for column, values in ROWS.items()
    }
    paths = [f"{name}.png" for name in names for _ in rows]
    pq.write_table(pa.table({"path": paths, **columns, "label": paths}), path)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Return the folder of a list of crops of three photos, two of them equal, and its index."""
    root = tmp_path_factory.mktemp("crops")
    for number, name in enumerate(("a", "b", "copy of b")):
        photo(160, 120, seed=min(number, 1)).save(root / f"{name}.png")
    write_list(root / "crops.parquet", ("a", "b", "copy of b"))
    embed_in_process(root / "crops.parquet", root / "store", **BOXES)
    index_in_process(root / "store", root / "index")
    return root


def photos_of(ids):
    return {image_id.partition("#")[0] for image_id in ids}


def test_boxes_are_rows_and_wrong_ones_failures(crops):
    store = open_store(open_folder(str(crops / "store")))
    table = pa.concat_tables(store.blocks())
    names = ("a", "b", "copy of b")
    assert sorted(table["image_id"].to_pylist()) == sorted(
        f"{name}.png{suffix}" for name in names for suffix in SUFFIXES
    )
    sizes = dict(zip(table["image_id"].to_pylist(), table["width"].to_pylist(), strict=True))
    assert (sizes["a.png"], sizes[f"a.png{SUFFIXES[0]}"]) == (160, 80)
    assert store.manifest.counts["failures"] == 3


@pytest.mark.parametrize("same_store", [True, False])
def test_crops_of_one_photo_exclude_each_other(crops, tmp_path, same_store):
    queries = crops / ("store" if same_store else "crops.parquet")
    options = {} if same_store else {**BOXES, "max_error_rate": 0.9}
    rank_in_process(
        crops / "index", queries, tmp_path / "out", exclude_self=True, top_k=20, **options
    )
    matches = pq.read_table(tmp_path / "out" / "matches").to_pylist()
    others = {"a.png": {"b.png", "copy of b.png"}, "b.png": {"a.png"}, "copy of b.png": {"a.png"}}
    for query_id in {row["query_id"] for row in matches}:
        ids = [row["image_id"] for row in matches if row["query_id"] == query_id]
        expected = others[query_id.partition("#")[0]]
        assert photos_of(ids) == expected
        assert len(ids) == 4 * len(expected)


def test_without_exclude_self_a_crop_matches_itself_first(crops, tmp_path):
    rank_in_process(crops / "index", crops / "store", tmp_path / "out", top_k=1)
    rows = pq.read_table(tmp_path / "out" / "matches").to_pylist()
    expected = {row["query_id"]: row["query_id"].removeprefix("copy of ") for row in rows}
    assert {row["query_id"]: row["image_id"] for row in rows} == expected


def test_changed_box_is_another_item_and_a_removed_one_disappears(crops, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes((crops / f"{name}.png").read_bytes())
    names, output = ("a", "b"), tmp_path / "store"
    write_list(tmp_path / "crops.parquet", names, (0, 1, 3))
    embed_in_process(tmp_path / "crops.parquet", output, **BOXES)
    write_list(tmp_path / "crops.parquet", names, (1, 2))
    embed_in_process(tmp_path / "crops.parquet", output, **BOXES)
    updated = pa.concat_tables(open_store(open_folder(str(output))).blocks())
    expected = sorted(f"{name}.png{SUFFIXES[row]}" for name in names for row in (1, 2))
    assert sorted(updated["image_id"].to_pylist()) == expected
    embed_in_process(tmp_path / "crops.parquet", output, compact=True, **BOXES)
    embed_in_process(tmp_path / "crops.parquet", tmp_path / "anew", **BOXES)
    assert read_tree(output / "segments") == read_tree(tmp_path / "anew" / "segments")
    assert [verdict.state for verdict in verify(open_folder(str(output)))] == ["finished"]


def test_bytes_do_not_depend_on_chunks(crops, tmp_path):
    vectors = {}
    for chunk_rows in (1, 100):
        output = tmp_path / str(chunk_rows)
        embed_in_process(crops / "crops.parquet", output, **{**BOXES, "chunk_rows": chunk_rows})
        table = pa.concat_tables(open_store(open_folder(str(output))).blocks())
        vectors[chunk_rows] = table.sort_by("image_id").combine_chunks()
    assert vectors[1].equals(vectors[100])
