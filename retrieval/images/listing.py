"""The canonical listing of a source: every image once, in one order, written once.

Sorted and checked by DuckDB under a memory limit, so that the listing may be larger than memory.
A row's number is its place in this order; all later work is cut by it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from retrieval.errors import InputError
from retrieval.images.chunks import ROW_GROUP_CHUNKS, chunk_rows_for
from retrieval.storage.seal import parquet_writer, seal
from retrieval.tables import LISTING, Item

_MEMORY = "512MB"
_BATCH = 1 << 14
_OFFERED = pa.schema([f for f in LISTING.schema if f.name != "row"])


def write_listing(
    items: Iterable[Item],
    target: Path,
    *,
    labels: pa.Table | None = None,
    limit: int | None = None,
    chunk_rows: int | None = None,
) -> tuple[int, int]:
    """Sort items by image_id into a sealed Parquet file; give its rows and the chunk size.

    `labels` (image_id, label) replaces the labels of the items it names; an item it does not name
    has none. Duplicate ids are refused, naming one. `limit` keeps the first rows. Bytes depend on
    the items alone, not on their order: DuckDB sorts, one pyarrow writer writes.
    """
    with tempfile.TemporaryDirectory() as scratch, connect(scratch) as base:
        _load(base, items)
        _refuse_duplicates(base)
        rows = _count(base, limit)
        step = chunk_rows or chunk_rows_for(rows)
        write_rows(_sorted(base, labels, limit), target, LISTING.schema, step)
    return rows, step


@contextmanager
def connect(scratch: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database that keeps to its memory, and to a folder for what does not fit."""
    with duckdb.connect(f"{scratch}/listing.duckdb") as base:
        base.execute(f"SET memory_limit = '{_MEMORY}'")
        base.execute(f"SET temp_directory = '{scratch}'")
        yield base


def _load(base: duckdb.DuckDBPyConnection, items: Iterable[Item]) -> None:
    base.execute(
        "CREATE TABLE offered "
        "(image_id VARCHAR, path VARCHAR, size BIGINT, mtime_ns BIGINT, label VARCHAR, "
        "place BIGINT, problem VARCHAR)"
    )
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        columns = [[getattr(item, name) for item in batch] for name in _OFFERED.names]
        base.register("batch", pa.table(columns, schema=_OFFERED))
        base.execute("INSERT INTO offered SELECT * FROM batch")


def _refuse_duplicates(base: duckdb.DuckDBPyConnection) -> None:
    twice = base.execute(
        "SELECT image_id, min(path), max(path) FROM offered GROUP BY image_id HAVING count(*) > 1 "
        "ORDER BY image_id LIMIT 1"
    ).fetchall()
    for name, one, other in twice:
        raise InputError(f"two images have the id {name} ({one} and {other}); rename one of them")


def _count(base: duckdb.DuckDBPyConnection, limit: int | None) -> int:
    rows = int(base.execute("SELECT count(*) FROM offered").fetchall()[0][0])
    return rows if limit is None else min(limit, rows)


def _sorted(
    base: duckdb.DuckDBPyConnection, labels: pa.Table | None, limit: int | None
) -> Iterator[pa.RecordBatch]:
    columns = "image_id, path, size, mtime_ns, label, place, problem"
    source = "offered"
    if labels is not None:
        base.register("given", labels)
        source = (
            "(SELECT o.image_id, o.path, o.size, o.mtime_ns, g.label, o.place, o.problem "
            "FROM offered o LEFT JOIN given g USING (image_id))"
        )
    tail = "" if limit is None else f" LIMIT {int(limit)}"
    answer = base.sql(f"SELECT {columns} FROM {source} ORDER BY image_id{tail}")  # noqa: S608 - ours
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
            columns = [numbers, *(batch[name] for name in schema.names if name != "row")]
            waiting.append(pa.table(columns, names=schema.names).cast(schema))
            row += batch.num_rows
            held += batch.num_rows
            if held >= group:
                table = pa.concat_tables(waiting).combine_chunks()
                whole = held // group * group
                writer.write_table(table.slice(0, whole), row_group_size=group)
                waiting, held = [table.slice(whole)], held - whole
        table = pa.concat_tables([schema.empty_table(), *waiting]).combine_chunks()
        writer.write_table(table, row_group_size=group)
    target.write_bytes(seal(target.read_bytes()))


def sampled_items(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` rows of a listing, all of them where it has no more; in their order."""
    with pq.ParquetFile(path) as parquet:
        rows = parquet.metadata.num_rows
        drawn = np.random.default_rng(seed).choice(
            rows, min(count, rows), replace=False, shuffle=False
        )
        wanted = np.sort(drawn)
        items: list[dict[str, Any]] = []
        seen = 0
        for batch in parquet.iter_batches(_BATCH):
            first, last = np.searchsorted(wanted, [seen, seen + len(batch)])
            items += batch.take(pa.array(wanted[first:last] - seen)).to_pylist()
            seen += len(batch)
    return items


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
    """Read a labels file (CSV or Parquet: image_id,label and maybe split) as (image_id, label).

    With a column `split` only the rows of `split` ("gallery" or "queries") count. An empty label
    is no label. Refused: columns missing or doubled, an image named twice.
    """
    try:
        source = pa.BufferReader(data)
        if name.lower().endswith((".parquet", ".pq")):
            table = pq.read_table(source)
        else:
            text = pa.csv.ConvertOptions(
                column_types={k: pa.string() for k in ("image_id", "label", "split")},
                strings_can_be_null=False,
            )
            table = pa.csv.read_csv(source, convert_options=text)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"--labels {name} is neither CSV nor Parquet ({error})") from error
    for column in ("image_id", "label"):
        count = table.column_names.count(column)
        if count != 1:
            raise InputError(
                f"--labels {name} has {count or 'no'} column {column}; it needs image_id,label"
            )
    if split is not None and "split" in table.column_names:
        table = table.filter(pc.equal(table["split"], split))
    table = table.select(["image_id", "label"]).cast(
        pa.schema([("image_id", pa.string()), ("label", pa.string())])
    )
    counts = table["image_id"].value_counts()
    repeated = [str(c["values"]) for c in counts if c["counts"].as_py() > 1]
    if repeated:
        raise InputError(f"--labels {name} names {repeated[0]} twice; keep one line an image")
    blank = pc.if_else(pc.equal(table["label"], ""), pa.scalar(None, pa.string()), table["label"])
    return table.set_column(1, "label", blank)
