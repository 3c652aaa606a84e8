"""Compaction: the live rows of all segments become one segment again, as if made from scratch.

Nothing is embedded. Everything is first written beside the store (work/compact-ID/, where ID names
the listing and what it is made from), chunk by chunk; then one small file, put only if absent, says
that it is whole. From there on whoever meets it goes on: manifest away, new files over old ones,
away with the old ones that have no successor. Each of these steps may be done twice, and by two at
once: a path of the new segment is only ever replaced by its new content, never deleted. So a kill
leaves the old store, or an unfinished one that the next run completes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk, FileRecord
from retrieval.core.schemas import COMPACTED, WORK, Vectors
from retrieval.storage import finished_output
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.local import Folder, digest_here
from retrieval.storage.parquet import read_rows
from retrieval.storage.temporary import TEMPORARY
from retrieval.store.layout import failures_path, listing_path, part_path, segment_json_path
from retrieval.store.reader import (
    ledger_bytes,
    part_bytes,
    put_part,
    read_sealed,
    sealed_parts,
    vectors_of,
)
from retrieval.store.segment import Rows, Segment, digest_of, segment_of

READY = COMPACTED
"""Put when the new segment is whole; its segment.json, which tells where it lies."""
_ROWS = "rows.parquet"


@dataclass(frozen=True)
class Compaction:
    """A compaction under way: the store, its segments as they are, and the one to come."""

    store: Folder
    before: list[Segment]
    segment: Segment

    @property
    def aside(self) -> Folder:
        """Give the folder that the new segment is written to, laid out as the store is."""
        return _aside(self.store, self.segment)

    def compact_chunk(self, chunk: Chunk) -> Chunk:
        """Put one chunk of the new segment, gathered from the old ones; a plain step for a task."""
        if self.aside.exists(part_path(chunk)):
            return chunk
        lines = read_rows(self.aside, listing_path(0), chunk.first, chunk.last)
        old = read_rows(self.aside, _ROWS, chunk.first, chunk.last)["old"].to_numpy()
        rows, failures = _gather(self.store, self.before, old)
        place = np.argsort(old, kind="stable")
        found = place[np.searchsorted(old[place], rows["row"].to_numpy())]
        order = np.argsort(found, kind="stable")
        rows = rows.take(pa.array(order))
        kept = lines.take(pa.array(found[order]))
        vectors: Vectors = vectors_of(rows)
        at = dict(zip(old.tolist(), lines.select(["row", "image_id", "path", "label"]).to_pylist(),
                      strict=True))  # fmt: skip
        lost = [{**failure, **at[failure["row"]]} for failure in failures.to_pylist()]
        if len(rows) + len(lost) != len(lines):
            raise Damaged(f"{self.store.uri()} lacks rows of its listing; verify it")
        put_part(self.aside, chunk, part_bytes(kept, rows, vectors), ledger_bytes(lost))
        return chunk


def _aside(store: Folder, segment: Segment) -> Folder:
    name = hashlib.sha256(segment.to_json()).hexdigest()[:16]
    return store.child(f"{WORK}compact-{name}")


def plan_compaction(
    folder: Folder, before: list[Segment], listing: Path, rows: int, chunk_rows: int
) -> Compaction:
    """Say which segment is to come of the ones before; nothing is written."""
    segment = Segment(0, 0, rows, chunk_rows, 0, {listing_path(0): digest_here(listing)})
    return Compaction(folder, before, segment)


def begin_compaction(made: Compaction, listing: Path, old: Rows) -> None:
    """Put the new listing aside, and beside it which old row each of its lines was."""
    rows = sealed_parquet(pa.table({"old": pa.array(old, pa.int64())}))
    made.aside.put_new(_ROWS, rows)
    made.aside.put_new_file(listing_path(0), lambda name: _copy(listing, name))
    expected = made.segment.files[listing_path(0)]
    if made.aside.read(_ROWS) != rows or digest_of(made.aside, listing_path(0)) != expected:
        raise Damaged(f"{made.aside.uri()} was altered; remove it and run again")


def _copy(source: Path, target: str) -> None:
    shutil.copyfile(source, target)


def _gather(store: Folder, segments: list[Segment], old: Rows) -> tuple[pa.Table, pa.Table]:
    """Read the rows and the failures among some rows of a store, in any order."""
    wanted = np.sort(old)
    rows, failures = [], []
    for chunk in chunks_of(segments, wanted):
        asked = pa.array(wanted[slice(*np.searchsorted(
            wanted, [chunk.base + chunk.first, chunk.base + chunk.last]))])  # fmt: skip
        parts = sealed_parts(store, chunk)
        rows.append(parts.filter(pc.is_in(parts["row"], value_set=asked)))
        if rows[-1].num_rows < len(asked):
            ledger = _latest_ledger(store, chunk)
            failures.append(ledger.filter(pc.is_in(ledger["row"], value_set=asked)))
    both = (pa.concat_tables(t, promote_options="default") if t else None for t in (rows, failures))
    found, lost = both
    empty = pa.table({"row": pa.array([], pa.int64())})
    return found if found is not None else empty, lost if lost is not None else empty


def chunks_of(segments: list[Segment], rows: Rows) -> Iterator[Chunk]:
    """Give the chunks that some rows, in their order, lie in."""
    for segment in segments:
        lines = rows[slice(*np.searchsorted(rows, [segment.base, segment.base + segment.images]))]
        for number in np.unique((lines - segment.base) // segment.chunk_rows).tolist():
            yield segment.chunk(number)


def _latest_ledger(store: Folder, chunk: Chunk) -> pa.Table:
    retry = 0
    while store.exists(part_path(replace(chunk, retry=retry + 1))):
        retry += 1
    return read_sealed(store, failures_path(replace(chunk, retry=retry)))


def settle(made: Compaction) -> None:
    """Say that the new segment is whole, unless another run was first, or is done with it."""
    if _whole(made.aside, made.segment):
        made.store.put_new(READY, made.segment.to_json())


def is_settled(folder: Folder) -> bool:
    """Tell whether a compaction waits for its segment to be brought to its place."""
    return folder.exists(READY)


def overtaken(made: Compaction) -> bool:
    """Tell whether another run has settled the same compaction, or even ended it."""
    ended = (
        finished_output.read_if_there(made.store, segment_json_path(0)) == made.segment.to_json()
    )
    return ended or is_settled(made.store)


def clear_aside(made: Compaction) -> None:
    """Remove what this run has written aside when another one was done already."""
    if not is_settled(made.store):
        for entry in list(made.aside.entries()):
            made.aside.delete(entry.path)


Move = Callable[[Folder, list[str]], list[FileRecord]]


def bring_to_place(folder: Folder, move: Move) -> list[FileRecord]:
    """Replace the segments of a store by the one that lies ready; any run may go on with it.

    `move(aside, paths)` copies files from aside to the same paths of the store, over what is there,
    and gives their records.
    """
    data = finished_output.read_if_there(folder, READY)
    if data is None:  # another run was quicker
        return []
    segment = segment_of(0, data, folder)
    aside = _aside(folder, segment)
    paths = _whole(aside, segment)
    moved: list[FileRecord] = []
    if paths:
        folder.delete(finished_output.MANIFEST)
        moved = move(aside, paths)
        folder.put(segment_json_path(0), data)
        for entry in list(folder.entries("segments")):
            if entry.path not in (*paths, segment_json_path(0)) and is_settled(folder):
                folder.delete(entry.path)
    _clear(folder, aside)
    return moved


def _whole(aside: Folder, segment: Segment) -> list[str]:
    """Give the files of a segment that lies aside; nothing if it is not, or no longer, whole.

    Its listing is the first that is cleared away: while it is there, all are.
    """
    there = {entry.path for entry in aside.entries()}
    paths = sorted(p for p in there if p.startswith("segments/") and TEMPORARY not in p)
    needed = {listing_path(0), *map(part_path, segment.chunks())}
    return paths if needed <= there and aside.exists(listing_path(0)) else []


def _clear(folder: Folder, aside: Folder) -> None:
    """Remove what compactions left, so that a kill leaves what the next run recognises."""
    aside.delete(listing_path(0))
    for entry in list(folder.entries(WORK.rstrip("/"))):
        if entry.path != READY:
            folder.delete(entry.path)
    folder.delete(READY)
