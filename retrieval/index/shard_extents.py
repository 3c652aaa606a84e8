"""Division of a store into shards: the row ranges of parts (extents) that each shard covers.

Each shard records the extents it was built from. A continued or updated index compares them with
the parts of the store to find the rows that no shard covers, and to detect parts that the store no
longer has (it was compacted), which makes the shards invalid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from retrieval.core.records import FileRecord, IndexPlan
from retrieval.index.shard import (
    Extent,
    Extents,
    existing_shards,
    shard_path,
    shard_record_path,
    shard_rows_path,
)
from retrieval.storage.finished_output import MANIFEST
from retrieval.storage.local import Folder
from retrieval.store.reader import Store


def plan_shards(folder: Folder, store: Store, plan: IndexPlan) -> list[tuple[int, Extents]]:
    """Return number and extents of every shard that the index will have, existing ones included.

    If the store no longer has a part that a shard covers, rows were renumbered and all shards are
    removed.
    """
    existing = existing_shards(folder)
    parts = store.parts
    if not extents_exist([extent for extents in existing.values() for extent in extents], parts):
        folder.delete(MANIFEST)
        for number in existing:
            for path in (shard_record_path(number), shard_rows_path(number), shard_path(number)):
                folder.delete(path)
        existing = {}
    covered = [extent for extents in existing.values() for extent in extents]
    new_extents = missing_extents(parts, covered, plan.rows_per_shard)
    free_numbers = (n for n in range(len(existing) + len(new_extents)) if n not in existing)
    return sorted([*existing.items(), *zip(free_numbers, new_extents, strict=True)])


def extents_exist(covered: Iterable[Extent], parts: Sequence[Iterable[FileRecord]]) -> bool:
    """Return whether the store still holds all extents that the shards were built from."""
    records = {record.path: record for run in parts for record in run}
    return all(
        extent.path in records
        and extent.sha256 == records[extent.path].sha256
        and extent.last <= (records[extent.path].rows or 0)
        for extent in covered
    )


def missing_extents(
    parts: Sequence[Iterable[FileRecord]], covered: Iterable[Extent], rows_per_shard: int
) -> list[Extents]:
    """Return the extents of new shards, of `rows_per_shard` rows each, for all uncovered rows.

    `parts` are runs of parts in row order. Each gap between covered extents is cut separately, so
    that an interrupted build continues with the same shards as an uninterrupted one.
    """
    covered_ranges: dict[str, list[tuple[int, int]]] = {}
    for extent in covered:
        covered_ranges.setdefault(extent.path, []).append((extent.first, extent.last))
    return [
        extents
        for run in parts
        for gap in _gaps(run, covered_ranges)
        for extents in _cut(gap, rows_per_shard)
    ]


def _gaps(
    run: Iterable[FileRecord], covered_ranges: dict[str, list[tuple[int, int]]]
) -> Iterator[list[Extent]]:
    """Iterate over the maximal uncovered stretches of a run of parts."""
    gap: list[Extent] = []
    for record in run:
        position, rows = 0, record.rows or 0
        for first, last in sorted(covered_ranges.get(record.path, [])):
            if position < first:
                gap.append(Extent(record.path, record.sha256, position, first))
            if gap:
                yield gap
                gap = []
            position = last
        if position < rows:
            gap.append(Extent(record.path, record.sha256, position, rows))
    if gap:
        yield gap


def _cut(gap: Iterable[Extent], size: int) -> Iterator[Extents]:
    """Cut a stretch into extents of `size` rows in all, the last one shorter."""
    piece: list[Extent] = []
    piece_rows = 0
    for extent in gap:
        first = extent.first
        while first < extent.last:
            last = min(extent.last, first + size - piece_rows)
            piece.append(Extent(extent.path, extent.sha256, first, last))
            piece_rows += last - first
            first = last
            if piece_rows == size:
                yield tuple(piece)
                piece, piece_rows = [], 0
    if piece:
        yield tuple(piece)
