"""Propose candidates by lossy codes, and keep the best proposals of all shards.

    work/codes/PROBING/SHARD-BLOCK.parquet      proposals of a shard for a block of queries
    work/proposed/PROBING/SHARD-BLOCK.parquet   those among the best of all shards

Only the latter are scored by the vectors (`rescore.py`), so the result does not depend on how the
gallery was cut into shards.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.schemas import WORK_FOLDER
from retrieval.index.probing import Probing
from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH, QuantizedShard
from retrieval.search.exclusions import excluded_pairs, is_excluded, max_excluded_per_query
from retrieval.search.read_counts import ReadCounts, count_read
from retrieval.search.shard_search import SearchTask, read_intermediate
from retrieval.storage.checksum import checksummed_parquet
from retrieval.store.reader import read_vectors

PROPOSALS_SCHEMA = pa.schema(
    [("query", pa.int64()), ("key", pa.float64()), ("row", pa.int64()), ("list", pa.int32())]
)
"""`query` and `row` are rows of the query store and of the gallery; `key` is by the codes."""


def shard_proposals_path(probing: Probing, shard: int, number: int) -> str:
    """Return the path of the proposals of a shard for a block."""
    return f"{WORK_FOLDER}codes/{probing.name}/{shard:05d}-{number:05d}.parquet"


def merged_proposals_path(probing: Probing, shard: int, number: int) -> str:
    """Return the path of those proposals that are among the best of all shards."""
    return f"{WORK_FOLDER}proposed/{probing.name}/{shard:05d}-{number:05d}.parquet"


def propose_candidates(task: SearchTask, number: int) -> int:
    """Write the proposals of a shard for each block that lacks them; return the count of blocks."""
    existing = {
        entry.path for entry in task.output.entries(f"{WORK_FOLDER}codes/{task.probing.name}")
    }
    quantized: QuantizedShard | None = None
    for block_number in range(len(task.query_chunks)):
        path = shard_proposals_path(task.probing, number, block_number)
        if path in existing:
            continue
        task.heartbeat()
        quantized = quantized or QuantizedShard(task.open_shard(number))
        queries = task.query_block(block_number)
        proposals, read = _propose_block(task, quantized, queries)
        task.output.put_new(path, checksummed_parquet(proposals, read.to_metadata()))
    return len(task.query_chunks)


def _propose_block(
    task: SearchTask, quantized: QuantizedShard, queries: pa.Table
) -> tuple[pa.Table, ReadCounts]:
    """Return the proposals of a shard for a block, without excluded pairs."""
    excluded = excluded_pairs(quantized.shard.metadata, queries, task.exclude_by)
    count = task.top_k * CANDIDATES_PER_MATCH
    projected = quantized.coarse.project(read_vectors(queries), task.metric)
    lists = quantized.choose_lists(projected, task.probing)
    read = count_read(quantized.list_sizes, lists, len(queries))
    neighbours = quantized.search(projected, lists, count + max_excluded_per_query(excluded))
    query, rank = np.nonzero(neighbours.rows >= 0)
    rows = neighbours.rows[query, rank]
    columns = {
        "query": queries["row"].to_numpy()[query],
        "key": neighbours.keys[query, rank],
        "row": rows,
        "list": neighbours.lists[query, rank],
    }
    table = pa.table(columns).cast(PROPOSALS_SCHEMA)
    if excluded is None:
        return table, read
    positions = np.searchsorted(quantized.shard.rows, rows)
    table = table.filter(pa.array(~is_excluded(excluded, query, positions)))
    return table.filter(pa.array(_select_best(table, count))), read


def merge_proposals(task: SearchTask, number: int) -> int:
    """Write the best proposals of all shards for a block, per shard; return the block's number."""
    paths = [merged_proposals_path(task.probing, shard, number) for shard in task.shards]
    if task.output.exists(paths[-1]):  # written last
        return number
    parts = [
        read_intermediate(task.output, shard_proposals_path(task.probing, s, number))
        for s in task.shards
    ]
    keep = _select_best(pa.concat_tables(parts), task.top_k * CANDIDATES_PER_MATCH)
    ends = np.cumsum([len(part) for part in parts])
    for part, mask, path in zip(parts, np.split(keep, ends[:-1]), paths, strict=True):
        task.output.put_new(path, checksummed_parquet(part.filter(pa.array(mask))))
    return number


def _select_best(table: pa.Table, count: int) -> NDArray[np.bool_]:
    """Return which rows are among the `count` best of their query, ties by row, (n,) bool."""
    query, key, row = (table[name].to_numpy() for name in ("query", "key", "row"))
    order = np.lexsort((row, -key, query))
    ordered = query[order]
    keep = np.empty(len(order), np.bool_)
    keep[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered) < count
    return keep
