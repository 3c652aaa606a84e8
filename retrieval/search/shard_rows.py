"""The live rows of a shard in the order of its lists, and their exact scores."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.index.shard import Shard
from retrieval.search.exclusions import ExcludedPairs
from retrieval.vectors.scoring import Float64, Int64, VectorBlock, score_pairs, scores_to_keys

_SCORED_ROWS = 1 << 12  # rows that are converted to float32 at once: 8 MiB at d = 512


class ShardRows:
    """The live rows of a shard in the order of its lists, numbered from 0.

    `starts` (nlist + 1,) are the numbers of the first rows of lists.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        parts = [shard.list_positions(number) for number in range(shard.index.nlist)]
        self.positions: Int64 = np.concatenate(parts) if parts else np.empty(0, np.int64)
        self.starts: Int64 = np.cumsum([0, *map(len, parts)])

    @cached_property
    def _number_of_position(self) -> Int64:
        """Return the number of each row of the metadata, or -1 where it is not live."""
        numbers = np.full(len(self.shard.metadata), -1)
        numbers[self.positions] = np.arange(len(self.positions))
        return numbers

    @cached_property
    def list_of_position(self) -> NDArray[np.int32]:
        """Return the list of each row of the metadata; -1 where it is not live, and at the end."""
        lists = np.full(len(self.shard.metadata) + 1, -1, np.int32)
        lists[self.positions] = np.repeat(
            np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts)
        )
        return lists

    def excluded_numbers(self, excluded: ExcludedPairs | None) -> ExcludedPairs:
        """Return excluded pairs of live rows by their numbers, ordered by query and number."""
        if excluded is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        query, numbers = excluded[0], self._number_of_position[excluded[1]]
        order = np.lexsort((numbers, query))
        order = order[numbers[order] >= 0]
        return query[order].astype(np.int64), numbers[order]

    def block(self, first: int, last: int) -> VectorBlock:
        """Return the vectors of the lists first <= number < last as one block."""
        blocks = [self.shard.list_block(number) for number in range(first, last)]
        return blocks[0] if len(blocks) == 1 else _concatenate(blocks)

    def keys(self, queries: VectorBlock, query: Int64, numbers: Int64) -> Float64:
        """Return the exact keys of queries and rows, (p,) each."""
        keys = np.empty(len(query))
        needed = np.zeros(len(self.positions), np.bool_)
        needed[numbers] = True
        needed_rows = np.flatnonzero(needed)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        for first in range(0, len(needed_rows), _SCORED_ROWS):
            part = needed_rows[first : first + _SCORED_ROWS]
            pairs = order[slice(*np.searchsorted(ordered, [part[0], part[-1] + 1]))]
            x = np.searchsorted(part, numbers[pairs])
            scores = score_pairs(queries, self._take(part), query[pairs], x)
            keys[pairs] = scores_to_keys(scores, queries.metric)
        return keys

    def _take(self, numbers: Int64) -> VectorBlock:
        """Return the rows with ascending numbers as one block."""
        lists = np.searchsorted(self.starts, numbers, side="right") - 1
        return _concatenate(
            [
                self.shard.list_block(number).take(numbers[run] - self.starts[number])
                for number, run in equal_runs(lists)
            ]
        )


def _concatenate(blocks: list[VectorBlock]) -> VectorBlock:
    """Return several blocks as one."""
    values = np.concatenate([part.values for part in blocks])
    squared_norms = np.concatenate([part.squared_norms for part in blocks])
    return VectorBlock(blocks[0].metric, values, squared_norms)


def equal_runs(ordered: NDArray[np.integer]) -> Iterator[tuple[int, slice]]:
    """Yield each distinct number >= 0 of a sorted array, and the slice of its entries."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1)).tolist()
    for first, last in zip(starts, [*starts[1:], len(ordered)][: len(starts)], strict=True):
        yield int(ordered[first]), slice(first, last)
