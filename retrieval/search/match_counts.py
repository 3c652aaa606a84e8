"""Count the gallery images that may match, so that matches can be evaluated without their index.

labels.parquet           gallery images of each class that pass --filter
barred/SHARD.parquet     pairs of a query and an image that --exclude-self excludes
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import EXCLUSIONS
from retrieval.index.shard import count_live_rows, read_live_rows
from retrieval.search.exclusions import excluded_pairs
from retrieval.search.filters import Filter, matching_rows
from retrieval.search.shard_search import SearchTask
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder


def excluded_pairs_path(shard: int) -> str:
    """Return the path of the excluded pairs of one shard's images."""
    return f"barred/{shard:05d}.parquet"


def eligible_rows(task: SearchTask, number: int) -> pa.Table:
    """Return the rows of a shard that may match: not deleted, and passing the row filter."""
    rows = read_live_rows(task.index, task.manifest, number)
    if task.row_filter is None:
        return rows
    return rows.filter(pa.array(matching_rows(task.row_filter, rows)))


def count_filtered_rows(index: Folder, manifest: Manifest, row_filter: Filter, number: int) -> int:
    """Return how many live rows of a shard pass a filter."""
    matches = functools.partial(matching_rows, row_filter)
    return count_live_rows(index, manifest, number, row_filter.columns, matches)


def count_eligible_rows(task: SearchTask, number: int) -> dict[str, int]:
    """Count the rows of a shard that may match by label, and write the excluded pairs.

    Return {label: count}; rows without a label are not counted.
    """
    rows = eligible_rows(task, number)
    if task.exclude_by is not None:
        blocks = range(len(task.query_chunks))
        excluded = [_excluded_pairs(rows, task, number) for number in blocks]
        table = pa.concat_tables([EXCLUSIONS.schema.empty_table(), *excluded])
        ordered = table.sort_by([("query_id", "ascending"), ("image_id", "ascending")])
        transaction.put_if_absent(
            task.output, excluded_pairs_path(number), checksummed_parquet(ordered)
        )
    return {str(pair["values"]): pair["counts"] for pair in _count_labels(rows)}


def _count_labels(rows: pa.Table) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = rows["label"].drop_null().value_counts().to_pylist()
    return counts


def _excluded_pairs(rows: pa.Table, task: SearchTask, number: int) -> pa.Table:
    queries = task.stored_queries(number)
    pairs = excluded_pairs(rows, queries, task.exclude_by) or (
        np.empty(0, np.int64),
        np.empty(0, np.int64),
    )
    columns = {
        "query_id": queries["image_id"].take(pa.array(pairs[0])),
        "image_id": rows["image_id"].take(pa.array(pairs[1])),
        "label": rows["label"].take(pa.array(pairs[1])),
    }
    return pa.table(columns).cast(EXCLUSIONS.schema)
