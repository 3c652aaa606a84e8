"""From the candidates of many shards to the ranked matches of each query."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.scoring import keys_of
from retrieval.tables import CANDIDATES, MATCHES, Metric


def merge_candidates(parts: Iterable[pa.Table], k: int) -> tuple[pa.Table, NDArray[np.int32]]:
    """Keep the k best of each query, ordered by query, score, image_id; also give their ranks.

    The order is total and does not depend on how the gallery was cut into parts.
    """
    table = pa.concat_tables([CANDIDATES.empty_table(), *parts]).combine_chunks()
    order = [("query", "ascending"), ("key", "descending"), ("image_id", "ascending")]
    table = table.sort_by(order)
    query = table["query"].to_numpy()
    starts = np.searchsorted(query, query, side="left")
    rank = np.arange(len(query)) - starts + 1
    keep = np.flatnonzero(rank <= k)
    return table.take(keep), rank[keep].astype(np.int32)


def matches_of(parts: Iterable[pa.Table], k: int, queries: pa.Table, metric: Metric) -> pa.Table:
    """Rank what the shards found for one block of queries: table MATCHES.

    `queries` are the block's rows of the query store, ordered by row; `query` in the candidates is
    that row.
    """
    best, rank = merge_candidates(parts, k)
    place = np.searchsorted(queries["row"].to_numpy(), best["query"].to_numpy())
    asked = queries.take(place)
    columns = {
        "query_id": asked["image_id"],
        "rank": rank,
        "image_id": best["image_id"],
        "score": keys_of(best["key"].to_numpy(), metric),
        "query_path": asked["path"],
        "path": best["path"],
        "query_label": asked["label"],
        "label": best["label"],
    }
    table = pa.table(columns).cast(MATCHES.schema)
    return table.sort_by([("query_id", "ascending"), ("rank", "ascending")])
