"""Exact search over the tables of a store: the reference for the recall of the index."""

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

    Ties are broken by row number. Memory holds one table and the results.
    """
    top_k = TopK(queries, k)
    for table in blocks:
        rows = table["row"].to_numpy().astype(np.int64)
        if len(rows):
            top_k.push(block(read_vectors(table), metric), rows, rows)
    return top_k
