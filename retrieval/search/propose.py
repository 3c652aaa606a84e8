"""What the codes of a shard propose to all queries, and which proposals of all shards are best.

    work/codes/NPROBE/SHARD-BLOCK.parquet      candidates of a shard for a block of queries
    work/proposed/NPROBE/SHARD-BLOCK.parquet   those of them among the best of all shards

Only these are scored, by the vectors (`rescore.py`); so what comes out does not depend on how the
gallery was cut into shards.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.schemas import WORK
from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH, Codes
from retrieval.search.exclusions import barred_pairs, is_barred, most_barred
from retrieval.search.shard_search import Task, read_answer
from retrieval.storage.checksum import sealed_parquet
from retrieval.store.reader import vectors_of

PROPOSED = pa.schema(
    [("query", pa.int64()), ("key", pa.float64()), ("row", pa.int64()), ("list", pa.int32())]
)
"""Rows of the queries and of the gallery; the key is that of the codes."""


def codes_path(nprobe: int, shard: int, number: int) -> str:
    """Give the path of what a shard's codes propose for a block."""
    return f"{WORK}codes/{nprobe:07d}/{shard:05d}-{number:05d}.parquet"


def proposed_path(nprobe: int, shard: int, number: int) -> str:
    """Give the path of what remains of it beside the other shards."""
    return f"{WORK}proposed/{nprobe:07d}/{shard:05d}-{number:05d}.parquet"


def propose(task: Task, number: int) -> int:
    """Let one shard's codes answer every block that they have not answered; give their count."""
    there = {entry.path for entry in task.matches.entries(f"{WORK}codes/{task.nprobe:07d}")}
    codes: Codes | None = None
    for block_number in range(len(task.blocks)):
        path = codes_path(task.nprobe, number, block_number)
        if path in there:
            continue
        task.tell()
        codes = codes or Codes(task.open(number))
        asked = task.block(block_number)
        task.matches.put_new(path, sealed_parquet(_proposed(task, codes, asked)))
    return len(task.blocks)


def _proposed(task: Task, codes: Codes, asked: pa.Table) -> pa.Table:
    """Give what a shard proposes for a block: as many as are scored, barred pairs left out."""
    barred = barred_pairs(codes.shard.metadata, asked, task.bars)
    wanted = task.top_k * CANDIDATES_PER_MATCH
    inside = codes.coarse.inside(vectors_of(asked), task.metric)
    found = codes.search(inside, task.nprobe, wanted + most_barred(barred))
    query, rank = np.nonzero(found.rows >= 0)
    rows = found.rows[query, rank]
    columns = {
        "query": asked["row"].to_numpy()[query],
        "key": found.keys[query, rank],
        "row": rows,
        "list": found.lists[query, rank],
    }
    table = pa.table(columns).cast(PROPOSED)
    if barred is None:
        return table
    place = np.searchsorted(codes.shard.rows, rows)
    table = table.filter(pa.array(~is_barred(barred, query, place)))
    return table.filter(pa.array(_among_the_best(table, wanted)))


def merge_proposed(task: Task, number: int) -> int:
    """Keep what is among the best that all shards propose for a block; give the block's number."""
    paths = [proposed_path(task.nprobe, shard, number) for shard in task.shards]
    if task.matches.exists(paths[-1]):  # it is put last
        return number
    parts = [read_answer(task.matches, codes_path(task.nprobe, s, number)) for s in task.shards]
    keep = _among_the_best(pa.concat_tables(parts), task.top_k * CANDIDATES_PER_MATCH)
    ends = np.cumsum([len(part) for part in parts])
    for part, own, path in zip(parts, np.split(keep, ends[:-1]), paths, strict=True):
        task.matches.put_new(path, sealed_parquet(part.filter(pa.array(own))))
    return number


def _among_the_best(table: pa.Table, count: int) -> NDArray[np.bool_]:
    """Tell which lines are among the `count` best of their query; of equal keys by row."""
    query, key, row = (table[name].to_numpy() for name in ("query", "key", "row"))
    order = np.lexsort((row, -key, query))
    ordered = query[order]
    keep = np.empty(len(order), np.bool_)
    keep[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered) < count
    return keep
