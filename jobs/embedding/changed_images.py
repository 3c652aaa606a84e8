"""Which images have other bytes than a store has seen? Listings are compared, then files read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.embedding.listing import Listed
from jobs.runtime.progress import progress, say
from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk
from retrieval.listing import diff
from retrieval.listing.listing import digest
from retrieval.storage.local import Folder
from retrieval.store.compaction import chunks_of
from retrieval.store.layout import listing_path
from retrieval.store.segment import Rows, Segment


def listings_before(folder: Folder, segments: list[Segment], listed: Listed) -> list[Path]:
    """Copy the listings of a store to where they can be compared, beside the new one."""
    found = []
    for segment in segments:
        path = listed.path.with_name(f"before-{segment.number}.parquet")
        expected = segment.files[listing_path(segment.number)]
        if not path.exists() or digest(path) != expected:
            with folder.open(listing_path(segment.number)) as file, open(path, "wb") as to:
                shutil.copyfileobj(file, to)
            if digest(path) != expected:
                raise Damaged(f"{folder.uri(listing_path(segment.number))} was altered")
        found.append(path)
    return found


def changed(
    where: Cluster, folder: Folder, segments: list[Segment], listed: Listed, touched: pa.Table
) -> Rows:
    """Ask the workers which of the touched images have other bytes now."""
    say(f"{len(touched)} files have another time or size than before: reading them")

    def compare(work: tuple[Chunk, list[dict[str, Any]]]) -> tuple[int, list[int]]:
        from retrieval.embedding.changed_images import changed_rows

        return len(work[1]), changed_rows(folder, *work, {})

    found = [np.empty(0, np.int64)]
    with progress("compare", len(touched), "images") as bar:
        for count, rows in tasks.tasks(where, compare, _by_chunk(segments, listed, touched)):
            found.append(np.array(rows, np.int64))
            bar.advance(count)
    return np.sort(np.concatenate(found))


def _by_chunk(
    segments: list[Segment], listed: Listed, touched: pa.Table
) -> Iterator[tuple[Chunk, list[dict[str, Any]]]]:
    """Group the touched images by the chunk that their row lies in."""
    rows, lines = (touched[name].to_numpy() for name in ("row", "line"))
    for chunk in chunks_of(segments, rows):
        ends = [chunk.base + chunk.first, chunk.base + chunk.last]
        own = slice(*np.searchsorted(rows, ends))
        order = np.argsort(lines[own], kind="stable")
        items = diff.items_at(listed.path, lines[own][order]).to_pylist()
        numbers = rows[own][order].tolist()
        yield chunk, [{**i, "row": n} for i, n in zip(items, numbers, strict=True)]
