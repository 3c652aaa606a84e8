"""The step of a ranking: one shard against every block of queries, each answer put once.

    work/candidates/NPROBE/SHARD-BLOCK.parquet   what the shard found for the block
    work/exact/SHARD-BLOCK.parquet               for sampled queries, all lists read

A shard is read once; an answer that is there already is not made again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.embeddings.store import Store, vectors_of
from retrieval.errors import Damaged
from retrieval.index.faiss_files import centroids_of
from retrieval.index.kmeans import list_metric
from retrieval.index.search import search_shard
from retrieval.index.shards import Shard, open_shard
from retrieval.scoring import block, top_k
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import is_sealed, sealed_parquet
from retrieval.tables import CANDIDATES, WORK, Metric, Vectors


def _nothing() -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Task:
    """What answering needs beside the shard's number."""

    index: Folder
    manifest: Manifest
    codes: str | None  # None: the codes are not the vectors, and do not decide
    metric: Metric
    queries: Store
    matches: Folder
    nprobe: int
    top_k: int
    sample: NDArray[np.int64]  # rows of the queries that are also searched exactly
    tell: Callable[[], None] = _nothing  # called for each block, as a sign of life
    vectors: Store | None = None  # where the codes are not the vectors: the store that has them


def candidates_path(nprobe: int, shard: int, number: int) -> str:
    """Give the path of what a shard found for a block."""
    return f"{WORK}candidates/{nprobe:07d}/{shard:05d}-{number:05d}.parquet"


def exact_path(shard: int, number: int) -> str:
    """Give the path of what a shard holds closest to a block's sampled queries."""
    return f"{WORK}exact/{shard:05d}-{number:05d}.parquet"


def query_block(queries: Store, number: int) -> pa.Table:
    """Give the rows of one block of queries: a chunk of their store."""
    return queries.chunk_rows(queries.chunks[number])


def blocks_of(queries: Store) -> int:
    """Count the blocks of queries."""
    return len(queries.chunks)


def answer_shard(task: Task, number: int) -> int:
    """Let one shard answer every block of queries that it has not answered; give their count."""
    there = {entry.path for entry in task.matches.entries(f"{WORK}candidates/{task.nprobe:07d}")}
    there |= {entry.path for entry in task.matches.entries(f"{WORK}exact")}
    shard: Shard | None = None
    for block_number in range(blocks_of(task.queries)):
        found, exact = (
            candidates_path(task.nprobe, number, block_number),
            exact_path(number, block_number),
        )
        if found in there and (exact in there or len(task.sample) == 0):
            continue
        task.tell()
        shard = shard or open_shard(task.index, task.manifest, number, task.metric, task.codes)
        _answer(task, shard, query_block(task.queries, block_number), found, exact)
    return blocks_of(task.queries)


def _answer(task: Task, shard: Shard, asked: pa.Table, found: str, exact: str) -> None:
    rows = asked["row"].to_numpy()
    vectors = vectors_of(asked)
    _put(task, shard, vectors, rows, task.nprobe, found)
    sampled = np.isin(rows, task.sample)
    if len(task.sample):
        _put(task, shard, vectors[sampled], rows[sampled], shard.index.nlist, exact)


def _put(
    task: Task,
    shard: Shard,
    vectors: Vectors,
    rows: NDArray[np.int64],
    nprobe: int,
    path: str,
) -> None:
    measure = list_metric(task.metric)
    centroids = block(centroids_of(shard.index), measure)
    probes = top_k(block(vectors, measure), centroids, nprobe).positions
    answer = search_shard(shard, block(vectors, task.metric), probes, rows, task.top_k)
    task.matches.put_new(path, sealed_parquet(answer))


def best_of(parts: Iterable[pa.Table], k: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """Give the k best candidates of each query, as the ranking orders them, and their places."""
    table = pa.concat_tables([CANDIDATES.empty_table(), *parts]).sort_by(
        [("query", "ascending"), ("key", "descending"), ("image_id", "ascending")]
    )
    query = table["query"].to_numpy()
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    keep = np.flatnonzero(rank < k)
    return table.take(keep), rank[keep]


def read_answer(matches: Folder, path: str) -> pa.Table:
    """Read an answer that an earlier step put; it carries its own checksum."""
    data = matches.read(path)
    if not is_sealed(io.BytesIO(data)):
        raise Damaged(f"{matches.uri(path)} was altered; remove it and run again")
    return pq.read_table(io.BytesIO(data))
