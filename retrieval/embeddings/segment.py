"""A segment of a store: its listing is claimed before the first chunk and never changes.

segment.json says how many images the listing has, how it is cut, and which row its first line is.
It is put after the listing and the deletions, and only if absent.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.embeddings.layout import deleted_path, listing_path, segment_json_path
from retrieval.errors import Damaged
from retrieval.storage.files import Folder
from retrieval.storage.seal import read_json, sealed_json, sealed_parquet
from retrieval.tables import DELETED, Chunk

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """How a segment is cut."""

    number: int
    base: int  # the row of its first line
    images: int
    chunk_rows: int
    deleted: int  # rows of earlier segments that it takes away
    files: dict[str, str]  # listing and deletions: path -> sha256

    def chunks(self) -> Iterator[Chunk]:
        """Cut it into chunks of `chunk_rows` lines, the last one shorter."""
        for number, first in enumerate(range(0, self.images, self.chunk_rows)):
            last = min(first + self.chunk_rows, self.images)
            yield Chunk(self.number, number, first, last, self.base)

    def to_json(self) -> bytes:
        """Write segment.json."""
        values: dict[str, Any] = {
            "images": self.images, "chunk_rows": self.chunk_rows, "base": self.base,
            "chunks": -(-self.images // self.chunk_rows), "deleted": self.deleted,
            "files": self.files,
        }  # fmt: skip
        return sealed_json(values)


def segment_of(number: int, data: bytes, folder: Folder) -> Segment:
    """Read the bytes of a segment.json."""
    values = read_json(data)
    if values is None or not values.keys() >= {"images", "chunk_rows", "base", "deleted", "files"}:
        raise Damaged(f"{folder.uri(segment_json_path(number))} was altered; remove the store")
    names = ("base", "images", "chunk_rows", "deleted", "files")
    return Segment(number, *(values[name] for name in names))


def read_segments(folder: Folder) -> list[Segment]:
    """Read the segments of a store, finished or not, in their order."""
    found: list[Segment] = []
    while True:
        number = len(found)
        try:
            data = folder.read(segment_json_path(number))
        except FileNotFoundError:
            return found
        found.append(segment_of(number, data, folder))


def span_of(segments: list[Segment]) -> int:
    """Count the rows of some segments, holes and deleted ones included."""
    return segments[-1].base + segments[-1].images if segments else 0


def claim_segment(
    folder: Folder, number: int, base: int, listing: Path, chunk_rows: int, images: int,
    deleted: Rows,
) -> Segment:  # fmt: skip
    """Put listing, deletions and segment.json; where another run was first, its segment stands.

    What a run left that was killed before its segment.json is replaced.
    """
    files = {listing_path(number): _digest(listing)}
    _put_listing(folder, listing_path(number), listing, files[listing_path(number)])
    if len(deleted):
        data = sealed_parquet(pa.table([pa.array(deleted)], schema=DELETED.schema))
        files[deleted_path(number)] = hashlib.sha256(data).hexdigest()
        folder.put(deleted_path(number), data)
    else:
        folder.delete(deleted_path(number))
    segment = Segment(number, base, images, chunk_rows, len(deleted), files)
    data = segment.to_json()
    if not folder.put_new(segment_json_path(number), data):
        data = folder.read(segment_json_path(number))
    return segment_of(number, data, folder)


def _put_listing(folder: Folder, path: str, listing: Path, digest: str) -> None:
    def copy(name: str) -> None:
        shutil.copyfile(listing, name)

    if not folder.put_new_file(path, copy) and digest_of(folder, path) != digest:
        folder.delete(path)
        folder.put_new_file(path, copy)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder: Folder, path: str) -> str:
    """Give the SHA-256 of a file that may be larger than memory."""
    with folder.open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
