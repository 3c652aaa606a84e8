"""Test groups of duplicates against a brute-force oracle: chains, ties, hostile paths, memory."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.core.errors import Damaged
from retrieval.core.schemas import GROUPS, PAIRS
from retrieval.search.duplicate_groups import (
    IMAGES,
    SIZES,
    GroupCounts,
    GroupFiles,
    write_groups,
)
from retrieval.storage.checksum import has_valid_checksum


def batches(rows, schema, size=3):
    """Divide rows, as dicts, into record batches."""
    for first in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[first : first + size], schema=schema)


def image(row, image_id, width=10, height=10, size=100, path=None):
    return {"row": row, "image_id": image_id, "path": path or f"/photos/{image_id}",
            "width": width, "height": height, "size": size}  # fmt: skip


def pair(one, other, score=0.9):
    first, second = sorted([one, other], key=str.encode)
    return {"image_id": first, "other_id": second, "score": score}


def group_files(folder):
    return GroupFiles(folder / "groups.parquet", folder / "keep.txt", folder / "remove.txt")


def make_groups(folder, images, pairs, batch_size=3):
    """Return the rows of the table, the two lists and the counts."""
    folder.mkdir(exist_ok=True)
    files = group_files(folder)
    sizes = [{"row": row["row"], "size": row["size"]} for row in images]
    counts = write_groups(
        batches(pairs, PAIRS.schema, batch_size), batches(images, IMAGES, batch_size),
        batches(sizes, SIZES, batch_size), files,
    )  # fmt: skip
    with open(files.groups, "rb") as file:
        assert has_valid_checksum(file)
    table = pq.read_table(files.groups)
    assert table.schema.equals(GROUPS.schema)
    return table.to_pylist(), files.keep.read_text(), files.remove.read_text(), counts


def expected_groups(images, pairs):
    """Group by spreading the smallest label over pairs until nothing changes."""
    label = {row["image_id"]: row["image_id"].encode() for row in images}
    scores = {(row["image_id"], row["other_id"]): row["score"] for row in pairs}
    changed = True
    while changed:
        changed = False
        for one, other in scores:
            smallest = min(label[one], label[other])
            changed |= label[one] != smallest or label[other] != smallest
            label[one] = label[other] = smallest
    by_id = {row["image_id"]: row for row in images}

    def quality(image_id):
        row = by_id[image_id]
        known = row["width"] is not None
        pixels = row["width"] * row["height"] if known else -1
        return -pixels, -(row["size"] if row["size"] is not None else -1), image_id.encode()

    members = {}
    for image_id, root in label.items():
        members.setdefault(root, []).append(image_id)
    groups = [sorted(ids, key=quality) for ids in members.values() if len(ids) > 1]
    groups.sort(key=lambda ids: (-len(ids), ids[0].encode()))
    return [
        (number, image_id, by_id[image_id]["path"], image_id == ids[0],
         scores.get(tuple(sorted([image_id, ids[0]], key=str.encode))))
        for number, ids in enumerate(groups, 1) for image_id in ids
    ]  # fmt: skip


NAMES = ["a", "b", "c", "aa", "é", "Z", "z/1", "猫", "\U0001f431", "~"]
lists_of_images = st.lists(
    st.tuples(st.sampled_from([None, 1, 2]), st.sampled_from([None, 5, 6])),
    min_size=len(NAMES), max_size=len(NAMES),
)  # fmt: skip
lists_of_pairs = st.sets(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)).filter(lambda ids: ids[0] < ids[1]),
    max_size=12,
)


@settings(max_examples=15, deadline=None)
@given(lists_of_images, lists_of_pairs, st.randoms(use_true_random=False))
def test_groups_equal_brute_force_for_any_order_and_division(
    tmp_path_factory, qualities, links, random
):
    folder = tmp_path_factory.mktemp("groups")
    images = [
        image(row, name, width, None if width is None else 3, size)
        for row, (name, (width, size)) in enumerate(zip(NAMES, qualities, strict=True))
    ]
    pairs = [pair(*ids, score=number / 16) for number, ids in enumerate(sorted(links))]
    expected = expected_groups(images, pairs)
    groups, keep, remove, counts = make_groups(folder, images, pairs)
    columns = ("group", "image_id", "path", "keep", "score")
    assert [tuple(row[name] for name in columns) for row in groups] == expected
    removed = [path for _, _, path, is_kept, _ in expected if not is_kept]
    assert remove.splitlines() == removed
    kept = [row for row in images if row["path"] not in removed]
    kept.sort(key=lambda row: row["image_id"].encode())
    assert keep.splitlines() == [row["path"] for row in kept]
    assert counts == GroupCounts(len({row[0] for row in expected}), len(expected), len(removed), 0)
    written = [path.read_bytes() for path in sorted(folder.iterdir())]
    random.shuffle(images)
    random.shuffle(pairs)
    for path in folder.iterdir():
        path.unlink()
    make_groups(folder, images, pairs, batch_size=random.randint(1, 20))
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == written


def test_chain_is_one_group_with_null_score_where_no_pair(tmp_path):
    images = [image(0, "a"), image(1, "b", width=20), image(2, "c"), image(3, "d"), image(4, "e")]
    pairs = [pair("a", "b", 0.99), pair("a", "c", 0.98), pair("c", "d", 0.97)]
    groups, keep, remove, counts = make_groups(tmp_path / "g", images, pairs)
    assert [(row["image_id"], row["keep"], row["reason"], row["score"]) for row in groups] == [
        ("b", True, "most pixels", None),
        ("a", False, "fewer pixels", 0.99),
        ("c", False, "fewer pixels", None),
        ("d", False, "fewer pixels", None),
    ]
    assert keep == "/photos/b\n/photos/e\n"
    assert remove == "/photos/a\n/photos/c\n/photos/d\n"
    assert counts == GroupCounts(1, 4, 3, 0)


def test_reasons_name_the_first_difference(tmp_path):
    images = [
        image(0, "a", size=7), image(1, "b", size=8),
        image(2, "c"), image(3, "d"),
        image(4, "e", width=None, height=None, size=None), image(5, "f", width=1, height=1, size=1),
    ]  # fmt: skip
    pairs = [pair("a", "b"), pair("c", "d"), pair("e", "f")]
    groups, *_ = make_groups(tmp_path / "g", images, pairs)
    assert [(row["image_id"], row["reason"]) for row in groups] == [
        ("b", "largest file"), ("a", "smaller file"),
        ("c", "first image_id"), ("d", "later image_id"),
        ("f", "most pixels"), ("e", "fewer pixels"),
    ]  # fmt: skip


def test_paths_with_line_breaks_are_in_no_list(tmp_path):
    """A program that reads remove.txt would delete another file."""
    images = [image(0, "a"), image(1, "b", path="/photos/b\n/etc/passwd"), image(2, "c"),
              image(3, "d", path="/photos/d\r")]  # fmt: skip
    groups, keep, remove, counts = make_groups(
        tmp_path / "g", images, [pair("a", "b"), pair("a", "c")]
    )
    assert (keep, remove) == ("/photos/a\n", "/photos/c\n")
    assert counts.unlisted_paths == 2
    assert groups[1]["path"] == "/photos/b\n/etc/passwd"


def test_no_pairs_keep_all_images(tmp_path):
    groups, keep, remove, counts = make_groups(tmp_path / "g", [image(0, "b"), image(1, "a")], [])
    assert (groups, keep, remove) == ([], "/photos/a\n/photos/b\n", "")
    assert counts == GroupCounts(0, 0, 0, 0)


def test_pair_of_an_unknown_image_is_refused(tmp_path):
    with pytest.raises(Damaged, match="the index has 1 of the 2 images that are in pairs"):
        make_groups(tmp_path / "g", [image(0, "a")], [pair("a", "b")])


MILLION_PAIRS = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from retrieval.core.schemas import PAIRS
from retrieval.search.duplicate_groups import IMAGES, SIZES, GroupFiles, write_groups

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def names(rows):
    return pa.array([f"folder-{row % 1000:04}/photograph-{row:09}.jpg" for row in rows])

def parts(count, make):
    for first in range(0, count, 50_000):
        yield make(np.arange(first, min(first + 50_000, count)))

def images(rows):
    ids = names(rows)
    return pa.record_batch([pa.array(rows), ids, ids, pa.array(rows % 7 + 1, pa.int32()),
                            pa.array(rows % 5 + 1, pa.int32())], schema=IMAGES)

def pairs(links):  # groups of five images, each a chain
    rows = links // 4 * 5 + links % 4
    ids = {"image_id": names(rows), "other_id": names(rows + 1)}
    table = pa.table(ids)
    swap = [min(a, b) != a for a, b in zip(*(c.to_pylist() for c in table.columns))]
    a, b = ids["image_id"], ids["other_id"]
    first = pa.array([y if s else x for x, y, s in zip(a.to_pylist(), b.to_pylist(), swap)])
    second = pa.array([x if s else y for x, y, s in zip(a.to_pylist(), b.to_pylist(), swap)])
    columns = {"image_id": first, "other_id": second, "score": pa.array(np.full(len(rows), 0.99))}
    columns |= {name: pa.nulls(len(rows), pa.string()) for name in PAIRS.schema.names[3:]}
    return pa.record_batch(list(columns.values()), schema=PAIRS.schema)

folder = Path(sys.argv[1])
count = 1_000_000
before = peak()
counts = write_groups(
    parts(count, pairs), parts(count // 4 * 5 + 100_000, images),
    parts(count, lambda rows: pa.record_batch([pa.array(rows), pa.array(rows % 11)], schema=SIZES)),
    GroupFiles(folder / "groups.parquet", folder / "keep.txt", folder / "remove.txt"),
)
print(counts.groups, counts.grouped_images, counts.removed_images, peak() - before)
"""


@pytest.mark.nightly
def test_million_pairs_stay_within_bounded_memory(tmp_path):
    completed = subprocess.run(
        [sys.executable, "-c", MILLION_PAIRS, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    groups, images, removed, megabytes = map(int, completed.stdout.split())
    assert (groups, images, removed) == (250_000, 1_250_000, 1_000_000)
    assert megabytes < 1000  # 512 MB of DuckDB, 10 MB of components, batches
    table = pq.read_table(tmp_path / "groups.parquet", columns=["group", "keep"])
    assert np.bincount(table["group"].to_numpy())[1:].tolist() == [5] * 250_000
    assert table["keep"].to_numpy().sum() == 250_000
    assert (tmp_path / "keep.txt").read_bytes().count(b"\n") == 250_000 + 100_000
