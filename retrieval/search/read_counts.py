"""Counts of the lists and rows that queries read, kept with the candidates of a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.storage.folder import Folder


@dataclass(frozen=True)
class ReadCounts:
    """What the queries of a block read, as metadata of a file of candidates of one shard."""

    queries: int
    lists: int  # of all queries together, in the whole index
    most_lists: int  # of one query, in the whole index
    rows: int  # of all queries together in this shard, deleted rows included

    def to_metadata(self) -> dict[str, str]:
        """Return the counts as metadata of a Parquet file."""
        return {f"read_{name}": str(value) for name, value in vars(self).items()}


def count_read(
    rows: int | None, nlist: int, lists: NDArray[np.int64] | None, queries: int
) -> ReadCounts:
    """Count what queries read: `rows` of one shard (None: none), and lists of the whole index.

    `lists` (q, width) are the lists of each query, padded with -1; None means all `nlist` lists.
    """
    if lists is None:
        return ReadCounts(queries, queries * nlist, nlist, rows or 0)
    counts = (lists >= 0).sum(1)
    return ReadCounts(queries, int(counts.sum()), int(counts.max(initial=0)), rows or 0)


def read_counts(folder: Folder, path: str) -> ReadCounts:
    """Read the counts of a file of candidates, without the candidates."""
    with folder.open(path) as file:
        metadata = pq.read_metadata(file).metadata
    names = ReadCounts.__dataclass_fields__
    return ReadCounts(**{name: int(metadata[f"read_{name}".encode()]) for name in names})


def add_blocks(blocks: Iterable[ReadCounts]) -> ReadCounts:
    """Add the counts of all blocks of a shard."""
    queries = lists = most = rows = 0
    for count in blocks:
        queries, lists, rows = queries + count.queries, lists + count.lists, rows + count.rows
        most = max(most, count.most_lists)
    return ReadCounts(queries, lists, most, rows)


def add_shards(shards: Sequence[ReadCounts]) -> ReadCounts:
    """Add the rows of all shards; queries and lists are the same in each."""
    return replace(shards[0], rows=sum(count.rows for count in shards))
