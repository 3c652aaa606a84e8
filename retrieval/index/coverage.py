"""Which of a store's parts lie in which shard, and which are still to be indexed.

Each shard notes the extents it was made of. So an index that is run again knows what it lacks,
however it was stopped and whatever was appended to the store since; parts that the store no longer
has (it was compacted) show that the shards are of no use any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from retrieval.core.records import FileRecord


@dataclass(frozen=True, order=True)
class Extent:
    """Places first <= place < last of a part of a store."""

    path: str
    sha256: str
    first: int
    last: int


Extents = tuple[Extent, ...]


def is_of(covered: Iterable[Extent], parts: Sequence[Iterable[FileRecord]]) -> bool:
    """Tell whether a store still holds all that some shards were made of."""
    there = {record.path: record for run in parts for record in run}
    return all(
        extent.path in there
        and extent.sha256 == there[extent.path].sha256
        and extent.last <= (there[extent.path].rows or 0)
        for extent in covered
    )


def missing(
    parts: Sequence[Iterable[FileRecord]], covered: Iterable[Extent], rows_per_shard: int
) -> list[Extents]:
    """Cut what no shard covers into the extents of new shards, by number of rows.

    `parts` are runs of parts in the order of their rows. What lies between two shards that are
    there is cut by itself, so that a killed build goes on with the shards of an unharmed one.
    """
    done: dict[str, list[tuple[int, int]]] = {}
    for extent in covered:
        done.setdefault(extent.path, []).append((extent.first, extent.last))
    return [
        extents
        for run in parts
        for gap in _gaps(run, done)
        for extents in _cut(gap, rows_per_shard)
    ]


def _gaps(
    run: Iterable[FileRecord], done: dict[str, list[tuple[int, int]]]
) -> Iterator[list[Extent]]:
    """Give what is not done as stretches that nothing done interrupts."""
    gap: list[Extent] = []
    for record in run:
        place, rows = 0, record.rows or 0
        for first, last in sorted(done.get(record.path, [])):
            if place < first:
                gap.append(Extent(record.path, record.sha256, place, first))
            if gap:
                yield gap
                gap = []
            place = last
        if place < rows:
            gap.append(Extent(record.path, record.sha256, place, rows))
    if gap:
        yield gap


def _cut(gap: Iterable[Extent], size: int) -> Iterator[Extents]:
    """Cut a stretch into pieces of `size` rows, the last one shorter."""
    piece: list[Extent] = []
    held = 0
    for extent in gap:
        first = extent.first
        while first < extent.last:
            last = min(extent.last, first + size - held)
            piece.append(Extent(extent.path, extent.sha256, first, last))
            held += last - first
            first = last
            if held == size:
                yield tuple(piece)
                piece, held = [], 0
    if piece:
        yield tuple(piece)
