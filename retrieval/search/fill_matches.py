"""Queries whose lists held fewer than k rows that may be a match: all lists are read for them.

    work/short/NPROBE/BLOCK.parquet            rows of such queries of a block
    work/filled/NPROBE/SHARD-BLOCK.parquet     what a shard found for them

A filter that leaves few rows of a list, or short lists, are the reason; so k matches are given
where there are k.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.schemas import WORK
from retrieval.index.shard import Shard
from retrieval.search.candidates import best_of
from retrieval.search.ivf_search import Searcher
from retrieval.search.shard_search import Task, candidates_path, exact_answers, read_answer
from retrieval.storage.checksum import sealed_parquet
from retrieval.vectors.int8_matmul import search_product


def short_path(nprobe: int, number: int) -> str:
    """Give the path of the queries of a block that lack matches."""
    return f"{WORK}short/{nprobe:07d}/{number:05d}.parquet"


def filled_path(nprobe: int, shard: int, number: int) -> str:
    """Give the path of what a shard found for them."""
    return f"{WORK}filled/{nprobe:07d}/{shard:05d}-{number:05d}.parquet"


def find_short(task: Task, number: int) -> tuple[int, int]:
    """Put which queries of a block have fewer than k candidates; give the block and their count."""
    path = short_path(task.nprobe, number)
    if not task.matches.exists(path):
        best, _ = best_of(_answers(task, number), task.top_k)
        rows = task.block(number)["row"].to_numpy()
        query, counts = np.unique(best["query"].to_numpy(), return_counts=True)
        short = np.setdiff1d(rows, query[counts >= task.top_k])
        short = np.setdiff1d(short, task.sample)  # which have their exact answers
        task.matches.put_new(path, sealed_parquet(pa.table({"row": pa.array(short, pa.int64())})))
    return number, len(read_answer(task.matches, path))


def fill_shard(task: Task, number: int) -> int:
    """Let one shard answer all short queries from all its lists; give the count of blocks."""
    shard: Shard | None = None
    for block_number in range(len(task.blocks)):
        path = filled_path(task.nprobe, number, block_number)
        short = read_answer(task.matches, short_path(task.nprobe, block_number))
        if len(short) == 0 or task.matches.exists(path):
            continue
        task.tell()
        shard = shard or task.open(number)
        asked = task.block(block_number)
        asked = asked.filter(pc.is_in(asked["row"], short["row"].combine_chunks()))
        index = shard.index
        product = search_product(task.product, len(asked), len(shard.rows), index.d, index.nlist)
        searcher = Searcher(shard, product, task.room)
        found = searcher.search(task.asked(shard, asked), None, task.top_k)
        task.matches.put_new(path, sealed_parquet(found))
    return len(task.blocks)


def all_answers(task: Task, number: int) -> Iterator[pa.Table]:
    """Yield what the shards found for a block: short queries filled, sampled ones exact."""
    path = short_path(task.nprobe, number)
    short = pa.array([], pa.int64())
    if task.matches.exists(path):
        short = read_answer(task.matches, path)["row"].combine_chunks()
    replaced = pa.array(np.union1d(short.to_numpy(), task.sample), pa.int64())
    for part in _answers(task, number):
        yield part.filter(pc.invert(pc.is_in(part["query"], replaced)))
    yield from exact_answers(task, number)
    if len(short) == 0:
        return
    for shard in task.shards:
        yield read_answer(task.matches, filled_path(task.nprobe, shard, number))


def _answers(task: Task, number: int) -> Iterator[pa.Table]:
    for shard in task.shards:
        yield read_answer(task.matches, candidates_path(task.nprobe, shard, number))
