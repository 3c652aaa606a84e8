"""Fetch the vectors of each query's best candidates, by which rankings are improved.

    work/chosen/BLOCK.parquet          the best candidates of a block's queries
    work/vectors/SHARD-BLOCK.parquet   the vectors of those in a shard: row, embedding

They are the neighbours that `query_expansion.py` adds to the queries, and the candidates that
`reranking/` orders anew.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.schemas import WORK_FOLDER, Vectors
from retrieval.index.shard import Shard
from retrieval.search.candidates import top_candidates
from retrieval.search.fill_matches import read_final_candidates
from retrieval.search.shard_rows import equal_runs
from retrieval.search.shard_search import SearchTask, read_intermediate
from retrieval.storage.checksum import checksummed_parquet
from retrieval.store.reader import embedding_column, read_vectors
from retrieval.vectors.scoring import keys_to_scores, split_range

_MAX_VALUES = 1 << 24  # values of the neighbour vectors that are in memory at once


def chosen_neighbors_path(number: int) -> str:
    """Return the path of the best candidates of a block."""
    return f"{WORK_FOLDER}chosen/{number:05d}.parquet"


def neighbor_vectors_path(shard: int, number: int) -> str:
    """Return the path of the vectors of a shard's rows among the best candidates of a block."""
    return f"{WORK_FOLDER}vectors/{shard:05d}-{number:05d}.parquet"


def choose_neighbors(task: SearchTask, number: int) -> int:
    """Write the best candidates of all shards for a block; return the block's number."""
    if not task.output.exists(chosen_neighbors_path(number)):
        table, ranks = top_candidates(read_final_candidates(task, number), task.top_k)
        table = table.append_column("place", pa.array(ranks))
        task.output.put_new(chosen_neighbors_path(number), checksummed_parquet(table))
    return number


def fetch_neighbor_vectors(task: SearchTask, number: int) -> int:
    """Write a shard's vectors of the chosen candidates, per block; return the count of blocks."""
    blocks = range(len(task.query_chunks))
    missing = [b for b in blocks if not task.output.exists(neighbor_vectors_path(number, b))]
    if not missing:
        return len(blocks)
    shard = task.open_shard(number)
    for block_number in missing:
        task.heartbeat()
        chosen = read_intermediate(
            task.output, chosen_neighbors_path(block_number), ["row", "list"]
        )
        table = _select_rows_of_shard(shard, chosen)
        vectors = _vectors_from_lists(shard, table["row"].to_numpy(), table["list"].to_numpy())
        vectors_table = pa.table({"row": table["row"], "embedding": embedding_column(vectors)})
        task.output.put_new(
            neighbor_vectors_path(number, block_number), checksummed_parquet(vectors_table)
        )
    return len(blocks)


def _select_rows_of_shard(shard: Shard, chosen: pa.Table) -> pa.Table:
    """Return row and list of the chosen candidates that a shard holds, each once, by list."""
    in_shard = chosen.filter(pc.is_in(chosen["row"], pa.array(shard.rows)))
    table = (
        in_shard.select(["row", "list"]).group_by(["row", "list"], use_threads=False).aggregate([])
    )
    return table.sort_by([("list", "ascending"), ("row", "ascending")])


def _vectors_from_lists(shard: Shard, rows: NDArray[np.int64], lists: NDArray[np.int32]) -> Vectors:
    """Return the vectors of rows that are ordered by list (as numbered in the index), (n, d)."""
    vectors = np.empty((len(rows), shard.index.d), shard.stored_vectors(0)[1].dtype)
    for number, run in equal_runs(lists):
        list_rows, values = shard.stored_vectors(number - shard.first_list)
        order = np.argsort(list_rows)
        vectors[run] = values[order[np.searchsorted(list_rows, rows[run], sorter=order)]]
    return vectors


Neighborhood = tuple[Vectors, Vectors, NDArray[np.float64], NDArray[np.bool_]]
"""Queries (q, d); vectors (q, k, d), scores (q, k) and presence (q, k) of their neighbours."""


def iterate_neighborhoods(task: SearchTask, number: int) -> Iterator[Neighborhood]:
    """Yield a block's queries with their neighbours, some queries at a time, in order."""
    queries_table = task.query_block(number)
    paths = [neighbor_vectors_path(shard, number) for shard in task.shards]
    table = pa.concat_tables([read_intermediate(task.output, path) for path in paths])
    table = table.sort_by("row")
    chosen = read_intermediate(task.output, chosen_neighbors_path(number))
    query = np.searchsorted(queries_table["row"].to_numpy(), chosen["query"].to_numpy())
    vector_positions = np.searchsorted(table["row"].to_numpy(), chosen["row"].to_numpy())
    ranks = chosen["place"].to_numpy()
    vectors, queries = read_vectors(table), read_vectors(queries_table)
    scores = keys_to_scores(chosen["key"].to_numpy(), task.metric)
    step = max(1, _MAX_VALUES // (task.top_k * vectors.shape[1]))
    for part in split_range(len(queries_table), step):
        part_rows = slice(*np.searchsorted(query, [part.start, part.stop]))
        cell = query[part_rows] - part.start, ranks[part_rows]
        shape = part.stop - part.start, task.top_k
        neighbour_vectors = np.zeros((*shape, vectors.shape[1]), vectors.dtype)
        neighbour_scores, present = np.zeros(shape), np.zeros(shape, np.bool_)
        neighbour_vectors[cell] = vectors[vector_positions[part_rows]]
        neighbour_scores[cell] = scores[part_rows]
        present[cell] = True
        yield queries[part], neighbour_vectors, neighbour_scores, present
