"""Steps that re-rank the first matches of each query after the search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from jobs.config.options import Reranking

Step = tuple[str, Callable[[Any, int], int], Any, int, str]
"""Title, function of a task and a number, the task, how many numbers there are, and their unit."""


def makes_new_order(reranking: Reranking | None) -> TypeGuard[Reranking]:
    """Return whether candidates are put in a new order after the search."""
    return reranking is not None and reranking.method != "expand"


def rerank_steps(task: Any, reranking: Reranking) -> Iterator[Step]:
    """Yield the steps of a re-ranking, each of which needs all of the one before.

    They choose the first candidates of each query, fetch their vectors from the shards, and order
    them anew. Finished files of an earlier run are kept.
    """
    from retrieval.search import neighbor_vectors
    from retrieval.search.reranking.rerank_block import rerank_block

    method: Any = reranking.method

    def rerank(task: Any, number: int) -> int:
        return rerank_block(task, reranking.count, method, number)

    first = dataclasses.replace(task, top_k=reranking.count)
    blocks, shards = len(task.query_chunks), len(task.shards)
    yield "choose", neighbor_vectors.choose_neighbors, first, blocks, "blocks"
    yield "fetch", neighbor_vectors.fetch_neighbor_vectors, first, shards, "shards"
    yield "rerank", rerank, task, blocks, "blocks"
