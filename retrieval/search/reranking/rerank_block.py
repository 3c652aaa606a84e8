"""Re-rank the first candidates of a block of queries, from the vectors that were fetched for them.

    work/reranked/BLOCK.parquet   the candidates of a block's queries, with their keys after it

A re-ranked candidate has the key 1 + s, where s from 0 to 1 is its similarity by the method. Keys
of the others are cosines, at most 1, so these keep their order after the re-ranked ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import WORK_FOLDER, Vectors
from retrieval.search.candidates import top_candidates
from retrieval.search.fill_matches import read_final_candidates
from retrieval.search.neighbor_vectors import iterate_neighborhoods
from retrieval.search.reranking.augmentation import augmented_similarities
from retrieval.search.reranking.k_reciprocal import k_reciprocal_similarities
from retrieval.search.shard_search import SearchTask, read_intermediate
from retrieval.storage.checksum import checksummed_parquet
from retrieval.vectors.scoring import Float64, block, score_pairs

RerankMethod = Literal["k-reciprocal", "augment"]
METHODS: dict[RerankMethod, Callable[[Float64], Float64]] = {
    "k-reciprocal": k_reciprocal_similarities,
    "augment": augmented_similarities,
}
"""Each method: from the cosines of a query and its n candidates, (n + 1, n + 1), to the n
similarities of the candidates to the query, from 0 to 1."""


def reranked_path(number: int) -> str:
    """Return the path of the re-ranked candidates of a block."""
    return f"{WORK_FOLDER}reranked/{number:05d}.parquet"


def read_reranked_candidates(task: SearchTask, number: int) -> Iterator[pa.Table]:
    """Yield the re-ranked candidates of a block, one table."""
    yield read_intermediate(task.output, reranked_path(number))


def rerank_block(task: SearchTask, count: int, method: RerankMethod, number: int) -> int:
    """Write the candidates of a block with the first `count` re-ranked; return the block's number.

    The vectors of these candidates must have been fetched (`neighbor_vectors.py`).
    """
    if task.output.exists(reranked_path(number)):
        return number
    table, ranks = top_candidates(read_final_candidates(task, number), task.top_k)
    first = dataclasses.replace(task, top_k=count)
    keys = [np.empty(0)]
    for queries, vectors, _, present in iterate_neighborhoods(first, number):
        task.heartbeat()
        keys += [
            1 + METHODS[method](pairwise_cosines(query, candidates[is_present]))
            for query, candidates, is_present in zip(queries, vectors, present, strict=True)
        ]
    new_keys = table["key"].to_numpy().copy()
    new_keys[ranks < count] = np.concatenate(keys)
    column = table.column_names.index("key")
    table = table.set_column(column, "key", pa.array(new_keys))
    task.output.put_new(reranked_path(number), checksummed_parquet(table))
    return number


def pairwise_cosines(query: Vectors, candidates: Vectors) -> Float64:
    """Return the exact cosines of a query (d,), in row 0, and n candidates (n, d): all pairs.

    The result is (n + 1, n + 1) float64 and does not depend on other queries.
    """
    vectors = block(np.concatenate([query[None], candidates]), "cosine")
    first, second = np.triu_indices(len(vectors))
    cosines = np.empty((len(vectors), len(vectors)))
    cosines[first, second] = score_pairs(vectors, vectors, first, second)
    cosines[second, first] = cosines[first, second]
    return cosines
