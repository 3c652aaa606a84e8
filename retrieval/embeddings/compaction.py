"""Compaction: the live rows of all segments become one segment again, as if made from scratch.

Nothing is embedded. Everything is first written beside the store (work/compact-ID/, where ID names
the listing and what it is made from), chunk by chunk; then one small file, put only if absent, says
that it is whole. From there on whoever meets it goes on: manifest away, old segments away, new ones
to their place. So a kill leaves the old store, or an unfinished one that the next run completes.
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

from retrieval.embeddings.layout import failures_path, listing_path, part_path, segment_json_path
from retrieval.embeddings.segment import Rows, Segment, digest_of, segment_of
from retrieval.embeddings.store import (
    ledger_bytes,
    part_bytes,
    put_part,
    read_sealed,
    sealed_parts,
    vectors_of,
)
from retrieval.errors import Damaged
from retrieval.storage import finished
from retrieval.storage.files import Folder
from retrieval.storage.rows import read_rows
from retrieval.storage.seal import sealed_parquet
from retrieval.storage.temporary import TEMPORARY
from retrieval.tables import WORK, Chunk, FileRecord, Vectors

READY = f"{WORK}compacted"
"""Put when the new segment is whole; its segment.json, which tells where it lies."""
_MOVING = f"{WORK}compacted.moving"
"""Put when the old segments are gone: from there on what lies in segments/ is the new one."""
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


def begin_compaction(
    folder: Folder, before: list[Segment], listing: Path, old: Rows, chunk_rows: int
) -> Compaction:
    """Put the new listing aside, and beside it which old row each of its lines was."""
    with open(listing, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    segment = Segment(0, 0, len(old), chunk_rows, 0, {listing_path(0): digest})
    made = Compaction(folder, before, segment)
    rows = sealed_parquet(pa.table({"old": pa.array(old, pa.int64())}))
    made.aside.put_new(_ROWS, rows)
    made.aside.put_new_file(listing_path(0), lambda name: _copy(listing, name))
    if made.aside.read(_ROWS) != rows or digest_of(made.aside, listing_path(0)) != digest:
        raise Damaged(f"{made.aside.uri()} was altered; remove it and run again")
    return made


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
            first = number * segment.chunk_rows
            last = min(first + segment.chunk_rows, segment.images)
            yield Chunk(segment.number, number, first, last, segment.base)


def _latest_ledger(store: Folder, chunk: Chunk) -> pa.Table:
    retry = 0
    while store.exists(part_path(replace(chunk, retry=retry + 1))):
        retry += 1
    return read_sealed(store, failures_path(replace(chunk, retry=retry)))


def settle(made: Compaction) -> None:
    """Say that the new segment is whole, unless another run was first."""
    if not is_settled(made.store):
        made.store.delete(_MOVING)  # of one that was killed at its very end
    made.store.put_new(READY, made.segment.to_json())


def is_settled(folder: Folder) -> bool:
    """Tell whether a compaction waits for its segment to be brought to its place."""
    return folder.exists(READY)


Move = Callable[[Folder, list[str]], list[FileRecord]]


def bring_to_place(folder: Folder, move: Move) -> list[FileRecord]:
    """Replace the segments of a store by the one that lies ready; any run may go on with it.

    `move(aside, paths)` copies files from aside to the same paths of the store, where those that
    are there already stay, and gives their records.
    """
    segment = segment_of(0, folder.read(READY), folder)
    aside = _aside(folder, segment)
    folder.delete(finished.MANIFEST)
    if not folder.exists(_MOVING):
        for entry in list(folder.entries("segments")):
            folder.delete(entry.path)
        folder.put_new(_MOVING, READY.encode())
    paths = sorted(e.path for e in aside.entries() if e.path.startswith("segments/"))
    moved = move(aside, [path for path in paths if TEMPORARY not in path])
    folder.put_new(segment_json_path(0), segment.to_json())
    for entry in list(folder.entries(WORK.rstrip("/"))):
        if entry.path not in (READY, _MOVING):
            folder.delete(entry.path)
    folder.delete(READY)
    folder.delete(_MOVING)
    return moved
