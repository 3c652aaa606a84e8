"""Segments of a store: each holds one listing, which never changes once the segment is claimed.

The run that writes segment.json first has claimed the segment. Before that, listing and deletions
are staged in work/claim-NUMBER-DIGEST/; any run that finds them missing moves them into place. So
runs with different listings never mix them, and a kill loses nothing. A segment records the digest
of the one before it, so that a claim made before a compaction is recognized as outdated.
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
from retrieval.core.schemas import DELETED, WORK_FOLDER
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_json, checksummed_parquet, parse_checksummed_json
from retrieval.storage.inventory import collect_entries
from retrieval.storage.local import Folder, sha256_of_file
from retrieval.store.layout import (
    ChunkFiles,
    deleted_path,
    listing_path,
    segment_json_path,
    segment_number,
)

Rows = NDArray[np.int64]

CLAIMS = f"{WORK_FOLDER}claim-"
"""Prefix of the folders where the files of a segment are staged until it is claimed."""


@dataclass(frozen=True)
class Segment:
    """Content of segment.json: number of images, division into chunks, checksums of the files."""

    number: int
    base: int  # row number of its first line
    images: int
    chunk_rows: int
    deleted: int  # number of rows of earlier segments that it deletes
    files: dict[str, str]  # listing and deletions: {path: sha256}
    after: str = ""  # digest of the segment before this one; empty for the first

    @property
    def chunk_count(self) -> int:
        """Return the number of chunks."""
        return -(-self.images // self.chunk_rows)

    def chunks(self) -> Iterator[Chunk]:
        """Iterate over the chunks of `chunk_rows` lines; the last one may be shorter."""
        return map(self.chunk, range(self.chunk_count))

    def chunk(self, number: int) -> Chunk:
        """Return chunk `number` of the segment."""
        first = number * self.chunk_rows
        last = min(first + self.chunk_rows, self.images)
        return Chunk(self.number, number, first, last, self.base)

    def sizes(self) -> Rows:
        """Return the number of lines of each chunk, (chunks,)."""
        return np.diff(np.arange(0, self.images + self.chunk_rows, self.chunk_rows).clip(
            max=self.images))  # fmt: skip

    def to_json(self) -> bytes:
        """Encode segment.json."""
        values: dict[str, Any] = {
            "images": self.images, "chunk_rows": self.chunk_rows, "base": self.base,
            "chunks": self.chunk_count, "deleted": self.deleted,
            "files": self.files,
        }  # fmt: skip
        return checksummed_json({**values, "after": self.after} if self.after else values)

    @property
    def digest(self) -> str:
        """Return the hex SHA-256 of segment.json, which the next segment records."""
        return hashlib.sha256(self.to_json()).hexdigest()


def parse_segment(number: int, data: bytes, folder: Folder) -> Segment:
    """Parse the bytes of the segment.json of segment `number`; raise Damaged if it was altered."""
    values = parse_checksummed_json(data)
    if values is None or not values.keys() >= {"images", "chunk_rows", "base", "deleted", "files"}:
        raise Damaged(f"{folder.uri(segment_json_path(number))} was altered; remove the store")
    names = ("base", "images", "chunk_rows", "deleted", "files")
    fields = {name: values[name] for name in names}
    return Segment(number=number, after=values.get("after", ""), **fields)


def read_segments(folder: Folder) -> list[Segment]:
    """Read the segments of a store, finished or not, in order."""
    segments: list[Segment] = []
    while (segment := _read_next(folder, segments)) is not None:
        segments.append(segment)
    return segments


def _read_next(folder: Folder, segments: list[Segment]) -> Segment | None:
    """Read the segment after `segments`; None if there is none that records the last of them."""
    data = finished_output.read_if_exists(folder, segment_json_path(len(segments)))
    if data is None:
        return None
    segment = parse_segment(len(segments), data, folder)
    is_outdated = segment.after not in ("", segments[-1].digest if segments else "")
    return None if is_outdated else segment


def remove_unclaimed(folder: Folder) -> None:
    """Remove the files of segments that are not claimed, or whose claim is outdated.

    They exist if another run has compacted the store at the same time.
    """
    entries = collect_entries(folder.entries("segments"))
    count = len(read_segments(folder))
    for entry in entries:
        if segment_number(entry.path, -1) >= count:
            folder.delete(entry.path)


def group_by_segment(
    segments: list[Segment], files: ChunkFiles
) -> Iterator[tuple[Segment, ChunkFiles]]:
    """Iterate over the segments, each with the parts and ledgers of its chunks."""
    for segment in segments:
        segment_files = files.of_segment(segment.number)
        yield segment, segment_files.select(segment_files.numbers < segment.chunk_count)


def row_span(segments: list[Segment]) -> int:
    """Return the number of rows of segments, failed and deleted ones included."""
    return segments[-1].base + segments[-1].images if segments else 0


def claim_segment(
    folder: Folder, number: int, base: int, listing: Path, chunk_rows: int, images: int,
    deleted: Rows, after: str = "",
) -> Segment:  # fmt: skip
    """Claim a segment and move its files into place.

    Args:
        folder: The store.
        number: Number of the segment.
        base: Row number of its first line.
        listing: Local file with its listing.
        chunk_rows: Lines per chunk.
        images: Number of lines of the listing.
        deleted: (n,) rows of earlier segments that it deletes.
        after: Digest of the segment before it; empty for the first.

    Returns:
        The segment; that of another run if it was claimed first.

    Raises:
        Damaged: If staged files are missing or altered.
    """
    claim = finished_output.read_if_exists(folder, segment_json_path(number))
    sources: dict[str, Write] = {}
    if claim is None:
        files, sources = _staged_files(number, listing, deleted)
        segment = Segment(number, base, images, chunk_rows, len(deleted), files, after)
        for path, write in sources.items():
            _staging(folder, segment).put_new_file(path, write)
        claim = segment.to_json()
        if not folder.put_new(segment_json_path(number), claim):
            claim = folder.read(segment_json_path(number))
            sources = sources if claim == segment.to_json() else {}
    claimed = parse_segment(number, claim, folder)
    install_claimed_files(folder, claimed, sources)
    return claimed


Write = Callable[[str], None]
"""Function that writes the content of a file to a local path."""


def _staged_files(
    number: int, listing: Path, deleted: Rows
) -> tuple[dict[str, str], dict[str, Write]]:
    """Return the checksums of a segment's files by path, and the functions that write them."""
    files = {listing_path(number): sha256_of_file(listing)}
    sources: dict[str, Write] = {listing_path(number): lambda name: _copy(listing, name)}
    if len(deleted):
        data = checksummed_parquet(pa.table([pa.array(deleted)], schema=DELETED.schema))
        files[deleted_path(number)] = hashlib.sha256(data).hexdigest()
        sources[deleted_path(number)] = lambda name: _write(data, name)
    return files, sources


