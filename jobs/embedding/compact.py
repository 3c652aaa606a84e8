"""`lookalike embed --compact`: merge the segments of a store into one, on the cluster."""

from __future__ import annotations

from pathlib import Path

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.embedding.listing import SourceListing
from jobs.runtime.progress import progress
from retrieval.core.records import Chunk, FileRecord
from retrieval.listing.diff import map_to_store_rows
from retrieval.storage import transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, sha256_of_file
from retrieval.store import compaction
from retrieval.store.finalize import read_deleted
from retrieval.store.layout import find_chunk_files, listing_path
from retrieval.store.segment import Segment

_FILES_PER_TASK = 64


def is_compact(segments: list[Segment], manifest: Manifest, listing: SourceListing) -> bool:
    """Return whether a store has the form that embedding from scratch would produce."""
    retried = find_chunk_files(manifest.files.paths).retries.any()
    same_listing = segments[0].files[listing_path(0)] == sha256_of_file(listing.path)
    return len(segments) == 1 and same_listing and not bool(retried)


def compact(
    cluster: Cluster,
    folder: Folder,
    segments: list[Segment],
    listing: SourceListing,
    segment_listings: list[Path],
) -> list[FileRecord]:
    """Merge the live rows of all segments into one new segment, and return its file records.

    `segment_listings` are local copies of the listings of `segments`. Nothing is embedded again.
    """
    old_rows = map_to_store_rows(listing.path, segment_listings, read_deleted(folder, segments))
    plan = compaction.plan_compaction(
        folder, segments, listing.path, len(old_rows), listing.chunk_rows
    )

    def compact_chunk(chunk: Chunk) -> Chunk:
        return plan.compact_chunk(chunk)

    try:
        compaction.begin_compaction(plan, listing.path, old_rows)
        with progress("compact", listing.rows, "images") as bar:
            for chunk in tasks.run_tasks(cluster, compact_chunk, plan.segment.chunks()):
                bar.advance(chunk.last - chunk.first)
    except Exception:
        if not compaction.is_superseded(
            plan
        ):  # otherwise another run has removed the missing files
            raise
    compaction.mark_ready(plan)
    files = finish_compaction(cluster, folder)
    compaction.discard_staging(plan)
    return files


def finish_compaction(cluster: Cluster, folder: Folder) -> list[FileRecord]:
    """Install a compacted segment that is complete, of this or another run; return its records."""

    def copy_files(staging: Folder, paths: list[str]) -> list[FileRecord]:
        def copy_group(group: list[str]) -> list[FileRecord]:
            return [transaction.copy_file(staging, folder, path) for path in group]

        step = _FILES_PER_TASK
        groups = [paths[first : first + step] for first in range(0, len(paths), step)]
        return [
            record for records in tasks.run_tasks(cluster, copy_group, groups) for record in records
        ]

    return compaction.install_compacted_segment(folder, copy_files)
