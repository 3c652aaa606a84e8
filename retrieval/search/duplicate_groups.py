"""Group duplicate images by the pairs that reach a score, and choose the image of each to keep.

A group is a connected component: two images are in one group if a chain of pairs links them. DuckDB
numbers, joins and sorts images and pairs out of core, within 512 MB; beside it, memory holds one
int64 per image that is in a pair: 8 bytes, or 160 MB for 10^7 pairs of distinct images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.schemas import GROUPS
from retrieval.listing.listing import open_database
from retrieval.storage.checksum import fill_file_checksum, parquet_writer
from retrieval.vectors.compiled import compiled

IMAGES = pa.schema(
    [("row", pa.int64()), ("image_id", pa.string()), ("path", pa.string()),
     ("width", pa.int32()), ("height", pa.int32())]
)  # fmt: skip
"""Columns of the images of a gallery, as in SHARD_ROWS."""
SIZES = pa.schema([("row", pa.int64()), ("size", pa.int64())])
"""Sizes of the files of images in bytes, as in LISTING; rows without an image are ignored."""

_BATCH = 1 << 16  # rows of a batch, and of a row group
_LINE_BREAKS = ("\n", "\r")

_TABLES = """
create table images as
    select image_id, path, width::bigint * height as pixels, size
    from image_rows left join size_rows using (row);
create table pairs as select image_id, other_id, score from pair_rows;
create table paired as select image_id from pairs union select other_id from pairs;
create table members as
    select row_number() over (order by image_id) - 1 as number, image_id, path, pixels, size
    from images semi join paired using (image_id)
"""
_LINKS = """
select one.number as first, other.number as second from pairs
join members one on one.image_id = pairs.image_id
join members other on other.image_id = pairs.other_id
"""
_GROUPS = """
create table ranked as
    select root, image_id, path, pixels, size,
        row_number() over in_group as place,
        count(*) over (partition by root) as images,
        lead(pixels) over in_group as next_pixels,
        lead(size) over in_group as next_size
    from members join components using (number)
    window in_group as (
        partition by root order by pixels desc nulls last, size desc nulls last, image_id
    );
create table kept as
    select root, image_id as kept_id, pixels as kept_pixels, size as kept_size,
        row_number() over (order by images desc, image_id) as "group"
    from ranked where place = 1;
create table duplicates as
    select "group", place, ranked.image_id, path, place = 1 as keep,
        case
            when place > 1 and pixels is distinct from kept_pixels then 'fewer pixels'
            when place > 1 and size is distinct from kept_size then 'smaller file'
            when place > 1 then 'later image_id'
            when pixels is distinct from next_pixels then 'most pixels'
            when size is distinct from next_size then 'largest file'
            else 'first image_id'
        end as reason,
        score
    from ranked join kept using (root)
    left join pairs on pairs.image_id = least(ranked.image_id, kept_id)
        and pairs.other_id = greatest(ranked.image_id, kept_id)
