"""Write and read the canonical listing of a source: every image once, in one fixed order.

DuckDB sorts and checks it within a memory limit, so that a listing may be larger than memory. The
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
        items: The items of the source. Items that are equal in all fields count once.
        target: The local file to write.
        columns: Metadata columns, whose values are in `Item.more`; they follow the fixed ones.
        labels: A table (image_id, label, further columns) that replaces the labels of the items and
            the columns of the same name; items that are not in the table have no label.
        limit: Number of rows to keep, the first ones; all by default.
        chunk_rows: Rows per chunk; by default chosen by `chunk_rows_for`.
        note: Called with a sentence for the log.

    Raises:
        InputError: If two different items have the same image_id.
    """
    label_columns = _NO_COLUMNS if labels is None else pa.schema(list(labels.schema)[2:])
    item_columns = [field for field in columns if field.name not in label_columns.names]
    schema = pa.schema([*LISTING.schema, *item_columns, *label_columns])
    with tempfile.TemporaryDirectory() as temp_dir, open_database(temp_dir) as database:
        _insert_items(database, items, columns)
        if _find_duplicate(database) is not None:
            _drop_repeated(database, note)
            _refuse_duplicates(database)
        rows = _count(database, limit)
        chunk_rows = chunk_rows or chunk_rows_for(rows)
        metadata_names = [
            f"o.m{number}" for number, field in enumerate(columns) if field in item_columns
        ]
        write_rows(_sorted(database, metadata_names, labels, limit), target, schema, chunk_rows)
    return rows, chunk_rows


