"""Files of the queries of a block and the lists they read, of which a shard reads its share.

The first section has all queries, the next ones have the queries of each shard with those of their
lists that it holds. Pieces of some vectors follow, each vector once: queries that read the same
shards lie together, so that a shard reads few pieces beside its queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.schemas import Vectors
from retrieval.index.generations import ShardLists
from retrieval.storage.folder import Folder
from retrieval.storage.sections import SectionFile, join_sections, open_sections, serialize_table
from retrieval.store.reader import embedding_column, read_vectors

PIECE_BYTES = 1 << 16
"""Bytes of the vectors of a piece."""


@dataclass(frozen=True)
class ProbedQueries:
    """Some queries of a block, ordered by row, and lists that they read."""

    table: pa.Table  # row, embedding and further columns
    lists: NDArray[np.int64]  # (q, width) numbers in the index, closest first, padded with -1


@dataclass(frozen=True)
class _Pairs:
    """The (query, list) pairs of a block, (p,) each, by query and closest list first."""

    query: NDArray[np.int64]
    lists: NDArray[np.int64]

    def of_shards(self, shards: Sequence[ShardLists]) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of the pairs of each shard, ascending."""
        order = np.argsort(self.lists, kind="stable")
        ordered = self.lists[order]
        for shard in shards:
            last_list = shard.last_list if shard.rows else shard.first_list
            first, last = np.searchsorted(ordered, [shard.first_list, last_list])
            yield np.sort(order[first:last])

    def section(self, queries: pa.Table, positions: NDArray[np.int64]) -> memoryview:
        """Return a section of the queries of the pairs at `positions`, and their lists."""
        query = self.query[positions]
        first = np.flatnonzero(np.diff(query, prepend=-1))
        offsets = pa.array(np.append(first, len(positions)).astype(np.int32))
        lists = pa.array(self.lists[positions].astype(np.int32))
        column = pa.ListArray.from_arrays(offsets, lists)
        return serialize_table(queries.take(pa.array(query[first])).append_column("lists", column))


def write_probed_queries(
    folder: Folder,
    path: str,
    queries: pa.Table,
    lists: NDArray[np.int64],
    shards: Sequence[ShardLists],
) -> None:
    """Write the queries of a block for each shard, unless the file exists.

    Args:
        folder: Folder to write to.
        path: Path in the folder.
        queries: Columns `row`, ascending, `embedding` and others that the search needs.
        lists: (q, width) lists that each query reads, closest first and padded with -1 at the end.
        shards: Lists of each shard.
    """
    query, column = np.nonzero(lists >= 0)
    pairs = _Pairs(query, lists[query, column])
    positions = list(pairs.of_shards(shards))
    order = _order_by_shards(len(queries), [np.unique(query[part]) for part in positions])
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    table = queries.drop_columns("embedding").append_column("place", pa.array(places))
    vectors = read_vectors(queries)[order]
    step = max(1, PIECE_BYTES // max(1, vectors.itemsize * vectors.shape[1]))
    sections = [pairs.section(table, part) for part in [np.arange(len(query)), *positions]]
    pieces = [vectors[n : n + step].data.cast("B") for n in range(0, len(vectors), step)]
    data = join_sections(
        [*sections, *pieces],
        shards=len(shards), step=step, dimension=vectors.shape[1], dtype=vectors.dtype.name,
        pairs=len(query), queries=len(queries),
        most_lists=int(np.count_nonzero(lists >= 0, axis=1).max(initial=0)),
    )  # fmt: skip
    folder.put_new(path, data)


def _order_by_shards(count: int, queries: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return an order of `count` queries in which those that read the same shards are neighbours.

    `queries` are the positions of the queries of each shard.
    """
    reads = np.zeros((count, len(queries)), np.bool_)
    for shard, positions in enumerate(queries):
        reads[positions, shard] = True
    keys = np.packbits(reads, axis=1)
    return np.lexsort(keys.T[::-1]) if keys.shape[1] else np.arange(count)


def read_probed_queries(
    folder: Folder, path: str, shard: int, part: int = 0, parts: int = 1
) -> ProbedQueries:
    """Return the queries of a shard with their lists in it, of `parts` about equal parts one.

    Raises Damaged where what is read was altered.
    """
    with open_sections(folder, path) as file:
        table = file.read_table(1 + shard)
        first, last = part * len(table) // parts, (part + 1) * len(table) // parts
        return _with_vectors(file, table.slice(first, last - first))


def read_queries_by_row(folder: Folder, path: str, rows: NDArray[np.int64]) -> ProbedQueries:
    """Return the queries of a block with some rows of the query store, and all their lists."""
    with open_sections(folder, path) as file:
        table = file.read_table(0)
        is_selected = np.isin(table["row"].to_numpy(), rows)
        return _with_vectors(file, table.filter(pa.array(is_selected)))


def read_all_lists(folder: Folder, path: str) -> NDArray[np.int64]:
    """Return the lists that the queries of a block read, (q, width), padded with -1 at the end."""
    with open_sections(folder, path) as file:
        return _pad_lists(file.read_table(0))


def read_counts_of_lists(folder: Folder, path: str) -> tuple[int, int, int]:
    """Return the number of queries of a block, the sum of their lists and the most of one query."""
    with open_sections(folder, path) as file:
        values = file.values
    return int(values["queries"]), int(values["pairs"]), int(values["most_lists"])


def _with_vectors(file: SectionFile, table: pa.Table) -> ProbedQueries:
    """Return the queries of a table with their vectors, of which the needed pieces are read."""
    values, places = file.values, table["place"].to_numpy()
    numbers, inverse = np.unique(places // values["step"], return_inverse=True)
    pieces = file.read([1 + values["shards"] + number for number in numbers.tolist()])
    dtype, dimension = np.dtype(values["dtype"]), values["dimension"]
    parts = [np.frombuffer(piece, dtype).reshape(-1, dimension) for piece in pieces]
    stored: Vectors = np.concatenate([np.empty((0, dimension), dtype), *parts])
    vectors = stored[inverse * values["step"] + places % values["step"]]
    columns = table.drop_columns(["place", "lists"])
    return ProbedQueries(
        columns.append_column("embedding", embedding_column(vectors)), _pad_lists(table)
    )


def _pad_lists(table: pa.Table) -> NDArray[np.int64]:
    """Return the column `lists` as (q, width), padded with -1 at the end."""
    column = table["lists"].combine_chunks()
    counts = np.diff(column.offsets.to_numpy())
    lists = np.full((len(counts), int(counts.max(initial=0))), -1, np.int64)
    lists[np.arange(lists.shape[1]) < counts[:, None]] = column.flatten().to_numpy()
    return lists
