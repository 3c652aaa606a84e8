"""Write and read the canonical listing of a source: every image once, in one fixed order.

DuckDB sorts and checks it under a memory limit, so that a listing may be larger than memory. The
number of a row is its position in this order; chunks are ranges of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import InputError
from retrieval.core.records import Item
from retrieval.core.schemas import LISTING
from retrieval.listing.chunking import ROW_GROUP_CHUNKS, chunk_rows_for
from retrieval.sources import csv_rows
from retrieval.sources.container_paths import container_of
from retrieval.sources.metadata_columns import convert_array, find_column, metadata_schema
from retrieval.storage.checksum import fill_file_checksum, parquet_writer

_MEMORY = "512MB"
_BATCH = 1 << 14
_ITEM_SCHEMA = pa.schema([f for f in LISTING.schema if f.name != "row"])
_NO_COLUMNS = pa.schema([])


def write_listing(
    items: Iterable[Item],
    target: Path,
    *,
    columns: pa.Schema = _NO_COLUMNS,
    labels: pa.Table | None = None,
    limit: int | None = None,
    chunk_rows: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Sort items into a checksummed Parquet file and return its rows and rows per chunk.

    Rows are ordered by image_id; items in containers by container and position, so that each
    container is read once, from front to back. The bytes depend on the items, not on their order.

    Args:
        items: What the source contains. An item that repeats another in all fields counts once.
        target: The local file to write.
        columns: Further columns, whose values are in `Item.more`; they follow the fixed ones.
        labels: A table (image_id, label, further columns) that replaces the labels of the items and
            the columns of the same name; an item it does not name has no label.
        limit: Keep this many rows, the first ones; all by default.
        chunk_rows: Rows per chunk; by default chosen by `chunk_rows_for`.
        note: Called with a sentence for the log.

    Raises:
        InputError: If two different items have the same image_id.
    """
    label_columns = _NO_COLUMNS if labels is None else pa.schema(list(labels.schema)[2:])
    item_columns = [field for field in columns if field.name not in label_columns.names]
    schema = pa.schema([*LISTING.schema, *item_columns, *label_columns])
    with tempfile.TemporaryDirectory() as scratch, open_database(scratch) as base:
        _insert_items(base, items, columns)
        if _find_duplicate(base) is not None:
            _drop_repeated(base, note)
            _refuse_duplicates(base)
        rows = _count(base, limit)
        chunk_rows = chunk_rows or chunk_rows_for(rows)
        kept = [f"o.m{place}" for place, field in enumerate(columns) if field in item_columns]
        write_rows(_sorted(base, kept, labels, limit), target, schema, chunk_rows)
    return rows, chunk_rows


