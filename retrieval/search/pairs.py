"""Write each pair of similar images once, from a gallery that was ranked against itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import BinaryIO

import duckdb
import pyarrow as pa

from retrieval.core.schemas import MATCHES, PAIRS, Metric
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


def write_pairs(parts: Iterable[pa.Table], metric: Metric, file: BinaryIO) -> int:
    """Write the pairs of tables MATCHES as a Parquet table PAIRS; return the number of pairs.

    The checksum in the file is left empty. A pair is written if either image has the other among
    its matches; its score is the same from both sides, to the last bit. DuckDB sorts out of core.
    """
    matches = pa.RecordBatchReader.from_batches(
        MATCHES.schema, (batch for part in parts for batch in part.to_batches())
    )
    count = 0
    with (
        tempfile.TemporaryDirectory() as temp_dir,
        duckdb.connect(config={"memory_limit": "1GB", "temp_directory": temp_dir}) as database,
        parquet_writer(file, PAIRS.schema) as writer,
    ):
        database.execute("SET enable_progress_bar = false")  # it would go to stdout
        database.register("matches", matches)
        pairs = database.sql(_PAIRS_QUERY.format(order="asc" if metric == "l2" else "desc"))
        for batch in pairs.to_arrow_reader(_ROW_GROUP):
            count += len(batch)
            writer.write_table(pa.Table.from_batches([batch]).cast(PAIRS.schema))
    return count
