"""Paths of the files of a store, and which of them are current.

    STORE/segments/00000/ listing.parquet segment.json deleted.parquet
                          parts/00000000.parquet parts/00000000-1.parquet failures/00000000.parquet

Chunk n of a segment is parts/n and, if some of its images failed, the ledger failures/n. The part
is written after the ledger, so a chunk whose part exists is finished. Images that a retry recovers
are in a further part, n-1 (then n-2, …), and the ledger of the same number lists those that still
fail: of the ledgers of a chunk only that of its latest part is current.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.records import Chunk
from retrieval.core.schemas import Paths

Int32 = NDArray[np.int32]

_CHUNK_FILE = (
    r"^segments/(?P<segment>\d{5})/(?P<kind>parts|failures)/(?P<number>\d{8})"
    r"(?:-(?P<retry>\d{1,9}))?\.parquet$"
)
CHUNKS_PER_SEGMENT = 10**8
"""More than the chunks of any segment, whose numbers have 8 digits."""

_BATCH = 1 << 16
_ROW = np.dtype([("position", "i8"), ("segment", "i4"), ("number", "i4"), ("retry", "i4"),
                  ("is_part", "?")])  # fmt: skip


def segment_path(segment: int, name: str = "") -> str:
    """Return the path of a segment, or of a file in it."""
    return f"segments/{segment:05d}" + (f"/{name}" if name else "")


def segment_number(path: str, default: int) -> int:
    """Return the number of the segment that a file belongs to, or `default` if to none."""
    match = re.match(r"segments/(\d{5})/", path)
    return int(match[1]) if match else default


def listing_path(segment: int) -> str:
    """Return the path of a segment's listing."""
    return segment_path(segment, "listing.parquet")


def segment_json_path(segment: int) -> str:
    """Return the path of a segment's segment.json."""
    return segment_path(segment, "segment.json")


def deleted_path(segment: int) -> str:
    """Return the path of the list of rows of earlier segments that a segment deletes."""
    return segment_path(segment, "deleted.parquet")


def part_path(chunk: Chunk) -> str:
    """Return the path of the part that retry `chunk.retry` of a chunk writes."""
    return _chunk_file_path("parts", chunk)


def failures_path(chunk: Chunk) -> str:
    """Return the path of the ledger that retry `chunk.retry` of a chunk writes."""
    return _chunk_file_path("failures", chunk)


def _chunk_file_path(kind: str, chunk: Chunk) -> str:
    suffix = f"-{chunk.retry}" if chunk.retry else ""
    return segment_path(chunk.segment, f"{kind}/{chunk.number:08d}{suffix}.parquet")


@dataclass(frozen=True)
class ChunkFiles:
    """The parts and ledgers of a store, as (n,) arrays sorted by segment, chunk and retry."""

    positions: NDArray[np.int64]  # of the path in the array of paths
    segments: Int32
    numbers: Int32  # of the chunk, in its segment
    retries: Int32  # 0 for the first attempt
    is_part: NDArray[np.bool_]  # False: a ledger
    is_current: NDArray[np.bool_]  # parts, and the ledger of the latest part of each chunk

    def select(self, mask: NDArray[np.bool_] | slice) -> ChunkFiles:
        """Return the files that a boolean mask or a slice selects."""
        return ChunkFiles(*(getattr(self, field.name)[mask] for field in fields(self)))

    def of_segment(self, segment: int) -> ChunkFiles:
        """Return the files of a segment."""
        return self.select(slice(*np.searchsorted(self.segments, [segment, segment + 1])))

    def part_retries(self, chunk: Chunk) -> list[int]:
        """Return the retries of a chunk that have a part, ascending."""
        files = self.of_segment(chunk.segment)
        chunk_range = np.searchsorted(files.numbers, [chunk.number, chunk.number + 1])
        files = files.select(slice(*chunk_range))
        retries: list[int] = files.retries[files.is_part].tolist()
        return retries

    def current_ledgers(self) -> Iterator[tuple[int, int]]:
        """Iterate over (chunk number, retry) of the current ledgers."""
        ledgers = self.select(self.is_current & ~self.is_part)
        return zip(ledgers.numbers.tolist(), ledgers.retries.tolist(), strict=True)


def find_chunk_files(paths: Paths) -> ChunkFiles:
    """Return the parts and ledgers among (n,) paths of a store."""
    steps = range(0, len(paths), _BATCH)
    batches = (_parse_paths(paths[first : first + _BATCH], first) for first in steps)
    lines = np.concatenate([np.empty(0, _ROW), *batches])
    lines = lines[np.lexsort((lines["is_part"], lines["retry"], lines["number"], lines["segment"]))]
    chunk = lines["segment"] * np.int64(CHUNKS_PER_SEGMENT) + lines["number"]
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    latest = np.maximum.reduceat(np.where(lines["is_part"], lines["retry"], -1), starts)
    latest_of_chunk = np.repeat(latest, np.diff(starts, append=len(lines)))
    is_current = lines["is_part"] | (lines["retry"] == latest_of_chunk)
    columns: Any = [lines[name].copy() for name in _ROW.names or ()]
    return ChunkFiles(*[*columns, is_current])


def _parse_paths(paths: Paths, first: int) -> NDArray[np.void]:
    """Return the parts and ledgers among paths as an (m,) array of `_ROW`.

    `first` is the position of the first path.
    """
    groups = pc.extract_regex(paths, _CHUNK_FILE)
    matched = groups.is_valid()
    segment, kind, number, retry = groups.filter(matched).flatten()
    retry = pc.if_else(pc.equal(retry, ""), "0", retry)
    lines = np.empty(len(kind), _ROW)
    lines["position"] = np.flatnonzero(matched) + first
    for name, text in (("segment", segment), ("number", number), ("retry", retry)):
        lines[name] = text.cast(pa.int64())
    lines["is_part"] = pc.equal(kind, "parts")
    return lines
