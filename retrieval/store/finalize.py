"""Completion of a store: check its counts and its error rate, and write the manifest.

The manifest is replaced when a further segment, a retry or a compaction is complete. It is removed
first, because manifest.json and files.parquet cannot be replaced in one step: meanwhile the store
is unfinished, but not damaged.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.core.errors import Damaged, TooManyFailures
from retrieval.core.schemas import Paths
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import (
    has_valid_checksum,
    parse_checksummed_json,
    read_checksummed_parquet,
)
from retrieval.storage.finished_output import Manifest
from retrieval.storage.inventory import Inventory, KnownRecords, as_inventory, is_among
from retrieval.storage.local import Folder
from retrieval.store.failure_reasons import commonest_reason
from retrieval.store.layout import (
    Int32,
    deleted_path,
    find_chunk_files,
    part_path,
    segment_json_path,
    segment_number,
)
from retrieval.store.segment import (
    Rows,
    Segment,
    group_by_segment,
    read_segments,
    remove_claims,
    row_span,
)


@dataclass(frozen=True)
class StoreCounts:
    """Counts of the images of a store."""

    span: int  # rows assigned, failed and deleted ones included
    deleted: int
    rows: int  # live images that have a vector
    failures: int  # live images that are in the ledger

    @property
    def images(self) -> int:
        """Return the number of live images."""
        return self.span - self.deleted


def finish_store(
    folder: Folder,
    dimension: int,
    known_records: KnownRecords,
    max_error_rate: float,
    segments: list[Segment] | None = None,
    unit: str = "images",
) -> Manifest:
    """Check the error rate of a store and write its manifest.

    Args:
        folder: The store.
        dimension: Length of its vectors.
        known_records: Records of files that need not be read again.
        max_error_rate: The largest allowed share of failures among the live images.
        segments: The complete segments; all by default. If another run has finished a later
            segment, its manifest is returned.
        unit: Plural noun for the items in messages.

    Raises:
        TooManyFailures: If the error rate is exceeded, or there is no vector. The work is kept; the
            same job with a larger rate finishes it.
        Damaged: If a chunk has more or fewer rows and failures than images.
    """
    segments = read_segments(folder) if segments is None else segments
    if _count_finished_segments(folder) > len(segments):
        return finished_output.read_manifest(folder, kind="store")
    existing = finished_output.list_output_files(folder)
    stale = stale_ledgers(segments, existing.paths)
    later = {e.path for e in existing if segment_number(e.path, -1) >= len(segments)}
    valid = as_inventory(known_records)
    valid = valid.filter(is_among(valid.paths, existing.paths_except(stale | later)))
    del existing
    records = transaction.collect_records(folder, valid, leave_out=stale | later)
    del valid
    store_counts = _count(folder, segments, records)
    _check_error_rate(
        folder, store_counts, max_error_rate, unit, _current_ledgers(segments, records.paths)
    )
    counts = {
        "images": store_counts.images, "rows": store_counts.rows,
        "failures": store_counts.failures,
        "dimension": dimension, "segments": len(segments), "span": store_counts.span,
        "deleted": store_counts.deleted,
    }  # fmt: skip
    manifest = transaction.finish_output(
        folder, "store", counts, records, stale=stale, leave_out=later
    )
    remove_claims(folder, below=len(segments))
    return manifest


def _count_finished_segments(folder: Folder) -> int:
    """Return the number of segments in the manifest; 0 if there is no manifest."""
    data = finished_output.read_if_exists(folder, finished_output.MANIFEST)
    counts = (parse_checksummed_json(data) or {}).get("counts", {}) if data else {}
    return int(counts.get("segments", 0))


def is_manifest_outdated(folder: Folder) -> bool:
    """Return whether the manifest does not belong to the current segments or inventory.

    A slow run may have written it after another run had compacted the store. Altered files are not
    reported here but when they are read.
    """
    data, inventory, segment_json = (
        finished_output.read_if_exists(folder, path)
        for path in (finished_output.MANIFEST, finished_output.INVENTORY, segment_json_path(0))
    )
    if data is None or inventory is None or segment_json is None:
        return False
    values = parse_checksummed_json(data)
    if (
        values is None
        or parse_checksummed_json(segment_json) is None
        or not has_valid_checksum(io.BytesIO(inventory))
    ):
        return False  # altered: reading it will raise
    if values.get("files_sha256") != hashlib.sha256(inventory).hexdigest():
        return True
    record = finished_output.parse_manifest(data, inventory, folder).files.get(segment_json_path(0))
    return record is not None and record.sha256 != hashlib.sha256(segment_json).hexdigest()


def has_unlisted_files(folder: Folder, manifest: Manifest) -> bool:
    """Return whether files exist that the manifest lacks, as those of a retry that was killed."""
    return bool(
        finished_output.files_after_manifest(manifest, finished_output.list_output_files(folder))
    )


def stale_ledgers(segments: list[Segment], paths: Paths) -> set[str]:
    """Return the paths of ledgers that are outdated, since a later part replaces them."""
    files = find_chunk_files(paths)
    stale = [group.positions[~group.is_current] for _, group in group_by_segment(segments, files)]
    return {path for positions in stale for path in paths.take(pa.array(positions)).to_pylist()}


def _count(folder: Folder, segments: list[Segment], records: Inventory) -> StoreCounts:
    files = find_chunk_files(records.paths)
    rows = pc.fill_null(records.table["rows"], 0).to_numpy()
    vectors = failures = 0
    ledgers = []
    for segment, segment_files in group_by_segment(segments, files):
        current = segment_files.select(segment_files.is_current)
        parts = current.select(current.is_part)
        segment_ledgers = current.select(~current.is_part)
        embedded, failed = (
            _rows_per_chunk(group.numbers, rows[group.positions], segment)
            for group in (parts, segment_ledgers)
        )
        if (wrong := np.flatnonzero(embedded + failed != segment.sizes())).size:
            chunk = segment.chunk(int(wrong[0]))
            raise Damaged(
                f"{folder.uri(part_path(chunk))} and its ledger have {embedded[wrong[0]]} rows and "
                f"{failed[wrong[0]]} failures for {chunk.last - chunk.first} images; remove both "
                "and run again"
            )
        vectors += int(embedded.sum())
        failures += int(failed.sum())
        positions = segment_ledgers.positions
        ledgers.append(positions[rows[positions] > 0])
    deleted = read_deleted(folder, segments)
    deleted_failures = _count_failures(folder, records.paths, ledgers, deleted)
    return StoreCounts(
        row_span(segments), len(deleted), vectors - (len(deleted) - deleted_failures),
        failures - deleted_failures,
    )  # fmt: skip


def _current_ledgers(segments: list[Segment], paths: Paths) -> Iterator[str]:
    """Iterate over the paths of the current ledgers in row order."""
    for _, files in group_by_segment(segments, find_chunk_files(paths)):
        positions = files.select(files.is_current & ~files.is_part).positions
        for first in range(0, len(positions), 1 << 10):
            yield from paths.take(pa.array(positions[first : first + (1 << 10)])).to_pylist()


def _rows_per_chunk(numbers: Int32, rows: Rows, segment: Segment) -> Rows:
    """Return the sum of `rows` per chunk of a segment, (chunks,); `numbers` are chunk numbers."""
    sums = np.zeros(segment.chunk_count, np.int64)
    np.add.at(sums, numbers, rows)
    return sums


def _count_failures(folder: Folder, paths: Paths, ledgers: list[Rows], rows: Rows) -> int:
    """Count the rows of the ledgers at the given positions in `paths` that are in `rows`."""
    if len(rows) == 0:
        return 0
    return sum(
        int(np.isin(pq.read_table(io.BytesIO(folder.read(path)))["row"], rows).sum())
        for positions in ledgers
        for path in paths.take(pa.array(positions)).to_pylist()
    )


def read_deleted(folder: Folder, segments: list[Segment]) -> Rows:
    """Return the (n,) deleted rows of a store, ascending."""
    deleted = [np.empty(0, np.int64)]
    for segment in segments:
        if segment.deleted:
            path = deleted_path(segment.number)
            table = read_checksummed_parquet(folder, path, remedy="remove the store")
            deleted.append(table["row"].to_numpy())
    return np.sort(np.concatenate(deleted))


def _check_error_rate(
    folder: Folder, counts: StoreCounts, max_error_rate: float, unit: str, ledgers: Iterator[str]
) -> None:
    if counts.rows and counts.failures <= max_error_rate * counts.images:
        return
    remedy = (
        "finished work is kept, repair the failed items or run again with a larger --max-error-rate"
    )
    if not counts.rows:
        remedy = f"name an input with {'readable photos' if unit == 'images' else f'valid {unit}'}"
    reason = commonest_reason(folder, ledgers)
    raise TooManyFailures(
        f"{counts.failures} of {counts.images} {unit} failed, {f'{reason}; ' if reason else ''}all "
        f"reasons are in {folder.uri('segments')}/*/failures; {remedy}"
    )
