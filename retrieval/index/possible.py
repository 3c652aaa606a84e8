"""How many images of each class could be a match, where options say that not all can.

    labels.parquet           gallery images of each class, of those that pass --filter
    barred/SHARD.parquet     pairs that --exclude-self keeps apart, of the same images

What is relevant to a query is judged by these, when the index may be gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from retrieval.index.answer import Task
from retrieval.index.barred import barred_pairs
from retrieval.index.shards import read_rows
from retrieval.storage import commit
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import BARRED, GALLERY_LABELS


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
        commit.put_once(task.matches, barred_path(number), sealed_parquet(ordered))
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


def labels_table(counts: Iterable[dict[str, int]]) -> pa.Table:
    """Add what the shards counted: table GALLERY_LABELS."""
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    names = sorted(total, key=str.encode)
    columns = [pa.array(names, pa.string()), pa.array([total[name] for name in names], pa.int64())]
    return pa.table(columns, schema=GALLERY_LABELS.schema)
