"""Where the files of a store lie, and which of them count.

    STORE/segments/00000/ listing.parquet segment.json deleted.parquet
                          parts/00000000.parquet parts/00000000-1.parquet failures/00000000.parquet

Chunk n of a segment is parts/n and, if images of it failed, failures/n. A part is put after the
failures, so a chunk whose part is there is done. What a later retry recovers is a further part, n-1
(then n-2, …), and the ledger of that number lists what still fails: of a chunk's ledgers the one of
its latest part counts.
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

_PIECE = (
    r"^segments/(?P<segment>\d{5})/(?P<kind>parts|failures)/(?P<number>\d{8})"
    r"(?:-(?P<retry>\d{1,9}))?\.parquet$"
)
_BATCH = 1 << 16
_LINE = np.dtype([("place", "i8"), ("segment", "i4"), ("number", "i4"), ("retry", "i4"),
                  ("is_part", "?")])  # fmt: skip


def segment_path(segment: int, name: str = "") -> str:
    """Give the path of a segment, or of a file in it."""
    return f"segments/{segment:05d}" + (f"/{name}" if name else "")


def segment_number(path: str, otherwise: int) -> int:
    """Give the number of the segment that a file belongs to; files of none have another."""
    found = re.match(r"segments/(\d{5})/", path)
    return int(found[1]) if found else otherwise


def listing_path(segment: int) -> str:
    """Give the path of a segment's listing."""
    return segment_path(segment, "listing.parquet")


def segment_json_path(segment: int) -> str:
    """Give the path of what says how a segment is cut."""
    return segment_path(segment, "segment.json")


def deleted_path(segment: int) -> str:
    """Give the path of the rows of earlier segments that a segment deletes."""
    return segment_path(segment, "deleted.parquet")


def part_path(chunk: Chunk) -> str:
    """Give the path of a chunk's part."""
    return _piece_path("parts", chunk)


def failures_path(chunk: Chunk) -> str:
    """Give the path of a chunk's failures."""
    return _piece_path("failures", chunk)


def _piece_path(kind: str, chunk: Chunk) -> str:
    suffix = f"-{chunk.retry}" if chunk.retry else ""
    return segment_path(chunk.segment, f"{kind}/{chunk.number:08d}{suffix}.parquet")


@dataclass(frozen=True)
class Pieces:
    """What lies there of chunks: a line a part or ledger, (n,), by segment, chunk and retry."""

    places: NDArray[np.int64]  # of its path among those that were given
    segments: Int32
    numbers: Int32  # of the chunk in its segment
    retries: Int32  # 0 for the first attempt
    is_part: NDArray[np.bool_]  # else it is a ledger
    counts: NDArray[np.bool_]  # a part, or the ledger of its chunk's latest part

    def where(self, mask: NDArray[np.bool_] | slice) -> Pieces:
        """Give some of the lines."""
        return Pieces(*(getattr(self, field.name)[mask] for field in fields(self)))

    def of(self, segment: int) -> Pieces:
        """Give the lines of a segment."""
        return self.where(slice(*np.searchsorted(self.segments, [segment, segment + 1])))

    def parts_of(self, chunk: Chunk) -> list[int]:
        """Give the retries that a chunk has parts of, in their order."""
        its = self.of(chunk.segment)
        its = its.where(slice(*np.searchsorted(its.numbers, [chunk.number, chunk.number + 1])))
        found: list[int] = its.retries[its.is_part].tolist()
        return found

    def ledgers(self) -> Iterator[tuple[int, int]]:
        """Give chunk and retry of each ledger that counts."""
        its = self.where(self.counts & ~self.is_part)
        return zip(its.numbers.tolist(), its.retries.tolist(), strict=True)


def pieces_in(paths: Paths) -> Pieces:
    """Find the parts and failures among some paths."""
    steps = range(0, len(paths), _BATCH)
    found = (_lines(paths[at : at + _BATCH], at) for at in steps)
    lines = np.concatenate([np.empty(0, _LINE), *found])
    lines = lines[np.lexsort((lines["is_part"], lines["retry"], lines["number"], lines["segment"]))]
    chunk = lines["segment"] * np.int64(10**8) + lines["number"]
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    latest = np.maximum.reduceat(np.where(lines["is_part"], lines["retry"], -1), starts)
    its = np.repeat(latest, np.diff(starts, append=len(lines)))
    counts = lines["is_part"] | (lines["retry"] == its)
    columns: Any = [lines[name].copy() for name in _LINE.names or ()]
    return Pieces(*[*columns, counts])


def _lines(paths: Paths, first: int) -> NDArray[np.void]:
    """Give the pieces among some paths, the first of which has a place, in their order."""
    found = pc.extract_regex(paths, _PIECE)
    there = found.is_valid()
    segment, kind, number, retry = found.filter(there).flatten()
    retry = pc.if_else(pc.equal(retry, ""), "0", retry)
    lines = np.empty(len(kind), _LINE)
    lines["place"] = np.flatnonzero(there) + first
    for name, text in (("segment", segment), ("number", number), ("retry", retry)):
        lines[name] = text.cast(pa.int64())
    lines["is_part"] = pc.equal(kind, "parts")
    return lines
