"""One shard against one block of queries, list by list.

For each inverted list, all queries that read it are scored in one product; the bound and float64
(`scoring.py`) decide. Each query meets its closest list first, so that the others find a high bar.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.index.shards import Shard
from retrieval.scoring import Block, TopK, block
from retrieval.tables import CANDIDATES

Int64 = NDArray[np.int64]


def search_shard(shard: Shard, queries: Block, probes: Int64, numbers: Int64, k: int) -> pa.Table:
    """Find the k best candidates of a shard for each query: table CANDIDATES, unordered.

    `probes` is (q, nprobe), the lists each query reads, closest first; `numbers` (q,) are the
    queries' positions, which stand in the column `query`.
    """
    ties = image_id_order(shard.metadata)
    norms = shard.metadata["norm"].to_numpy()
    best = TopK(queries, k)
    lists = np.empty(len(shard.rows), np.int32)
    for pairs in (_pairs(probes[:, :1]), _pairs(probes[:, 1:])):
        for number, which in pairs:
            own, vectors = shard.listed(number)
            if len(own) == 0:
                continue
            places = np.searchsorted(shard.rows, own)
            lists[places] = number
            best.push(block(vectors, shard.metric, norms[places]), ties[places], places, which)
    return candidates_table(shard.metadata, best, numbers, lists)


def _pairs(probes: Int64) -> Iterator[tuple[int, Int64]]:
    """Group (query, list) pairs by list: each list's number and the queries that read it."""
    if probes.size == 0:
        return
    query, place = np.indices(probes.shape)
    del place
    flat = probes.ravel()
    order = np.argsort(flat, kind="stable")
    lists, starts = np.unique(flat[order], return_index=True)
    for number, which in zip(lists, np.split(query.ravel()[order], starts[1:]), strict=True):
        yield int(number), which.astype(np.int64)


def image_id_order(metadata: pa.Table) -> Int64:
    """Give the place of each row's image_id in the order of image_ids by bytes."""
    order = pc.sort_indices(metadata["image_id"]).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def candidates_table(
    metadata: pa.Table, best: TopK, numbers: Int64, lists: NDArray[np.integer]
) -> pa.Table:
    """Say of the places found what the table CANDIDATES says; `numbers` name the queries."""
    query, rank = np.nonzero(best.positions >= 0)
    places = best.positions[query, rank]
    found = metadata.take(places)
    columns = {
        "query": numbers[query],
        "key": best.keys[query, rank],
        "row": found["row"],
        "list": lists[places],
        "image_id": found["image_id"],
        "path": found["path"],
        "label": found["label"],
    }
    return pa.table(columns).cast(CANDIDATES)
