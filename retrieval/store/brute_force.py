"""Brute force over a store, in blocks: what the index is measured against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import Metric
from retrieval.store.reader import vectors_of
from retrieval.vectors.scoring import Block, block
from retrieval.vectors.topk import TopK


def exact_top_k(queries: Block, blocks: Iterable[pa.Table], k: int, metric: Metric) -> TopK:
    """Find the k closest rows of streamed tables (row, embedding) to each query.

    Positions and ties are row numbers. Memory is one table and the answer.
    """
    best = TopK(queries, k)
    for table in blocks:
        rows = table["row"].to_numpy().astype(np.int64)
        if len(rows):
            best.push(block(vectors_of(table), metric), rows, rows)
    return best
