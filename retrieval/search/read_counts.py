"""Counts of the lists and rows that queries read, kept with the candidates of a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from retrieval.storage.folder import Folder
from retrieval.storage.sections import open_sections


@dataclass(frozen=True)
class ReadCounts:
    """What queries of a block read, stored with the candidates of one shard for them.

    The first file of a shard and block counts the queries and lists of the whole block.
    """

    queries: int
    lists: int  # of all queries together, in the whole index
    most_lists: int  # of one query, in the whole index
    rows: int  # of all queries together in this shard, deleted rows included


def read_counts(folder: Folder, path: str) -> ReadCounts:
    """Read the counts of a file of candidates, without the candidates."""
    with open_sections(folder, path) as file:
        return ReadCounts(**file.values["read"])


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