@contextmanager
def open_database(scratch: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB database with a memory limit that spills to a folder.

    Its progress bar is off: it would be written to stdout when a query takes two seconds.
    """
    with duckdb.connect(f"{scratch}/listing.duckdb") as base:
        base.execute(f"SET memory_limit = '{_MEMORY}'")
        base.execute(f"SET temp_directory = '{scratch}'")
        base.execute("SET enable_progress_bar = false")
        yield base


def _database_columns(columns: Iterable[pa.Field], first: int = 0) -> list[pa.Field]:
    """Rename columns for DuckDB, whose names ignore case, and drop the time zones of timestamps."""
    return [
        pa.field(f"m{place}", _without_time_zone(field.type))
        for place, field in enumerate(columns, first)
    ]


def _without_time_zone(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _insert_items(
    base: duckdb.DuckDBPyConnection, items: Iterable[Item], columns: pa.Schema
) -> None:
    schema = pa.schema([*_ITEM_SCHEMA, ("container", pa.string()), *_database_columns(columns)])
    remaining = iter(items)
    base.register("batch", schema.empty_table())
    base.execute("CREATE TABLE offered AS SELECT * FROM batch")
    while batch := list(islice(remaining, _BATCH)):
        arrays = [
            pa.array([getattr(item, name) for item in batch], kind)
            for name, kind in zip(_ITEM_SCHEMA.names, _ITEM_SCHEMA.types, strict=True)
        ]
        arrays.append(pa.array([container_of(item.path) for item in batch], pa.string()))
        for place, field in enumerate(columns):
            more = pa.array([item.more[place] for item in batch], field.type)
            arrays.append(more.cast(_without_time_zone(field.type)))
        base.register("batch", pa.table(arrays, schema=schema))
        base.execute("INSERT INTO offered SELECT * FROM batch")


def _find_duplicate(base: duckdb.DuckDBPyConnection) -> tuple[str, str, str] | None:
    """Return the first image_id that two items share, with two of their paths, or None."""
    duplicate: tuple[str, str, str] | None = base.execute(
        "SELECT image_id, min(path), max(path) FROM offered GROUP BY image_id HAVING count(*) > 1 "
        "ORDER BY image_id LIMIT 1"
    ).fetchone()
    return duplicate


def _drop_repeated(base: duckdb.DuckDBPyConnection, note: Callable[[str], None]) -> None:
    """Keep one of each group of equal items, as when a list repeats a line."""
    before = _count(base, None)
    base.execute("CREATE TABLE once AS SELECT DISTINCT * FROM offered")
    base.execute("DROP TABLE offered")
    base.execute("ALTER TABLE once RENAME TO offered")
    if repeated := before - _count(base, None):
        note(f"{repeated} of {before} lines repeat others and count once")


def _refuse_duplicates(base: duckdb.DuckDBPyConnection) -> None:
    duplicate = _find_duplicate(base)
    if duplicate is None:
        return
    name, path, other = duplicate
    if path == other:
        raise InputError(
            f"{name} is listed twice with different labels or other columns; keep one of its lines"
        )
    raise InputError(f"two images have the id {name} ({path} and {other}); rename one of them")


def _count(base: duckdb.DuckDBPyConnection, limit: int | None) -> int:
    rows = int(base.execute("SELECT count(*) FROM offered").fetchall()[0][0])
    return rows if limit is None else min(limit, rows)


def _sorted(
    base: duckdb.DuckDBPyConnection, kept: list[str], labels: pa.Table | None, limit: int | None
) -> Iterator[pa.RecordBatch]:
    names = [f"o.{name}" for name in _ITEM_SCHEMA.names]
    source = "offered o"
    if labels is not None:
        fields = [*list(labels.schema)[:2], *_database_columns(list(labels.schema)[2:])]
        renamed = labels.rename_columns([field.name for field in fields]).cast(pa.schema(fields))
        base.register("given", renamed)
        source += " LEFT JOIN given g USING (image_id)"
        names[names.index("o.label")] = "g.label"
        kept = [*kept, *(f"g.{field.name}" for field in fields[2:])]
    tail = "" if limit is None else f" LIMIT {int(limit)}"
    answer = base.sql(
        f"SELECT {', '.join([*names, *kept])} FROM {source} "  # noqa: S608 - names of ours
        f"ORDER BY o.container NULLS FIRST, o.place NULLS FIRST, o.image_id{tail}"
    )
    yield from answer.to_arrow_reader(_BATCH)


def write_rows(
    batches: Iterator[pa.RecordBatch],
    target: Path,
    schema: pa.Schema,
    chunk_rows: int,
    base: int = 0,
) -> None:
    """Write a checksummed listing in row groups of whole chunks.

    Args:
        batches: The rows, without their numbers.
        target: The local file to write.
        schema: Of the file; its first column is `row`.
        chunk_rows: Rows per chunk.
        base: The number of the first row.
    """
    group = chunk_rows * ROW_GROUP_CHUNKS
    row = base
    with open(target, "wb") as file, parquet_writer(file, schema) as writer:
        waiting: list[pa.Table] = []
        waiting_rows = 0
        for batch in batches:
            numbers = pa.array(range(row, row + batch.num_rows), pa.int64())
            rest = [c for c, f in zip(batch.columns, batch.schema, strict=True) if f.name != "row"]
            waiting.append(pa.table([numbers, *rest], names=schema.names).cast(schema))
            row += batch.num_rows
            waiting_rows += batch.num_rows
            if waiting_rows >= group:
                table = pa.concat_tables(waiting).combine_chunks()
                whole = waiting_rows // group * group
                writer.write_table(table.slice(0, whole), row_group_size=group)
                waiting, waiting_rows = [table.slice(whole)], waiting_rows - whole
        table = pa.concat_tables([schema.empty_table(), *waiting]).combine_chunks()
        writer.write_table(table, row_group_size=group)
    fill_file_checksum(target)


def sample_items(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw a random sample of `count` rows of a listing (all if it has fewer), in row order."""
    with pq.ParquetFile(path) as parquet:
        wanted = sample_rows(parquet.metadata.num_rows, count, seed)
        items: list[dict[str, Any]] = []
        seen = 0
        for batch in parquet.iter_batches(_BATCH):
            first, last = np.searchsorted(wanted, [seen, seen + len(batch)])
            items += batch.take(pa.array(wanted[first:last] - seen)).to_pylist()
            seen += len(batch)
    return items


def sample_rows(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw `count` of `rows` row numbers (all if there are fewer), ascending, (count,)."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(rows, min(count, rows), replace=False, shuffle=False))


def count_labelled_rows(path: Path) -> int:
    """Count the images of a listing that have a label."""
    labels = pq.read_table(path, columns=["label"])["label"]
    return len(labels) - int(labels.null_count)


def read_labels(data: bytes, name: str, split: str | None) -> pa.Table:
    """Read a labels file (CSV or Parquet) as a table (image_id, label, further columns).

    An empty label becomes null.

    Args:
        data: The content of the file.
        name: Its name, which tells the format.
        split: If the file has a column `split`, keep the rows with this value only.

    Raises:
        InputError: If a column is missing or doubled, or an image is named twice.
    """
    try:
        if name.lower().endswith((".parquet", ".pq")):
            table = pq.read_table(pa.BufferReader(data))
        else:
            table = csv_rows.parse_csv(data, f"--labels {name}", ("image_id", "label", "split"))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"--labels {name} is neither CSV nor Parquet ({error})") from error
    names = table.column_names
    known = {find_column(names, column): column for column in ("image_id", "label", "split")}
    table = table.rename_columns([known.get(name, name) for name in names])
    for column in ("image_id", "label"):
        count = table.column_names.count(column)
        if count != 1:
            raise InputError(
                f"--labels {name} has {count or 'no'} column {column}; it needs image_id,label"
            )
    if split is not None and "split" in table.column_names:
        table = table.filter(pc.equal(table["split"], split))
    more = metadata_schema(table.schema, ("split",))
    table = _converted(table, pa.schema([("image_id", pa.string()), ("label", pa.string()), *more]))
    counts = table["image_id"].value_counts()
    repeated = [str(c["values"]) for c in counts if c["counts"].as_py() > 1]
    if repeated:
        raise InputError(f"--labels {name} names {repeated[0]} twice; keep one line per image")
    blank = pc.if_else(pc.equal(table["label"], ""), pa.scalar(None, pa.string()), table["label"])
    return table.set_column(1, "label", blank)


def _converted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        pa.chunked_array([convert_array(a, f.type) for a in table[f.name].chunks], f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