@contextmanager
def open_database(temp_dir: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB database with a memory limit that spills to a folder.

    Its progress bar is off: it would be written to stdout when a query takes two seconds.
    """
    with duckdb.connect(f"{temp_dir}/listing.duckdb") as database:
        database.execute(f"SET memory_limit = '{_MEMORY}'")
        database.execute(f"SET temp_directory = '{temp_dir}'")
        database.execute("SET enable_progress_bar = false")
        yield database


def _database_columns(columns: Iterable[pa.Field], first: int = 0) -> list[pa.Field]:
    """Rename columns for DuckDB, whose names ignore case, and drop the time zones of timestamps."""
    return [
        pa.field(f"m{number}", _without_time_zone(field.type))
        for number, field in enumerate(columns, first)
    ]


def _without_time_zone(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _insert_items(
    database: duckdb.DuckDBPyConnection, items: Iterable[Item], columns: pa.Schema
) -> None:
    schema = pa.schema([*_ITEM_SCHEMA, ("container", pa.string()), *_database_columns(columns)])
    remaining = iter(items)
    database.register("batch", schema.empty_table())
    database.execute("CREATE TABLE offered AS SELECT * FROM batch")
    while batch := list(islice(remaining, _BATCH)):
        arrays = [
            pa.array([getattr(item, name) for item in batch], kind)
            for name, kind in zip(_ITEM_SCHEMA.names, _ITEM_SCHEMA.types, strict=True)
        ]
        arrays.append(pa.array([container_of(item.path) for item in batch], pa.string()))
        for number, field in enumerate(columns):
            values = pa.array([item.more[number] for item in batch], field.type)
            arrays.append(values.cast(_without_time_zone(field.type)))
        database.register("batch", pa.table(arrays, schema=schema))
        database.execute("INSERT INTO offered SELECT * FROM batch")


def _find_duplicate(database: duckdb.DuckDBPyConnection) -> tuple[str, str, str] | None:
    """Return the first image_id that two items share, with two of their paths, or None."""
    duplicate: tuple[str, str, str] | None = database.execute(
        "SELECT image_id, min(path), max(path) FROM offered GROUP BY image_id HAVING count(*) > 1 "
        "ORDER BY image_id LIMIT 1"
    ).fetchone()
    return duplicate


def _drop_repeated(database: duckdb.DuckDBPyConnection, note: Callable[[str], None]) -> None:
    """Keep one of each group of equal items, which occur where a list repeats a line."""
    before = _count(database, None)
    database.execute("CREATE TABLE once AS SELECT DISTINCT * FROM offered")
    database.execute("DROP TABLE offered")
    database.execute("ALTER TABLE once RENAME TO offered")
    if repeated := before - _count(database, None):
        note(f"{repeated} of {before} lines repeat others and count once")


def _refuse_duplicates(database: duckdb.DuckDBPyConnection) -> None:
    duplicate = _find_duplicate(database)
    if duplicate is None:
        return
    name, path, other = duplicate
    if path == other:
        raise InputError(
            f"{name} is listed twice with different labels or other columns; keep one of its lines"
        )
    raise InputError(f"two images have the id {name} ({path} and {other}); rename one of them")


def _count(database: duckdb.DuckDBPyConnection, limit: int | None) -> int:
    rows = int(database.execute("SELECT count(*) FROM offered").fetchall()[0][0])
    return rows if limit is None else min(limit, rows)


def _sorted(
    database: duckdb.DuckDBPyConnection,
    metadata_names: list[str],
    labels: pa.Table | None,
    limit: int | None,
) -> Iterator[pa.RecordBatch]:
    names = [f"o.{name}" for name in _ITEM_SCHEMA.names]
    source = "offered o"
    if labels is not None:
        fields = [*list(labels.schema)[:2], *_database_columns(list(labels.schema)[2:])]
        renamed = labels.rename_columns([field.name for field in fields]).cast(pa.schema(fields))
        database.register("label_table", renamed)
        source += " LEFT JOIN label_table g USING (image_id)"
        names[names.index("o.label")] = "g.label"
        metadata_names = [*metadata_names, *(f"g.{field.name}" for field in fields[2:])]
    limit_clause = "" if limit is None else f" LIMIT {int(limit)}"
    result = database.sql(
        f"SELECT {', '.join([*names, *metadata_names])} FROM {source} "  # noqa: S608 - names of ours
        f"ORDER BY o.container NULLS FIRST, o.place NULLS FIRST, o.image_id{limit_clause}"
    )
    yield from result.to_arrow_reader(_BATCH)


def write_rows(
    batches: Iterator[pa.RecordBatch],
    target: Path,
    schema: pa.Schema,
    chunk_rows: int,
    first_row: int = 0,
) -> None:
    """Write a checksummed listing in row groups of whole chunks.

    Args:
        batches: The rows in their order; a column `row` in them is ignored.
        target: The local file to write.
        schema: Schema of the file; its first column is `row`.
        chunk_rows: Rows per chunk.
        first_row: Row number of the first row.
    """
    group_rows = chunk_rows * ROW_GROUP_CHUNKS
    row = first_row
    with open(target, "wb") as file, parquet_writer(file, schema) as writer:
        pending: list[pa.Table] = []
        pending_rows = 0
        for batch in batches:
            numbers = pa.array(range(row, row + batch.num_rows), pa.int64())
            others = [
                c for c, f in zip(batch.columns, batch.schema, strict=True) if f.name != "row"
            ]
            pending.append(pa.table([numbers, *others], names=schema.names).cast(schema))
            row += batch.num_rows
            pending_rows += batch.num_rows
            if pending_rows >= group_rows:
                table = pa.concat_tables(pending).combine_chunks()
                complete = pending_rows // group_rows * group_rows
                writer.write_table(table.slice(0, complete), row_group_size=group_rows)
                pending, pending_rows = [table.slice(complete)], pending_rows - complete
        table = pa.concat_tables([schema.empty_table(), *pending]).combine_chunks()
        writer.write_table(table, row_group_size=group_rows)
    fill_file_checksum(target)


def sample_items(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw a random sample of `count` rows of a listing (all if it has fewer), in row order.

    Returns one dict per row, with the columns of the listing. Equal seeds draw equal rows.
    """
    with pq.ParquetFile(path) as parquet:
        sampled = sample_rows(parquet.metadata.num_rows, count, seed)
        items: list[dict[str, Any]] = []
        rows_read = 0
        for batch in parquet.iter_batches(_BATCH):
            first, last = np.searchsorted(sampled, [rows_read, rows_read + len(batch)])
            items += batch.take(pa.array(sampled[first:last] - rows_read)).to_pylist()
            rows_read += len(batch)
    return items


def sample_rows(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw min(count, rows) of the row numbers 0 to rows - 1 without replacement, ascending."""
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
        name: Its name, whose suffix determines the format.
        split: If the file has a column `split`, keep the rows with this value only.

    Raises:
        InputError: If the file cannot be parsed, a column is missing or occurs twice, or an image
            is named twice.
    """
    try:
        if name.lower().endswith((".parquet", ".pq")):
            table = pq.read_table(pa.BufferReader(data))
        else:
            table = csv_rows.parse_csv(data, f"--labels {name}", ("image_id", "label", "split"))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"--labels {name} is neither CSV nor Parquet ({error})") from error
    names = table.column_names
    canonical = {find_column(names, column): column for column in ("image_id", "label", "split")}
    table = table.rename_columns([canonical.get(name, name) for name in names])
    for column in ("image_id", "label"):
        count = table.column_names.count(column)
        if count != 1:
            raise InputError(
                f"--labels {name} has {count or 'no'} column {column}; it needs image_id,label"
            )
    if split is not None and "split" in table.column_names:
        table = table.filter(pc.equal(table["split"], split))
    metadata = metadata_schema(table.schema, ("split",))
    schema = pa.schema([("image_id", pa.string()), ("label", pa.string()), *metadata])
    table = _converted(table, schema)
    counts = table["image_id"].value_counts()
    repeated = [str(c["values"]) for c in counts if c["counts"].as_py() > 1]
    if repeated:
        raise InputError(f"--labels {name} names {repeated[0]} twice; keep one line per image")
    labels = pc.if_else(pc.equal(table["label"], ""), pa.scalar(None, pa.string()), table["label"])
    return table.set_column(1, "label", labels)


def _converted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        pa.chunked_array([convert_array(a, f.type) for a in table[f.name].chunks], f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
