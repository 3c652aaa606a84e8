"""Compaction: merge the live rows of all segments into one, as if embedded from scratch.

The new segment is first written, chunk by chunk, to a staging folder (work/compact-ID/); then a
marker file is written, which means that it is complete. After that any run can install it: delete
the manifest, copy the new files over the old ones, and delete old files that have no new version.
Each step may be repeated, also by two runs at once, because the paths of the new segment are
replaced but never deleted. A kill leaves the old store, or an unfinished one that the next run
completes.
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
from retrieval.core.schemas import COMPACTION_MARKER, WORK_FOLDER, Vectors
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_parquet, read_checksummed_parquet
from retrieval.storage.local import Folder, sha256_of_file
from retrieval.storage.parquet import read_rows
from retrieval.storage.temporary import TEMPORARY_PREFIX
from retrieval.store.layout import failures_path, listing_path, part_path, segment_json_path
from retrieval.store.part_writer import encode_ledger, encode_part, put_part
from retrieval.store.reader import read_unfinished_chunk, read_vectors
from retrieval.store.segment import Rows, Segment, parse_segment

READY = COMPACTION_MARKER
"""Path of the marker file, which exists when the new segment is complete and holds its
segment.json."""
_ROWS = "rows.parquet"


@dataclass(frozen=True)
class Compaction:
    """A compaction in progress: the store, its current segments, and the new segment."""

    store: Folder
    old_segments: list[Segment]
    segment: Segment

    @property
    def staging(self) -> Folder:
        """Return the staging folder of the new segment, which has the layout of a store."""
        return _staging_folder(self.store, self.segment)

    def compact_chunk(self, chunk: Chunk) -> Chunk:
        """Write one chunk of the new segment from the rows of the old ones, unless it exists.

        Returns the chunk. Raises Damaged if rows of the listing are in no part or ledger.
        """
        if self.staging.exists(part_path(chunk)):
            return chunk
        lines = read_rows(self.staging, listing_path(0), chunk.first, chunk.last)
        old_rows = read_rows(self.staging, _ROWS, chunk.first, chunk.last)["old"].to_numpy()
        rows, failures = _gather(self.store, self.old_segments, old_rows)
        by_row = np.argsort(old_rows, kind="stable")
        positions = by_row[np.searchsorted(old_rows[by_row], rows["row"].to_numpy())]
        order = np.argsort(positions, kind="stable")
        rows = rows.take(pa.array(order))
        embedded_lines = lines.take(pa.array(positions[order]))
        vectors: Vectors = read_vectors(rows)
        items = lines.select(["row", "image_id", "path", "label"]).to_pylist()
        item_of_row = dict(zip(old_rows.tolist(), items, strict=True))
        ledger = [{**failure, **item_of_row[failure["row"]]} for failure in failures.to_pylist()]
        if len(rows) + len(ledger) != len(lines):
            raise Damaged(
                f"{self.store.uri()} lacks rows of its listing; check it with lookalike verify"
            )
        put_part(
            self.staging, chunk, encode_part(embedded_lines, rows, vectors), encode_ledger(ledger)
        )
        return chunk


def _staging_folder(store: Folder, segment: Segment) -> Folder:
    name = hashlib.sha256(segment.to_json()).hexdigest()[:16]
    return store.child(f"{WORK_FOLDER}compact-{name}")


def plan_compaction(
    folder: Folder, old_segments: list[Segment], listing: Path, rows: int, chunk_rows: int
) -> Compaction:
    """Return the compaction of the segments of a store; nothing is written.

    `listing` is the local listing of the new segment, with `rows` lines.
    """
    segment = Segment(0, 0, rows, chunk_rows, 0, {listing_path(0): sha256_of_file(listing)})
    return Compaction(folder, old_segments, segment)


def begin_compaction(plan: Compaction, listing: Path, old_rows: Rows) -> None:
    """Write the new listing, and the (n,) old rows of its lines, to the staging folder.

    Raises Damaged if other files are in their place.
    """
    rows = checksummed_parquet(pa.table({"old": pa.array(old_rows, pa.int64())}))
    plan.staging.put_new(_ROWS, rows)
    plan.staging.put_new_file(listing_path(0), lambda name: _copy(listing, name))
    expected = plan.segment.files[listing_path(0)]
    if plan.staging.read(_ROWS) != rows or plan.staging.sha256(listing_path(0)) != expected:
        raise Damaged(f"{plan.staging.uri()} was altered; remove it and run again")


def _copy(source: Path, target: str) -> None:
    shutil.copyfile(source, target)


def _gather(store: Folder, segments: list[Segment], old_rows: Rows) -> tuple[pa.Table, pa.Table]:
    """Return the part rows and the ledger rows of the (n,) rows `old_rows` of a store."""
    sorted_rows = np.sort(old_rows)
    rows, failures = [], []
    for chunk in chunks_containing(segments, sorted_rows):
        bounds = np.searchsorted(sorted_rows, [chunk.base + chunk.first, chunk.base + chunk.last])
        chunk_rows = pa.array(sorted_rows[slice(*bounds)])
        parts = read_unfinished_chunk(store, chunk)
        rows.append(parts.filter(pc.is_in(parts["row"], value_set=chunk_rows)))
        if rows[-1].num_rows < len(chunk_rows):
            ledger = _latest_ledger(store, chunk)
            failures.append(ledger.filter(pc.is_in(ledger["row"], value_set=chunk_rows)))
    return _concatenate(rows), _concatenate(failures)


def _concatenate(tables: list[pa.Table]) -> pa.Table:
    if not tables:
        return pa.table({"row": pa.array([], pa.int64())})
    return pa.concat_tables(tables, promote_options="default")


def chunks_containing(segments: list[Segment], rows: Rows) -> Iterator[Chunk]:
    """Iterate over the chunks that contain the (n,) ascending rows."""
    for segment in segments:
        lines = rows[slice(*np.searchsorted(rows, [segment.base, segment.base + segment.images]))]
        for number in np.unique((lines - segment.base) // segment.chunk_rows).tolist():
            yield segment.chunk(number)


def _latest_ledger(store: Folder, chunk: Chunk) -> pa.Table:
    retry = 0
    while store.exists(part_path(replace(chunk, retry=retry + 1))):
        retry += 1
    return read_checksummed_parquet(store, failures_path(replace(chunk, retry=retry)))


def mark_ready(plan: Compaction) -> None:
    """Mark the new segment as complete, unless another run has done so or has installed it."""
    if _list_complete(plan.staging, plan.segment):
        plan.store.put_new(READY, plan.segment.to_json())


def is_compaction_ready(folder: Folder) -> bool:
    """Return whether a compacted segment is complete and not installed yet."""
    return folder.exists(READY)


def is_superseded(plan: Compaction) -> bool:
    """Return whether another run has completed or installed the same compaction."""
    installed = (
        finished_output.read_if_exists(plan.store, segment_json_path(0)) == plan.segment.to_json()
    )
    return installed or is_compaction_ready(plan.store)


def discard_staging(plan: Compaction) -> None:
    """Remove the staged files of this run if another run has installed the segment already."""
    if not is_compaction_ready(plan.store):
        for entry in list(plan.staging.entries()):
            plan.staging.delete(entry.path)


CopyFiles = Callable[[Folder, list[str]], list[FileRecord]]


def install_compacted_segment(folder: Folder, copy_files: CopyFiles) -> list[FileRecord]:
    """Replace the segments of a store by the staged one; return the records of the copied files.

    Any run may continue an interrupted installation. `copy_files(staging, paths)` copies files to
    the same paths of the store, replacing existing ones, and returns their records.
    """
    data = finished_output.read_if_exists(folder, READY)
    if data is None:  # another run has installed it
        return []
    segment = parse_segment(0, data, folder)
    staging = _staging_folder(folder, segment)
    paths = _list_complete(staging, segment)
    records: list[FileRecord] = []
    if paths:
        folder.delete(finished_output.MANIFEST)
        records = copy_files(staging, paths)
        folder.put(segment_json_path(0), data)
        for entry in list(folder.entries("segments")):
            if entry.path not in (*paths, segment_json_path(0)) and is_compaction_ready(folder):
                folder.delete(entry.path)
    _clear_work(folder, staging)
    return records


def _list_complete(staging: Folder, segment: Segment) -> list[str]:
    """Return the paths of a staged segment; an empty list if it is not, or no longer, complete.

    The listing is the first file to be removed: while it exists, all others do.
    """
    existing = {entry.path for entry in staging.entries()}
    paths = sorted(p for p in existing if p.startswith("segments/") and TEMPORARY_PREFIX not in p)
    required = {listing_path(0), *map(part_path, segment.chunks())}
    return paths if required <= existing and staging.exists(listing_path(0)) else []


def _clear_work(folder: Folder, staging: Folder) -> None:
    """Remove the files of compactions, the marker last, so that the next run completes a kill."""
    staging.delete(listing_path(0))
    for entry in list(folder.entries(WORK_FOLDER.rstrip("/"))):
        if entry.path != READY:
            folder.delete(entry.path)
    folder.delete(READY)
