"""A segment of a store: its listing is claimed before the first chunk and never changes.

segment.json says how many images the listing has, how it is cut, and which row its first line is.
Whoever puts it first has claimed the segment. Listing and deletions are staged before that, under a
name of their content (work/claim-NUMBER-DIGEST/), and brought to their place by whoever finds them
missing there: so two runs that list different sources never mix them, and a kill loses nothing.
A segment names the one before it: a claim that a compaction has overtaken is no part of the store.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk
from retrieval.core.schemas import DELETED, WORK
from retrieval.storage import finished_output
from retrieval.storage.checksum import read_json, sealed_json, sealed_parquet
from retrieval.storage.inventory import listed
from retrieval.storage.local import Folder, digest_here
from retrieval.store.layout import (
    Pieces,
    deleted_path,
    listing_path,
    segment_json_path,
    segment_number,
)

Rows = NDArray[np.int64]

CLAIMS = f"{WORK}claim-"
"""What is staged for a segment lies here until the segment is claimed."""


@dataclass(frozen=True)
class Segment:
    """How a segment is cut."""

    number: int
    base: int  # the row of its first line
    images: int
    chunk_rows: int
    deleted: int  # rows of earlier segments that it takes away
    files: dict[str, str]  # listing and deletions: path -> sha256
    after: str = ""  # checksum of the segment.json before this one; nothing for the first

    @property
    def chunk_count(self) -> int:
        """Count its chunks."""
        return -(-self.images // self.chunk_rows)

    def chunks(self) -> Iterator[Chunk]:
        """Cut it into chunks of `chunk_rows` lines, the last one shorter."""
        return map(self.chunk, range(self.chunk_count))

    def chunk(self, number: int) -> Chunk:
        """Give one of them."""
        first = number * self.chunk_rows
        last = min(first + self.chunk_rows, self.images)
        return Chunk(self.number, number, first, last, self.base)

    def sizes(self) -> Rows:
        """Count the lines of each chunk, (chunks,)."""
        return np.diff(np.arange(0, self.images + self.chunk_rows, self.chunk_rows).clip(
            max=self.images))  # fmt: skip

    def to_json(self) -> bytes:
        """Write segment.json."""
        values: dict[str, Any] = {
            "images": self.images, "chunk_rows": self.chunk_rows, "base": self.base,
            "chunks": self.chunk_count, "deleted": self.deleted,
            "files": self.files,
        }  # fmt: skip
        return sealed_json({**values, "after": self.after} if self.after else values)

    @property
    def digest(self) -> str:
        """Give what the next segment names this one by."""
        return hashlib.sha256(self.to_json()).hexdigest()


def segment_of(number: int, data: bytes, folder: Folder) -> Segment:
    """Read the bytes of a segment.json."""
    values = read_json(data)
    if values is None or not values.keys() >= {"images", "chunk_rows", "base", "deleted", "files"}:
        raise Damaged(f"{folder.uri(segment_json_path(number))} was altered; remove the store")
    names = ("base", "images", "chunk_rows", "deleted", "files")
    known = {name: values[name] for name in names}
    return Segment(number=number, after=values.get("after", ""), **known)


def read_segments(folder: Folder) -> list[Segment]:
    """Read the segments of a store, finished or not, in their order."""
    found: list[Segment] = []
    while (segment := _next(folder, found)) is not None:
        found.append(segment)
    return found


def _next(folder: Folder, before: list[Segment]) -> Segment | None:
    """Read the segment that follows some others; none that follows something else."""
    data = finished_output.read_if_there(folder, segment_json_path(len(before)))
    if data is None:
        return None
    segment = segment_of(len(before), data, folder)
    overtaken = segment.after not in ("", before[-1].digest if before else "")
    return None if overtaken else segment


def clear_unclaimed(folder: Folder) -> None:
    """Remove what lies in segments that nobody has claimed, or whose claim was overtaken.

    A run puts it there that is slower than another one's compaction.
    """
    entries = listed(folder.entries("segments"))
    count = len(read_segments(folder))
    for entry in entries:
        if segment_number(entry.path, -1) >= count:
            folder.delete(entry.path)


def by_segment(segments: list[Segment], pieces: Pieces) -> Iterator[tuple[Segment, Pieces]]:
    """Give each segment with the pieces of its chunks."""
    for segment in segments:
        its = pieces.of(segment.number)
        yield segment, its.where(its.numbers < segment.chunk_count)


def span_of(segments: list[Segment]) -> int:
    """Count the rows of some segments, holes and deleted ones included."""
    return segments[-1].base + segments[-1].images if segments else 0


def claim_segment(
    folder: Folder, number: int, base: int, listing: Path, chunk_rows: int, images: int,
    deleted: Rows, after: str = "",
) -> Segment:  # fmt: skip
    """Claim a segment with its listing and deletions; where another run was first, its stands."""
    there = finished_output.read_if_there(folder, segment_json_path(number))
    sources: dict[str, Write] = {}
    if there is None:
        files, sources = _sources(number, listing, deleted)
        segment = Segment(number, base, images, chunk_rows, len(deleted), files, after)
        for path, write in sources.items():
            _aside(folder, segment).put_new_file(path, write)
        there = segment.to_json()
        if not folder.put_new(segment_json_path(number), there):
            there = folder.read(segment_json_path(number))
            sources = sources if there == segment.to_json() else {}
    claimed = segment_of(number, there, folder)
    bring_claimed(folder, claimed, sources)
    return claimed


Write = Callable[[str], None]
"""Fills a local file of a given name."""


def _sources(number: int, listing: Path, deleted: Rows) -> tuple[dict[str, str], dict[str, Write]]:
    """Give the files of a segment: the checksum of each, and what writes it."""
    files = {listing_path(number): digest_here(listing)}
    sources: dict[str, Write] = {listing_path(number): lambda name: _copy(listing, name)}
    if len(deleted):
        data = sealed_parquet(pa.table([pa.array(deleted)], schema=DELETED.schema))
        files[deleted_path(number)] = hashlib.sha256(data).hexdigest()
        sources[deleted_path(number)] = lambda name: _write(data, name)
    return files, sources


def _copy(source: Path, name: str) -> None:
    shutil.copyfile(source, name)


def _write(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def bring_claimed(
    folder: Folder, segment: Segment, sources: Mapping[str, Write] | None = None
) -> None:
    """Bring listing and deletions of a claimed segment to their place, if they are not there yet.

    From `sources`, or else from where whoever claimed it has staged them.
    """
    aside = _aside(folder, segment)
    for path, digest in segment.files.items():
        write = (sources or {}).get(path) or _fetcher(aside, path, digest)
        try:
            if not folder.exists(path):
                folder.put_new_file(path, write)
        except FileNotFoundError:
            if not folder.exists(path):  # else another run has brought it, and cleared its stage
                raise Damaged(f"{folder.uri(path)} is missing; remove the store") from None
    for path in segment.files:
        aside.delete(path)


def _fetcher(aside: Folder, path: str, digest: str) -> Write:
    def fetch(name: str) -> None:
        with aside.open(path) as file, open(name, "wb") as target:
            shutil.copyfileobj(file, target)
        if digest_here(Path(name)) != digest:
            raise Damaged(f"{aside.uri(path)} was altered; remove the store")

    return fetch


def _aside(folder: Folder, segment: Segment) -> Folder:
    return folder.child(f"{CLAIMS}{segment.number:05d}-{segment.digest[:16]}")


def clear_claims(folder: Folder, below: int | None = None) -> None:
    """Remove what was staged for segments and came second: of all, or of numbers below one."""
    for entry in list(folder.entries(WORK.rstrip("/"))):
        number = entry.path.removeprefix(CLAIMS)[:5]
        if entry.path.startswith(CLAIMS) and (below is None or int(number) < below):
            folder.delete(entry.path)


def digest_of(folder: Folder, path: str) -> str:
    """Give the SHA-256 of a file that may be larger than memory."""
    with folder.open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