"""
_ORDERED_GROUPS = """
select "group", image_id, path, keep, reason, score from duplicates order by "group", place
"""
_KEPT_PATHS = """
select path from images anti join (select image_id from duplicates where not keep) using (image_id)
order by image_id
"""
_REMOVED_PATHS = """select path from duplicates where not keep order by "group", place"""


@dataclass(frozen=True)
class GroupCounts:
    """Numbers of groups, of images in them, of images to remove, and of paths left out of lists.

    A path with a line break is not written to a list, because a program that reads the list would
    take it for two paths.
    """

    groups: int
    grouped_images: int
    removed_images: int
    unlisted_paths: int


@dataclass(frozen=True)
class GroupFiles:
    """The local files that `write_groups` writes: the table GROUPS, and lists of paths."""

    groups: Path
    keep: Path
    remove: Path


def write_groups(
    pairs: Iterable[pa.RecordBatch], images: Iterable[pa.RecordBatch],
    sizes: Iterable[pa.RecordBatch], files: GroupFiles,
) -> GroupCounts:  # fmt: skip
    """Write the groups of duplicates and the lists of images to keep and to remove.

    An image without duplicates is kept. Of a group the image with the most pixels is kept, of equal
    ones the largest file, of equal ones the first by image_id; unknown sizes count as smallest.

    Args:
        pairs: The pairs, with the columns of PAIRS, in any order and division.
        images: All images, IMAGES.
        sizes: Sizes of files, SIZES.
        files: The files to write.

    Raises:
        Damaged: If an image of a pair is not among the images.
    """
    with tempfile.TemporaryDirectory() as temp_dir, open_database(temp_dir) as database:
        _load_images_and_pairs(database, pairs, images, sizes)
        components = _connected_components(database)
        reader = pa.RecordBatchReader.from_batches(_COMPONENTS, _component_batches(components))
        database.register("components", reader)
        database.execute(_GROUPS)
        _write_table(database, files.groups)
        unlisted = _write_paths(database, _KEPT_PATHS, files.keep)
        unlisted += _write_paths(database, _REMOVED_PATHS, files.remove)
        groups, grouped, removed = database.sql(
            "select count(*) filter (keep), count(*), count(*) filter (not keep) from duplicates"
        ).fetchall()[0]
    return GroupCounts(groups, grouped, removed, unlisted)


def _load_images_and_pairs(
    database: duckdb.DuckDBPyConnection, pairs: Iterable[pa.RecordBatch],
    images: Iterable[pa.RecordBatch], sizes: Iterable[pa.RecordBatch],
) -> None:  # fmt: skip
    pair_batches = (batch.select(_PAIR_COLUMNS.names) for batch in pairs)
    for name, schema, batches in (
        ("pair_rows", _PAIR_COLUMNS, pair_batches),
        ("image_rows", IMAGES, images),
        ("size_rows", SIZES, sizes),
    ):
        database.register(name, pa.RecordBatchReader.from_batches(schema, batches))
    database.execute(_TABLES)
    paired, members = database.sql(
        "select (select count(*) from paired), (select count(*) from members)"
    ).fetchall()[0]
    if paired != members:
        raise Damaged(
            f"the index has {members} of the {paired} images that are in pairs; build the index "
            "again and rank again"
        )


def _connected_components(database: duckdb.DuckDBPyConnection) -> NDArray[np.int64]:
    """Return the component of each member, (m,) int64: the number of its first member."""
    (count,) = database.sql("select count(*) from members").fetchall()[0]
    parents = np.arange(count, dtype=np.int64)
    for batch in database.sql(_LINKS).to_arrow_reader(_BATCH):
        link_components(parents, batch["first"].to_numpy(), batch["second"].to_numpy())
    flatten_components(parents)
    return parents


@compiled("void(int64[::1], Array(int64, 1, 'C', readonly=True), "
          "Array(int64, 1, 'C', readonly=True))")  # fmt: skip
def link_components(
    parents: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> None:
    """Unite the components of each pair of numbers, in place.

    `parents` (m,) holds a smaller number of the same component, or the number itself for a root. A
    root is the smallest number of its component, so the result does not depend on the order.
    """
    for position in range(len(first)):
        first_root, second_root = first[position], second[position]
        while parents[first_root] != first_root:
            parents[first_root] = parents[parents[first_root]]
            first_root = parents[first_root]
        while parents[second_root] != second_root:
            parents[second_root] = parents[parents[second_root]]
            second_root = parents[second_root]
        if first_root < second_root:
            parents[second_root] = first_root
        else:
            parents[first_root] = second_root


@compiled("void(int64[::1])")
def flatten_components(parents: NDArray[np.int64]) -> None:
    """Replace each parent by its root, in place."""
    for number in range(len(parents)):  # the parent of a number is smaller, so it is already a root
        parents[number] = parents[parents[number]]


_PAIR_COLUMNS = pa.schema(
    [("image_id", pa.string()), ("other_id", pa.string()), ("score", pa.float64())]
)
_COMPONENTS = pa.schema([("number", pa.int64()), ("root", pa.int64())])


def _component_batches(components: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(components), _BATCH):
        roots = components[first : first + _BATCH]
        numbers = np.arange(first, first + len(roots))
        yield pa.record_batch([pa.array(numbers), pa.array(roots)], schema=_COMPONENTS)


def _write_table(database: duckdb.DuckDBPyConnection, path: Path) -> None:
    with open(path, "wb") as file, parquet_writer(file, GROUPS.schema) as writer:
        for batch in database.sql(_ORDERED_GROUPS).to_arrow_reader(_BATCH):
            writer.write_table(pa.Table.from_batches([batch]).cast(GROUPS.schema))
    fill_file_checksum(path)


def _write_paths(database: duckdb.DuckDBPyConnection, query: str, path: Path) -> int:
    """Write one path per line; return the number of paths that are left out."""
    unlisted = 0
    with open(path, "wb") as file:
        for batch in database.sql(query).to_arrow_reader(_BATCH):
            paths = batch["path"].to_pylist()
            listed = [
                name for name in paths if name and not any(end in name for end in _LINE_BREAKS)
            ]
            unlisted += len(paths) - len(listed)
            file.write("".join(f"{name}\n" for name in listed).encode())
    return unlisted
