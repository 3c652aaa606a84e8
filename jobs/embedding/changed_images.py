"""Find images whose file changed since a store embedded them, by reading them on the cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.embedding.listing import SourceListing
from jobs.runtime.progress import progress, say
from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk
from retrieval.listing import diff
from retrieval.storage.local import Folder, sha256_of_file
from retrieval.store.compaction import chunks_containing
from retrieval.store.layout import listing_path
from retrieval.store.segment import Rows, Segment


def copy_segment_listings(
    folder: Folder, segments: list[Segment], listing: SourceListing
) -> list[Path]:
    """Copy the listings of a store's segments beside the new local one, to compare them there.

    Returns:
        The local paths, in the order of the segments.

    Raises:
        Damaged: If a listing does not have the checksum that its segment names.
    """
    paths = []
    for segment in segments:
        path = listing.path.with_name(f"before-{segment.number}.parquet")
        expected = segment.files[listing_path(segment.number)]
        if not path.exists() or sha256_of_file(path) != expected:
            with folder.open(listing_path(segment.number)) as file, open(path, "wb") as target:
                shutil.copyfileobj(file, target)
            if sha256_of_file(path) != expected:
                raise Damaged(f"{folder.uri(listing_path(segment.number))} was altered")
        paths.append(path)
    return paths


def find_changed_images(
    cluster: Cluster,
    folder: Folder,
    segments: list[Segment],
    listing: SourceListing,
    touched: pa.Table,
) -> Rows:
    """Return the store rows of the touched images whose content differs now, ascending.

    `touched` has the columns row (of the store) and line (of the new listing), by row.
    """
    say(f"{len(touched)} files have another time or size than before: reading them")

    def compare(work: tuple[Chunk, list[dict[str, Any]]]) -> tuple[int, list[int]]:
        from retrieval.embedding.changed_images import find_changed_rows

        return len(work[1]), find_changed_rows(folder, *work, {})

    changed = [np.empty(0, np.int64)]
    with progress("compare", len(touched), "images") as bar:
        for count, rows in tasks.run_tasks(cluster, compare, _by_chunk(segments, listing, touched)):
            changed.append(np.array(rows, np.int64))
            bar.advance(count)
    return np.sort(np.concatenate(changed))


def _by_chunk(
    segments: list[Segment], listing: SourceListing, touched: pa.Table
) -> Iterator[tuple[Chunk, list[dict[str, Any]]]]:
    """Yield the touched images of each chunk, as items with their store row."""
    rows, lines = (touched[name].to_numpy() for name in ("row", "line"))
    for chunk in chunks_containing(segments, rows):
        ends = [chunk.base + chunk.first, chunk.base + chunk.last]
        inside = slice(*np.searchsorted(rows, ends))
        order = np.argsort(lines[inside], kind="stable")
        items = diff.read_items(listing.path, lines[inside][order]).to_pylist()
        numbers = rows[inside][order].tolist()
        yield chunk, [{**i, "row": n} for i, n in zip(items, numbers, strict=True)]
