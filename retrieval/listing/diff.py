"""What changed in a source since a store was made of it, compared out of core.

By image_id: what is new, what is gone, what is another image now. Where the size or time of a file
differs and nothing else, only its bytes can tell; such images are *touched* and asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.listing.listing import connect, write_rows

Rows = NDArray[np.int64]
_STAT = ("size", "mtime_ns")
_KEPT_APART = ("row", "image_id", "place", *_STAT)
"""Columns that do not make another image of it: a tar written anew has its members elsewhere."""
_BATCH = 1 << 14


@dataclass(frozen=True)
class Changes:
    """Rows of the source as it is now (`fresh`), of the store as it was (`gone`), or of both."""

    fresh: Rows  # lines of the new listing that the store lacks
    gone: Rows  # rows of the store whose image is no more, or is another one now
    touched: pa.Table  # row (of the store), line (of the new listing): equal but for size or time

    def with_changed(self, changed: Rows) -> Changes:
        """Take those of the touched images as changed whose rows (of the store) are given."""
        rows, lines = (self.touched[name].to_numpy() for name in ("row", "line"))
        which = np.isin(rows, changed)
        return Changes(
            np.sort(np.concatenate([self.fresh, lines[which]])),
            np.sort(np.concatenate([self.gone, rows[which]])),
            self.touched.slice(0, 0),
        )

    def __bool__(self) -> bool:
        return bool(len(self.fresh) or len(self.gone))


def compare(now: Path, before: list[Path], deleted: Rows) -> Changes:
    """Compare a listing with those of a store's segments, without their deleted rows."""
    with _opened(now, before, deleted) as base:
        other, touched = _differences(base)
        base.execute(
            "CREATE TABLE both_sides AS "  # noqa: S608 - columns of our own listings, quoted
            f"SELECT l.row AS row, n.row AS line, {other} AS other, {touched} AS touched "
            "FROM live l JOIN now n USING (image_id)"
        )
        return Changes(
            _rows(
                base,
                "SELECT row FROM now ANTI JOIN live USING (image_id) "
                "UNION ALL SELECT line FROM both_sides WHERE other",
            ),
            _rows(
                base,
                "SELECT row FROM live ANTI JOIN now USING (image_id) "
                "UNION ALL SELECT row FROM both_sides WHERE other",
            ),
            base.sql(
                "SELECT row, line FROM both_sides WHERE touched AND NOT other ORDER BY row"
            ).to_arrow_table(),
        )


@contextmanager
def _opened(now: Path, before: list[Path], deleted: Rows) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a database of the tables `now` and `live`."""
    with tempfile.TemporaryDirectory() as scratch, connect(scratch) as base:
        files = [str(path) for path in before]
        base.register("deleted", pa.table({"row": pa.array(deleted, pa.int64())}))
        base.from_parquet(str(now)).create_view("now")
        base.from_parquet(files, union_by_name=True).create_view("every")
        base.execute("CREATE VIEW live AS SELECT * FROM every ANTI JOIN deleted USING (row)")
        yield base


def _differences(base: duckdb.DuckDBPyConnection) -> tuple[str, str]:
    """Give the conditions that an image is another one, and that its file was touched."""
    ours, theirs = (base.table(name).columns for name in ("live", "now"))
    other = ["FALSE"]
    for name in sorted({*ours, *theirs} - {*_KEPT_APART}):
        sides = [
            f"{side}.{_quoted(name)}" if name in columns else "NULL"
            for side, columns in (("l", ours), ("n", theirs))
        ]
        other.append(f"{sides[0]} IS DISTINCT FROM {sides[1]}")
    touched = (f"l.{name} IS DISTINCT FROM n.{name}" for name in _STAT)
    return f"({' OR '.join(other)})", f"({' OR '.join(touched)})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rows(base: duckdb.DuckDBPyConnection, query: str, order: str = "row") -> Rows:
    answer = base.sql(f"SELECT row FROM ({query}) ORDER BY {order}")  # noqa: S608 - ours
    found: Rows = answer.to_arrow_table()["row"].to_numpy().astype(np.int64)
    return found


def rows_before(now: Path, before: list[Path], deleted: Rows) -> Rows:
    """Give the live row of a store that each line of a listing is; -1 where it has none."""
    with _opened(now, before, deleted) as base:
        return _rows(base, "SELECT coalesce(l.row, -1) AS row, n.row AS line "
                           "FROM now n LEFT JOIN live l USING (image_id)", "line")  # fmt: skip


def write_part_of(now: Path, lines: Rows, target: Path, chunk_rows: int, base: int) -> None:
    """Write some lines of a listing as the listing of a segment whose first row is `base`."""
    with pq.ParquetFile(now) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
        write_rows(_taken(parquet, lines), target, schema, chunk_rows, base)


def _taken(parquet: pq.ParquetFile, lines: Rows) -> Iterator[pa.RecordBatch]:
    seen = 0
    for batch in parquet.iter_batches(_BATCH):
        first, last = np.searchsorted(lines, [seen, seen + len(batch)])
        seen += len(batch)
        if first < last:
            yield batch.take(pa.array(lines[first:last] - (seen - len(batch))))


def items_at(now: Path, lines: Rows) -> pa.Table:
    """Read some lines of a listing, in their order."""
    with pq.ParquetFile(now) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
        return pa.Table.from_batches(list(_taken(parquet, lines)), schema)
