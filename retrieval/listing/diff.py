"""Compare the listing of a source with the listings of a store's segments, out of core (DuckDB).

Images are matched by image_id and are added, removed or replaced. If only the size or time of a
file differs, its bytes must be read to decide; such images are reported as *touched*.
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

from retrieval.listing.listing import open_database, write_rows

Rows = NDArray[np.int64]
_FILE_STATUS = ("size", "mtime_ns")
_IGNORED_COLUMNS = ("row", "image_id", "place", *_FILE_STATUS)
"""Columns that may differ for the same image: rewriting a tar moves its members."""
_BATCH = 1 << 14


@dataclass(frozen=True)
class Changes:
    """Differences between the listing of a source and the segments of a store."""

    added: Rows  # (n,) lines of the new listing that the store lacks
    removed: Rows  # (m,) rows of the store whose image was removed or replaced
    touched: pa.Table  # columns row (of the store), line (of the listing): only size or time differ

    def mark_changed(self, changed: Rows) -> Changes:
        """Return the changes with some touched images replaced; `changed` are their store rows."""
        rows, lines = (self.touched[name].to_numpy() for name in ("row", "line"))
        is_changed = np.isin(rows, changed)
        return Changes(
            np.sort(np.concatenate([self.added, lines[is_changed]])),
            np.sort(np.concatenate([self.removed, rows[is_changed]])),
            self.touched.slice(0, 0),
        )

    def __bool__(self) -> bool:
        return bool(len(self.added) or len(self.removed))


def compare_listings(new_listing: Path, segment_listings: list[Path], deleted: Rows) -> Changes:
    """Compare a listing with those of a store's segments.

    Args:
        new_listing: Local file with the new listing.
        segment_listings: Local files with the listings of the segments, in their order.
        deleted: (n,) deleted rows of the store, which are ignored.

    Returns:
        The rows and lines that differ, each ascending.
    """
    with _opened(new_listing, segment_listings, deleted) as database:
        other, touched = _differences(database)
        database.execute(
            "CREATE TABLE both_sides AS "  # noqa: S608 - columns of our own listings, quoted
            f"SELECT l.row AS row, n.row AS line, {other} AS other, {touched} AS touched "
            "FROM live l JOIN now n USING (image_id)"
        )
        return Changes(
            _rows(
                database,
                "SELECT row FROM now ANTI JOIN live USING (image_id) "
                "UNION ALL SELECT line FROM both_sides WHERE other",
            ),
            _rows(
                database,
                "SELECT row FROM live ANTI JOIN now USING (image_id) "
                "UNION ALL SELECT row FROM both_sides WHERE other",
            ),
            database.sql(
                "SELECT row, line FROM both_sides WHERE touched AND NOT other ORDER BY row"
            ).to_arrow_table(),
        )


@contextmanager
def _opened(
    new_listing: Path, segment_listings: list[Path], deleted: Rows
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database with the views `now` (new listing) and `live` (rows of the store)."""
    with tempfile.TemporaryDirectory() as scratch, open_database(scratch) as database:
        files = [str(path) for path in segment_listings]
        database.register("deleted", pa.table({"row": pa.array(deleted, pa.int64())}))
        database.from_parquet(str(new_listing)).create_view("now")
        database.from_parquet(files, union_by_name=True).create_view("stored")
        database.execute("CREATE VIEW live AS SELECT * FROM stored ANTI JOIN deleted USING (row)")
        yield database


def _differences(database: duckdb.DuckDBPyConnection) -> tuple[str, str]:
    """Return two SQL conditions: that an image was replaced, and that its file was touched."""
    live, listed = (database.table(name).columns for name in ("live", "now"))
    replaced = ["FALSE"]
    for name in sorted({*live, *listed} - {*_IGNORED_COLUMNS}):
        sides = [
            f"{side}.{_quoted(name)}" if name in columns else "NULL"
            for side, columns in (("l", live), ("n", listed))
        ]
        replaced.append(f"{sides[0]} IS DISTINCT FROM {sides[1]}")
    touched = (f"l.{name} IS DISTINCT FROM n.{name}" for name in _FILE_STATUS)
    return f"({' OR '.join(replaced)})", f"({' OR '.join(touched)})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rows(database: duckdb.DuckDBPyConnection, query: str, order: str = "row") -> Rows:
    result = database.sql(f"SELECT row FROM ({query}) ORDER BY {order}")  # noqa: S608 - ours
    rows: Rows = result.to_arrow_table()["row"].to_numpy().astype(np.int64)
    return rows


def map_to_store_rows(new_listing: Path, segment_listings: list[Path], deleted: Rows) -> Rows:
    """Return the live store row of each line of a listing, by image_id; -1 where there is none."""
    with _opened(new_listing, segment_listings, deleted) as database:
        return _rows(database, "SELECT coalesce(l.row, -1) AS row, n.row AS line "
                           "FROM now n LEFT JOIN live l USING (image_id)", "line")  # fmt: skip


def write_segment_listing(
    listing: Path, lines: Rows, target: Path, chunk_rows: int, first_row: int
) -> None:
    """Write some lines of a listing as the listing of a segment.

    Args:
        listing: Local file with the listing to take lines from.
        lines: (n,) positions of the lines, ascending.
        target: The local file to write.
        chunk_rows: Rows per chunk of the segment.
        first_row: Row number of its first line.
    """
    with pq.ParquetFile(listing) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
        write_rows(_select_lines(parquet, lines), target, schema, chunk_rows, first_row)


def _select_lines(parquet: pq.ParquetFile, lines: Rows) -> Iterator[pa.RecordBatch]:
    end = 0
    for batch in parquet.iter_batches(_BATCH):
        first, last = np.searchsorted(lines, [end, end + len(batch)])
        end += len(batch)
        if first < last:
            yield batch.take(pa.array(lines[first:last] - (end - len(batch))))


def read_items(listing: Path, lines: Rows) -> pa.Table:
    """Read the lines of a listing at the (n,) ascending positions `lines`."""
    with pq.ParquetFile(listing) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
        return pa.Table.from_batches(list(_select_lines(parquet, lines)), schema)
