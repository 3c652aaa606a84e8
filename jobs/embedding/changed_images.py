"""Search for images whose content changed after a store embedded them, by reading them."""

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
from jobs.runtime.progress import print_message, progress
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
    """Copy the listings of the segments of a store next to the new local one for comparison.

    Returns:
        The local paths, in the order of the segments.

    Raises:
        Damaged: If a listing does not have the checksum that its segment records.
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
    """Return the (n,) store rows of the touched images whose content differs, ascending.

    `touched` has the columns row (of the store) and line (of the new listing), in row order.
    """
    print_message(f"{len(touched)} files have another time or size than before: reading them")

    def compare_chunk(work: tuple[Chunk, list[dict[str, Any]]]) -> tuple[int, list[int]]:
        from retrieval.embedding.changed_images import find_changed_rows

        return len(work[1]), find_changed_rows(folder, *work, {})

    changed = [np.empty(0, np.int64)]
    with progress("compare", len(touched), "images") as bar:
        for count, rows in tasks.run_tasks(
            cluster, compare_chunk, _by_chunk(segments, listing, touched)
        ):
            changed.append(np.array(rows, np.int64))
            bar.advance(count)
    return np.sort(np.concatenate(changed))


def _by_chunk(
    segments: list[Segment], listing: SourceListing, touched: pa.Table
) -> Iterator[tuple[Chunk, list[dict[str, Any]]]]:
    """Yield each chunk with its touched images, as listing lines with their store row."""
    rows, lines = (touched[name].to_numpy() for name in ("row", "line"))
    for chunk in chunks_containing(segments, rows):
        bounds = [chunk.base + chunk.first, chunk.base + chunk.last]
        in_chunk = slice(*np.searchsorted(rows, bounds))
        order = np.argsort(lines[in_chunk], kind="stable")
        items = diff.read_items(listing.path, lines[in_chunk][order]).to_pylist()
        store_rows = rows[in_chunk][order].tolist()
        yield chunk, [{**item, "row": row} for item, row in zip(items, store_rows, strict=True)]
