"""lookalike embed --compact: a store that grew is made one segment again, on the cluster."""

from __future__ import annotations

from pathlib import Path

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.embedding.listing import Listed
from jobs.runtime.progress import progress
from retrieval.core.records import Chunk, FileRecord
from retrieval.listing.diff import rows_before
from retrieval.listing.listing import digest
from retrieval.storage import transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store import compaction
from retrieval.store.finalize import read_deleted
from retrieval.store.layout import listing_path, pieces_in
from retrieval.store.segment import Segment

_GROUP = 64  # files a task copies


def is_compact(segments: list[Segment], manifest: Manifest, listed: Listed) -> bool:
    """Tell whether a store is already as it would be if it were made from scratch."""
    retried = pieces_in(manifest.files.paths).retries.any()
    same = segments[0].files[listing_path(0)] == digest(listed.path)
    return len(segments) == 1 and same and not bool(retried)


def compact(
    where: Cluster, folder: Folder, segments: list[Segment], listed: Listed, before: list[Path]
) -> list[FileRecord]:
    """Gather what is alive into one segment, aside, and bring it to its place; gives its files."""
    old = rows_before(listed.path, before, read_deleted(folder, segments))
    made = compaction.plan_compaction(folder, segments, listed.path, len(old), listed.chunk_rows)

    def gather(chunk: Chunk) -> Chunk:
        return made.compact_chunk(chunk)

    try:
        compaction.begin_compaction(made, listed.path, old)
        with progress("compact", listed.rows, "images") as bar:
            for chunk in tasks.tasks(where, gather, made.segment.chunks()):
                bar.advance(chunk.last - chunk.first)
    except Exception:
        if not compaction.overtaken(made):  # else what is missing was taken away by another run
            raise
    compaction.settle(made)
    moved = bring_to_place(where, folder)
    compaction.clear_aside(made)
    return moved


def bring_to_place(where: Cluster, folder: Folder) -> list[FileRecord]:
    """Go on with a compaction that is settled, whoever settled it."""

    def move(aside: Folder, paths: list[str]) -> list[FileRecord]:
        def copy(some: list[str]) -> list[FileRecord]:
            return [transaction.copy_over(aside, folder, path) for path in some]

        groups = [paths[first : first + _GROUP] for first in range(0, len(paths), _GROUP)]
        return [record for records in tasks.tasks(where, copy, groups) for record in records]

    return compaction.bring_to_place(folder, move)
