"""The canonical listing of a source: every image once, in one order, written once.

Sorted and checked by DuckDB under a memory limit, so that the listing may be larger than memory.
A row's number is its place in this order; all later work is cut by it.
"""

from __future__ import annotations

import hashlib
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
from retrieval.sources.metadata_columns import converted, further, named
from retrieval.storage.checksum import parquet_writer, seal_file

_MEMORY = "512MB"
_BATCH = 1 << 14
_OFFERED = pa.schema([f for f in LISTING.schema if f.name != "row"])
_NONE = pa.schema([])


def write_listing(
    items: Iterable[Item],
    target: Path,
    *,
    columns: pa.Schema = _NONE,
    labels: pa.Table | None = None,
    limit: int | None = None,
    chunk_rows: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Sort items into a sealed Parquet file; give its rows and the chunk size.

    By image_id; what lies in containers by container and place, so that each is read once, from
    front to back. `columns` are those whose values stand in `Item.more`; they follow the fixed
    ones. `labels` (image_id, label, more) replaces the labels of the items, and the columns it has
    in common with them; an item it does not name has none. An item that comes again, equal in all
    it says, counts once, and `note` gets a sentence; other duplicate ids are refused, naming one.
    `limit` keeps the first rows. Bytes depend on the items alone, not on their order: DuckDB
    sorts, one pyarrow writer writes.
    """
    given = _NONE if labels is None else pa.schema(list(labels.schema)[2:])
    own = [field for field in columns if field.name not in given.names]
    schema = pa.schema([*LISTING.schema, *own, *given])
    with tempfile.TemporaryDirectory() as scratch, connect(scratch) as base:
        _load(base, items, columns)
        if _duplicate(base) is not None:
            _drop_repeated(base, note)
            _refuse_duplicates(base)
        rows = _count(base, limit)
        step = chunk_rows or chunk_rows_for(rows)
        kept = [f"o.m{place}" for place, field in enumerate(columns) if field in own]
        write_rows(_sorted(base, kept, labels, limit), target, schema, step)
    return rows, step


@contextmanager
def connect(scratch: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database that keeps to its memory, and to a folder for what does not fit.

    It draws no bar, which would go to stdout where something takes two seconds.
    """
    with duckdb.connect(f"{scratch}/listing.duckdb") as base:
        base.execute(f"SET memory_limit = '{_MEMORY}'")
        base.execute(f"SET temp_directory = '{scratch}'")
        base.execute("SET enable_progress_bar = false")
        yield base


def _inside(columns: Iterable[pa.Field], first: int = 0) -> list[pa.Field]:
    """Give columns as DuckDB gets them: it takes Path for path, and times only without a zone."""
    return [
        pa.field(f"m{place}", _unzoned(field.type)) for place, field in enumerate(columns, first)
    ]


def _unzoned(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _load(base: duckdb.DuckDBPyConnection, items: Iterable[Item], columns: pa.Schema) -> None:
    schema = pa.schema([*_OFFERED, ("container", pa.string()), *_inside(columns)])
    rest = iter(items)
    base.register("batch", schema.empty_table())
    base.execute("CREATE TABLE offered AS SELECT * FROM batch")
    while batch := list(islice(rest, _BATCH)):
        arrays = [
            pa.array([getattr(item, name) for item in batch], kind)
            for name, kind in zip(_OFFERED.names, _OFFERED.types, strict=True)
        ]
        arrays.append(pa.array([container_of(item.path) for item in batch], pa.string()))
        for place, field in enumerate(columns):
            more = pa.array([item.more[place] for item in batch], field.type)
            arrays.append(more.cast(_unzoned(field.type)))
        base.register("batch", pa.table(arrays, schema=schema))
        base.execute("INSERT INTO offered SELECT * FROM batch")


def _duplicate(base: duckdb.DuckDBPyConnection) -> tuple[str, str, str] | None:
    """Return an id that two items have, with the paths of two of them; None without any."""
    found: tuple[str, str, str] | None = base.execute(
        "SELECT image_id, min(path), max(path) FROM offered GROUP BY image_id HAVING count(*) > 1 "
        "ORDER BY image_id LIMIT 1"
    ).fetchone()
    return found


def _drop_repeated(base: duckdb.DuckDBPyConnection, note: Callable[[str], None]) -> None:
    """Keep one of items that are equal, as where a list has a line twice."""
    before = _count(base, None)
    base.execute("CREATE TABLE once AS SELECT DISTINCT * FROM offered")
    base.execute("DROP TABLE offered")
    base.execute("ALTER TABLE once RENAME TO offered")
    if repeated := before - _count(base, None):
        note(f"{repeated} of {before} lines repeat others and count once")


def _refuse_duplicates(base: duckdb.DuckDBPyConnection) -> None:
    duplicate = _duplicate(base)
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
    names = [f"o.{name}" for name in _OFFERED.names]
    source = "offered o"
    if labels is not None:
        fields = [*list(labels.schema)[:2], *_inside(list(labels.schema)[2:])]
        given = labels.rename_columns([field.name for field in fields]).cast(pa.schema(fields))
        base.register("given", given)
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
    """Write rows numbered from `base` on, sealed, in row groups of whole chunks."""
    group = chunk_rows * ROW_GROUP_CHUNKS
    row = base
    with open(target, "wb") as file, parquet_writer(file, schema) as writer:
        waiting: list[pa.Table] = []
        held = 0
        for batch in batches:
            numbers = pa.array(range(row, row + batch.num_rows), pa.int64())
            rest = [c for c, f in zip(batch.columns, batch.schema, strict=True) if f.name != "row"]
            waiting.append(pa.table([numbers, *rest], names=schema.names).cast(schema))
            row += batch.num_rows
            held += batch.num_rows
            if held >= group:
                table = pa.concat_tables(waiting).combine_chunks()
                whole = held // group * group
                writer.write_table(table.slice(0, whole), row_group_size=group)
                waiting, held = [table.slice(whole)], held - whole
        table = pa.concat_tables([schema.empty_table(), *waiting]).combine_chunks()
        writer.write_table(table, row_group_size=group)
    seal_file(target)


def sampled_items(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` rows of a listing, all of them where it has no more; in their order."""
    with pq.ParquetFile(path) as parquet:
        wanted = sampled_rows(parquet.metadata.num_rows, count, seed)
        items: list[dict[str, Any]] = []
        seen = 0
        for batch in parquet.iter_batches(_BATCH):
            first, last = np.searchsorted(wanted, [seen, seen + len(batch)])
            items += batch.take(pa.array(wanted[first:last] - seen)).to_pylist()
            seen += len(batch)
    return items


def sampled_rows(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw `count` of so many rows, all of them where there are no more; ascending."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(rows, min(count, rows), replace=False, shuffle=False))


def labelled_rows(path: Path) -> int:
    """Count the images of a listing that have a label."""
    labels = pq.read_table(path, columns=["label"])["label"]
    return len(labels) - int(labels.null_count)


def digest(path: Path) -> str:
    """Give the SHA-256 of a listing file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def read_labels(data: bytes, name: str, split: str | None) -> pa.Table:
    """Read a labels file (CSV or Parquet) as a table (image_id, label, and what else it says).

    With a column `split` only the rows of `split` ("gallery" or "queries") count. An empty label
    is no label. Refused: columns missing or doubled, an image named twice.
    """
    try:
        if name.lower().endswith((".parquet", ".pq")):
            table = pq.read_table(pa.BufferReader(data))
        else:
            table = csv_rows.read(data, f"--labels {name}", ("image_id", "label", "split"))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"--labels {name} is neither CSV nor Parquet ({error})") from error
    names = table.column_names
    known = {named(names, column): column for column in ("image_id", "label", "split")}
    table = table.rename_columns([known.get(name, name) for name in names])
    for column in ("image_id", "label"):
        count = table.column_names.count(column)
        if count != 1:
            raise InputError(
                f"--labels {name} has {count or 'no'} column {column}; it needs image_id,label"
            )
    if split is not None and "split" in table.column_names:
        table = table.filter(pc.equal(table["split"], split))
    more = further(table.schema, ("split",))
    table = _converted(table, pa.schema([("image_id", pa.string()), ("label", pa.string()), *more]))
    counts = table["image_id"].value_counts()
    repeated = [str(c["values"]) for c in counts if c["counts"].as_py() > 1]
    if repeated:
        raise InputError(f"--labels {name} names {repeated[0]} twice; keep one line an image")
    blank = pc.if_else(pc.equal(table["label"], ""), pa.scalar(None, pa.string()), table["label"])
    return table.set_column(1, "label", blank)


def _converted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        pa.chunked_array([converted(a, f.type) for a in table[f.name].chunks], f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
