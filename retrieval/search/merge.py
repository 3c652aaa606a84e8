"""From the candidates of many shards to the ranked matches of each query."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.errors import Damaged
from retrieval.core.schemas import FAILURES, MATCHES, Metric
from retrieval.search.candidates import best_of, repeated_match
from retrieval.vectors.scoring import keys_of

NO_MATCH = "no gallery image may be a match, by the options of the ranking"


def matches_of(parts: Iterable[pa.Table], k: int, queries: pa.Table, metric: Metric) -> pa.Table:
    """Rank what the shards found for one block of queries: table MATCHES, each image once a query.

    `queries` are the block's rows of the query store, ordered by row; `query` in the candidates is
    that row.
    """
    best, before = best_of(parts, k)
    place = np.searchsorted(queries["row"].to_numpy(), best["query"].to_numpy())
    asked = queries.take(place)
    columns = {
        "query_id": asked["image_id"],
        "rank": before + 1,
        "image_id": best["image_id"],
        "score": keys_of(best["key"].to_numpy(), metric),
        "query_path": asked["path"],
        "path": best["path"],
        "query_label": asked["label"],
        "label": best["label"],
    }
    table = pa.table(columns).cast(MATCHES.schema)
    if repeated := repeated_match(table):
        query_id, image_id = repeated
        raise Damaged(
            f"the index has more than one row of the name {image_id}, found for {query_id}; make "
            "the index again"
        )
    return table.sort_by([("query_id", "ascending"), ("rank", "ascending")])


def unmatched_of(queries: pa.Table, matches: pa.Table) -> pa.Table:
    """Give the queries of a block that have no match, as lines of a ledger: table FAILURES."""
    found = pc.is_in(queries["image_id"], value_set=matches["query_id"].combine_chunks())
    rows = queries.filter(pc.invert(found)).select(["row", "image_id", "path", "label"])
    said = {"stage": "rank", "error": "NoMatch", "message": NO_MATCH}
    for name, value in said.items():
        rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
    return rows.select(FAILURES.schema.names).cast(FAILURES.schema)
