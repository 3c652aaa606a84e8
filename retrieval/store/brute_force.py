"""Exact search over the tables of a store, which the recall of the index is measured against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from retrieval.core.schemas import Metric
from retrieval.store.reader import read_vectors
from retrieval.vectors.scoring import VectorBlock, block
from retrieval.vectors.topk import TopK


def exact_top_k(queries: VectorBlock, blocks: Iterable[pa.Table], k: int, metric: Metric) -> TopK:
    """Return the k closest rows of streamed tables (row, embedding) to each query.

    Ties are broken by row number. One table and the answer are in memory.
    """
    best = TopK(queries, k)
    for table in blocks:
        rows = table["row"].to_numpy().astype(np.int64)
        if len(rows):
            best.push(block(read_vectors(table), metric), rows, rows)
    return best
