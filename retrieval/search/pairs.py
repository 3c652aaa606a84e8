"""Write each pair of similar images once, closest first.

The images of a pair are of one gallery that was ranked against itself, or a query and a gallery
image of two sets that should have no image in common. DuckDB sorts out of core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import pyarrow as pa

from retrieval.core.schemas import LEAKS, MATCHES, PAIRS, Metric, Table
from retrieval.listing.listing import open_database
from retrieval.storage.checksum import parquet_writer

_ROW_GROUP = 1 << 16  # rows of a row group
_PAIRS_QUERY = """
select least(query_id, image_id) as image_id, greatest(query_id, image_id) as other_id,
       any_value(score) as score,
       any_value(case when query_id < image_id then query_path else path end) as path,
       any_value(case when query_id < image_id then path else query_path end) as other_path,
       any_value(case when query_id < image_id then query_label else label end) as label,
       any_value(case when query_id < image_id then label else query_label end) as other_label
from matches m where query_id <> image_id
group by least(query_id, image_id), greatest(query_id, image_id)
order by score {order}, 1, 2
"""
_LEAKS_QUERY = """
select query_id, image_id, score, query_path, path, query_label, label
from matches order by score {order}, 1, 2
"""


def write_pairs(parts: Iterable[pa.Table], metric: Metric, file: BinaryIO) -> int:
    """Write the pairs of tables MATCHES as a Parquet table PAIRS; return the number of pairs.

    The checksum in the file is left empty. A pair is written if either image has the other among
    its matches; its score is the same from both sides, to the last bit.
    """
    return _write_sorted(parts, _PAIRS_QUERY, PAIRS, metric, file)


def write_leaks(parts: Iterable[pa.Table], metric: Metric, file: BinaryIO) -> int:
    """Write all matches of tables MATCHES as a Parquet table LEAKS; return their number.

    The checksum in the file is left empty.
    """
    return _write_sorted(parts, _LEAKS_QUERY, LEAKS, metric, file)


def count_leaked_images(batches: Iterable[pa.RecordBatch]) -> tuple[int, int]:
    """Return the numbers of distinct queries and of distinct gallery images of a table LEAKS."""
    with tempfile.TemporaryDirectory() as temp_dir, open_database(temp_dir) as database:
        schema = pa.schema([LEAKS.schema.field(name) for name in ("query_id", "image_id")])
        selected = (batch.select(schema.names) for batch in batches)
        database.register("leaks", pa.RecordBatchReader.from_batches(schema, selected))
        queries, images = database.sql(
            "select count(distinct query_id), count(distinct image_id) from leaks"
        ).fetchall()[0]
    return queries, images


def _write_sorted(
    parts: Iterable[pa.Table], query: str, table: Table, metric: Metric, file: BinaryIO
) -> int:
    matches = pa.RecordBatchReader.from_batches(
        MATCHES.schema, (batch for part in parts for batch in part.to_batches())
    )
    count = 0
    with (
        tempfile.TemporaryDirectory() as temp_dir,
        open_database(temp_dir) as database,
        parquet_writer(file, table.schema) as writer,
    ):
        database.register("matches", matches)
        rows = database.sql(query.format(order="asc" if metric == "l2" else "desc"))
        for batch in rows.to_arrow_reader(_ROW_GROUP):
            count += len(batch)
            writer.write_table(pa.Table.from_batches([batch]).cast(table.schema))
    return count
