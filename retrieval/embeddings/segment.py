"""The beginning and the end of a segment: its listing is claimed, its ledger is judged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retrieval.embeddings import store
from retrieval.errors import Damaged, Mismatch, TooManyFailures
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import read_json, sealed_json
from retrieval.tables import FileRecord


def claim_segment(folder: Folder, segment: dict[str, Any], listing: Path, source: str) -> None:
    """Put the listing, then segment.json; refuse a source that has changed since.

    `segment` has the keys images, chunk_rows, chunks and files (the listing's checksum).
    """
    data = sealed_json(segment)
    try:
        there = folder.read(store.SEGMENT_JSON)
    except FileNotFoundError:
        folder.delete(store.LISTING)  # of a run that was killed before it put segment.json
        folder.put_new_file(store.LISTING, lambda name: _copy(listing, name))
        put = folder.put_new(store.SEGMENT_JSON, data)
        there = data if put else folder.read(store.SEGMENT_JSON)
    if there != data:
        was = (read_json(there) or {}).get("images", "?")
        raise Mismatch(
            f"{source} has changed since {folder.uri()} was begun ({was} images then, "
            f"{segment['images']} now, or some are newer); name another --output, or --overwrite"
        )


def _copy(source: Path, target: str) -> None:
    Path(target).write_bytes(source.read_bytes())


def _count(records: Iterable[FileRecord], below: str) -> int:
    return sum(record.rows or 0 for record in records if record.path.startswith(below))


def finish_store(
    folder: Folder,
    images: int,
    dimension: int,
    known: Iterable[FileRecord],
    max_error_rate: float,
) -> Manifest:
    """Judge the ledger against its bound, a share of the images, and put the manifest.

    Beyond the bound the work is kept without a manifest, and the same job with a looser bound
    finishes it; a store without any vector is never finished.
    """
    records = commit.records(folder, known)
    rows = _count(records, f"{store.SEGMENT}/parts/")
    failures = images - rows
    if _count(records, f"{store.SEGMENT}/failures/") != failures:
        raise Damaged(
            f"{folder.uri(store.SEGMENT)}/failures lacks some of the {failures} images without a "
            "vector; remove the parts of their chunks and run again"
        )
    if rows == 0 or failures > max_error_rate * images:
        way = "what is finished is kept, mend them or run again with a looser --max-error-rate"
        raise TooManyFailures(
            f"{failures} of {images} images failed, their reasons stand in "
            f"{folder.uri(store.SEGMENT)}/failures"
            + (f"; {way}" if rows else "; name a folder with readable photos")
        )
    counts = {"images": images, "rows": rows, "failures": failures, "dimension": dimension}
    return commit.finish(folder, "store", counts, records)
