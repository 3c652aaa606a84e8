"""Search all lists for queries whose probed lists hold fewer than k possible matches.

    work/short/PROBING/BLOCK.parquet            rows of such queries of a block
    work/filled/PROBING/SHARD-BLOCK             the candidates of a shard for them

Filters and short lists cause this. Each query thus gets k matches if the gallery has k.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.schemas import WORK_FOLDER
from retrieval.index.probing import Probing
from retrieval.index.shard import Shard
from retrieval.search.candidates import Candidates, top_candidates
from retrieval.search.candidates_file import read_candidates, write_candidates
from retrieval.search.ivf_search import ShardSearcher
from retrieval.search.shard_search import (
    SearchTask,
    index_lists,
    read_block_candidates,
    read_exact_candidates,
    read_intermediate,
)
from retrieval.storage.checksum import checksummed_parquet
from retrieval.vectors.matmul import choose_search_product


def incomplete_queries_path(probing: Probing, block_number: int) -> str:
    """Return the path of the queries of a block with fewer than k candidates."""
    return f"{WORK_FOLDER}short/{probing.name}/{block_number:05d}.parquet"


def all_lists_path(probing: Probing, shard: int, block_number: int) -> str:
    """Return the path of a shard's candidates, from all lists, for a block's incomplete queries."""
    return f"{WORK_FOLDER}filled/{probing.name}/{shard:05d}-{block_number:05d}"


def find_incomplete_queries(task: SearchTask, block_number: int) -> tuple[int, int]:
    """Write the rows of a block's queries with fewer than k candidates; return (block, count)."""
    path = incomplete_queries_path(task.probing, block_number)
    if not task.output.exists(path):
        best, _ = top_candidates(read_block_candidates(task, block_number), task.top_k)
        rows = task.stored_queries(block_number, ["row"])["row"].to_numpy()
        query, counts = np.unique(best.pairs["query"].to_numpy(), return_counts=True)
        incomplete = np.setdiff1d(rows, query[counts >= task.top_k])
        # sampled queries have exact candidates already
        incomplete = np.setdiff1d(incomplete, task.sampled_queries)
        task.output.put_new(
            path, checksummed_parquet(pa.table({"row": pa.array(incomplete, pa.int64())}))
        )
    return block_number, len(read_intermediate(task.output, path))


def search_all_lists(task: SearchTask, shard_number: int) -> int:
    """Search all lists of a shard for all incomplete queries; return the count of blocks."""
    shard: Shard | None = None
    for block_number in range(len(task.query_chunks)):
        path = all_lists_path(task.probing, shard_number, block_number)
        incomplete = read_intermediate(
            task.output, incomplete_queries_path(task.probing, block_number)
        )
        if len(incomplete) == 0 or task.output.exists(path):
            continue
        task.heartbeat()
        shard = shard or task.open_shard(shard_number)
        queries = task.query_block(block_number)
        queries = queries.filter(pc.is_in(queries["row"], incomplete["row"].combine_chunks()))
        searcher = ShardSearcher(shard, choose_search_product(task.device), task.cache_bytes)
        candidates = searcher.search(task.query_batch(shard, queries), None, task.top_k)
        write_candidates(task.output, path, index_lists(candidates, shard))
    return len(task.query_chunks)


def read_final_candidates(task: SearchTask, block_number: int) -> Iterator[Candidates]:
    """Yield the candidates of all shards for a block, by the widest search each query got.

    Those of sampled queries are exact, those of incomplete ones come from all lists.
    """
    path = incomplete_queries_path(task.probing, block_number)
    incomplete = np.empty(0, np.int64)
    if task.output.exists(path):
        incomplete = read_intermediate(task.output, path)["row"].to_numpy()
    replaced = np.union1d(incomplete, task.sampled_queries)
    for part in read_block_candidates(task, block_number):
        yield part.filter_queries(replaced, exclude=True)
    yield from read_exact_candidates(task, block_number)
    if len(incomplete) == 0:
        return
    for shard in task.shards:
        yield read_candidates(task.output, all_lists_path(task.probing, shard, block_number))
