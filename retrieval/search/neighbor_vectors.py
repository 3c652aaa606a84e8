"""The vectors of what queries found first, fetched from the shards that hold them.

    work/chosen/BLOCK.parquet          the best candidates of a block's queries
    work/vectors/SHARD-BLOCK.parquet   those of them that lie in a shard: row, embedding

So that queries can be expanded by them (`ranking/expansion.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.schemas import WORK, Vectors
from retrieval.index.shard import Shard
from retrieval.search.candidates import best_of
from retrieval.search.rescore import streamed
from retrieval.search.shard_search import Task, candidates_path, read_answer
from retrieval.search.topk_accumulator import runs
from retrieval.storage.checksum import sealed_parquet
from retrieval.store.reader import embedding_column, vectors_of
from retrieval.vectors.scoring import keys_of, slices

_AT_ONCE = 1 << 24  # numbers of the vectors that queries are expanded by


def chosen_path(number: int) -> str:
    """Give the path of the best candidates of a block."""
    return f"{WORK}chosen/{number:05d}.parquet"


def vectors_path(shard: int, number: int) -> str:
    """Give the path of the vectors that a shard has of them."""
    return f"{WORK}vectors/{shard:05d}-{number:05d}.parquet"


def choose(task: Task, number: int) -> int:
    """Put the best that all shards have for a block; give the block's number."""
    if not task.matches.exists(chosen_path(number)):
        paths = (candidates_path(task.nprobe, shard, number) for shard in task.shards)
        parts = (read_answer(task.matches, path) for path in paths)
        table, place = best_of(parts, task.top_k)
        table = table.append_column("place", pa.array(place))
        task.matches.put_new(chosen_path(number), sealed_parquet(table))
    return number


def fetch(task: Task, number: int) -> int:
    """Put the vectors that a shard has of what was chosen, block by block; give their count."""
    blocks = range(len(task.blocks))
    missing = [b for b in blocks if not task.matches.exists(vectors_path(number, b))]
    if not missing:
        return len(blocks)
    shard = task.open(number)
    wanted = {b: _of_shard(shard, read_answer(task.matches, chosen_path(b))) for b in missing}
    every = np.unique(np.concatenate([table["row"].to_numpy() for table in wanted.values()]))
    if task.codes is None:
        found = _from_store(task, number, every)
    for block_number, table in wanted.items():
        rows = table["row"].to_numpy()
        if task.codes is None:
            vectors = found[np.searchsorted(every, rows)]
        else:
            vectors = _listed(shard, rows, table["list"].to_numpy())
        put = pa.table({"row": rows, "embedding": embedding_column(vectors)})
        task.matches.put_new(vectors_path(number, block_number), sealed_parquet(put))
    return len(blocks)


def _of_shard(shard: Shard, chosen: pa.Table) -> pa.Table:
    """Give row and list of what a shard holds, each once, by list."""
    own = chosen.filter(pc.is_in(chosen["row"], pa.array(shard.rows)))
    table = own.select(["row", "list"]).group_by(["row", "list"], use_threads=False).aggregate([])
    return table.sort_by([("list", "ascending"), ("row", "ascending")])


def _listed(shard: Shard, rows: NDArray[np.int64], lists: NDArray[np.int32]) -> Vectors:
    """Give the vectors of rows, which are ordered by list."""
    vectors = np.empty((len(rows), shard.index.d), str(shard.codes))
    for number, run in runs(lists):
        places = shard.places(number)
        order = np.argsort(places)
        at = np.searchsorted(places, np.searchsorted(shard.rows, rows[run]), sorter=order)
        vectors[run] = shard.list_block(number).values[order[at]]
    return vectors


def _from_store(task: Task, number: int, rows: NDArray[np.int64]) -> Vectors:
    """Give the vectors of ascending rows from the store that a shard was made of."""
    assert task.vectors is not None
    vectors = np.empty((len(rows), task.vectors.dimension), task.vectors.dtype)
    for there, values in streamed(task, number):
        at = np.minimum(np.searchsorted(rows, there), max(0, len(rows) - 1))
        hit = rows[at] == there if len(rows) else np.zeros(len(there), np.bool_)
        vectors[at[hit]] = values[hit]
    return vectors


Neighbourhood = tuple[Vectors, Vectors, NDArray[np.float64], NDArray[np.bool_]]
"""Queries (q, d), and of what was chosen for them vectors (q, k, d), scores and presence (q, k)."""


def neighbourhoods(task: Task, number: int) -> Iterator[Neighbourhood]:
    """Give a block's queries and what was chosen for them, some at a time, in their order."""
    asked = task.block(number)
    paths = [vectors_path(shard, number) for shard in task.shards]
    table = pa.concat_tables([read_answer(task.matches, path) for path in paths])
    table = table.sort_by("row")
    chosen = read_answer(task.matches, chosen_path(number))
    query = np.searchsorted(asked["row"].to_numpy(), chosen["query"].to_numpy())
    at = np.searchsorted(table["row"].to_numpy(), chosen["row"].to_numpy())
    place, vectors, queries = chosen["place"].to_numpy(), vectors_of(table), vectors_of(asked)
    scores = keys_of(chosen["key"].to_numpy(), task.metric)
    step = max(1, _AT_ONCE // (task.top_k * vectors.shape[1]))
    for part in slices(len(asked), step):
        own = slice(*np.searchsorted(query, [part.start, part.stop]))
        line, shape = (query[own] - part.start, place[own]), (part.stop - part.start, task.top_k)
        found = np.zeros((*shape, vectors.shape[1]), vectors.dtype)
        their, there = np.zeros(shape), np.zeros(shape, np.bool_)
        found[line], their[line], there[line] = vectors[at[own]], scores[own], True
        yield queries[part], found, their, there
