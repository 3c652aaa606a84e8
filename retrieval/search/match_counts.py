"""Count the gallery images that may match, so that matches can be judged when their index is gone.

labels.parquet           gallery images of each class that pass --filter
barred/SHARD.parquet     pairs of a query and an image that --exclude-self excludes
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import BARRED
from retrieval.index.shard import read_rows
from retrieval.search.exclusions import barred_pairs
from retrieval.search.shard_search import Task
from retrieval.storage import transaction
from retrieval.storage.checksum import sealed_parquet


def barred_path(shard: int) -> str:
    """Give the path of the pairs that are kept apart, of one shard's images."""
    return f"barred/{shard:05d}.parquet"


def possible_rows(task: Task, number: int) -> pa.Table:
    """Give the rows of a shard that could be a match: alive, and let pass."""
    rows = read_rows(task.index, task.manifest, number)
    return rows if task.allowed is None else rows.filter(pa.array(task.allowed(rows)))


def count_possible(task: Task, number: int) -> dict[str, int]:
    """Count the possible matches of a shard by class, and put which of them are barred."""
    rows = possible_rows(task, number)
    if task.bars is not None:
        barred = [_barred(rows, task, block) for block in range(len(task.blocks))]
        table = pa.concat_tables([BARRED.schema.empty_table(), *barred])
        ordered = table.sort_by([("query_id", "ascending"), ("image_id", "ascending")])
        transaction.put_once(task.matches, barred_path(number), sealed_parquet(ordered))
    return {str(pair["values"]): pair["counts"] for pair in _counted(rows)}


def _counted(rows: pa.Table) -> list[dict[str, int]]:
    found: list[dict[str, int]] = rows["label"].drop_null().value_counts().to_pylist()
    return found


def _barred(rows: pa.Table, task: Task, number: int) -> pa.Table:
    asked = task.plain_block(number)
    pairs = barred_pairs(rows, asked, task.bars) or (np.empty(0, np.int64), np.empty(0, np.int64))
    columns = {
        "query_id": asked["image_id"].take(pa.array(pairs[0])),
        "image_id": rows["image_id"].take(pa.array(pairs[1])),
        "label": rows["label"].take(pa.array(pairs[1])),
    }
    return pa.table(columns).cast(BARRED.schema)
