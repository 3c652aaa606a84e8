"""Turn the candidates of many shards into the ranked matches of each query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.errors import Damaged
from retrieval.core.schemas import FAILURES, MATCHES, Metric
from retrieval.search.candidates import Candidates, repeated_match, top_candidates
from retrieval.vectors.scoring import keys_to_scores

NO_MATCH = "no gallery image may be a match, by the options of the ranking"


def rank_candidates(
    parts: Iterable[Candidates], k: int, queries: pa.Table, metric: Metric
) -> pa.Table:
    """Return the k best matches of each query of a block as a table MATCHES.

    The column `query` of `parts` is the row of the query store; `queries` are the block's rows of
    that store, ordered by row. Raise Damaged if an image occurs twice for a query.
    """
    candidates, ranks = top_candidates(parts, k)
    positions = np.searchsorted(queries["row"].to_numpy(), candidates.pairs["query"].to_numpy())
    name_ranks = np.empty(len(queries), np.int64)
    name_ranks[pc.sort_indices(queries["image_id"]).to_numpy()] = np.arange(len(queries))
    order = np.argsort(name_ranks[positions], kind="stable")  # numbers sort faster than strings
    best, ranks = replace(candidates, pairs=candidates.pairs.take(order)).table(), ranks[order]
    query_rows = queries.take(positions[order])
    columns = {
        "query_id": query_rows["image_id"],
        "rank": ranks + 1,
        "image_id": best["image_id"],
        "score": keys_to_scores(best["key"].to_numpy(), metric),
        "query_path": query_rows["path"],
        "path": best["path"],
        "query_label": query_rows["label"],
        "label": best["label"],
        "probability": pa.nulls(len(best), pa.float64()),
    }
    table = pa.table(columns).cast(MATCHES.schema)
    # no row occurs twice for a query, so only two rows with the same image_id can repeat a match
    rows, image_ids = (pc.count_distinct(best[name]).as_py() for name in ("row", "image_id"))
    if image_ids < rows and (repeated := repeated_match(table)):
        query_id, image_id = repeated
        raise Damaged(
            f"the index has more than one row with the image_id {image_id}, found for {query_id}; "
            "build the index again"
        )
    return table


def unmatched_queries(queries: pa.Table, matches: pa.Table) -> pa.Table:
    """Return the queries of a block that have no match, as a table FAILURES."""
    matched = pc.is_in(queries["image_id"], value_set=matches["query_id"].combine_chunks())
    rows = queries.filter(pc.invert(matched)).select(["row", "image_id", "path", "label"])
    constants = {"stage": "rank", "error": "NoMatch", "message": NO_MATCH}
    for name, value in constants.items():
        rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
    return rows.select(FAILURES.schema.names).cast(FAILURES.schema)