def _copy(source: Path, name: str) -> None:
    shutil.copyfile(source, name)


def _write(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def install_claimed_files(
    folder: Folder, segment: Segment, sources: Mapping[str, Write] | None = None
) -> None:
    """Copy listing and deletions of a claimed segment into place unless they exist.

    They are written by `sources`, by path, or else copied from the staging folder of the run that
    claimed the segment. Raises Damaged if they are missing or altered there.
    """
    staging = _staging(folder, segment)
    for path, digest in segment.files.items():
        write = (sources or {}).get(path) or _staged_writer(staging, path, digest)
        try:
            if not folder.exists(path):
                folder.put_new_file(path, write)
        except FileNotFoundError:
            if not folder.exists(path):  # otherwise another run has installed it
                raise Damaged(f"{folder.uri(path)} is missing; remove the store") from None
    for path in segment.files:
        staging.delete(path)


def _staged_writer(staging: Folder, path: str, digest: str) -> Write:
    def write(name: str) -> None:
        with staging.open(path) as file, open(name, "wb") as target:
            shutil.copyfileobj(file, target)
        if sha256_of_file(Path(name)) != digest:
            raise Damaged(f"{staging.uri(path)} was altered; remove the store")

    return write


def _staging(folder: Folder, segment: Segment) -> Folder:
    return folder.child(f"{CLAIMS}{segment.number:05d}-{segment.digest[:16]}")


def remove_claims(folder: Folder, below: int | None = None) -> None:
    """Remove staged files of failed claims: all, or those of segments with numbers < `below`."""
    for entry in list(folder.entries(WORK_FOLDER.rstrip("/"))):
        number = entry.path.removeprefix(CLAIMS)[:5]
        if entry.path.startswith(CLAIMS) and (below is None or int(number) < below):
            folder.delete(entry.path)
