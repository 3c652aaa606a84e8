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
from collections.abc import Iterable
from dataclasses import dataclass, field

from retrieval.records import Chunk

_PIECE = re.compile(r"segments/(\d{5})/(parts|failures)/(\d{8})(?:-(\d+))?\.parquet")


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


@dataclass(slots=True)
class Pieces:
    """What lies there of one chunk: the numbers of its retries, by kind."""

    parts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)

    @property
    def latest(self) -> int:
        """Give the number of the last retry that was finished; 0 for the first attempt."""
        return max(self.parts)

    @property
    def stale(self) -> list[int]:
        """Give the ledgers that no longer count, or not yet."""
        return [number for number in self.failures if not self.parts or number != self.latest]


def pieces_in(paths: Iterable[str]) -> dict[tuple[int, int], Pieces]:
    """Sort the parts and failures among some paths by (segment, chunk)."""
    found: dict[tuple[int, int], Pieces] = {}
    for path in paths:
        if match := _PIECE.fullmatch(path):
            pieces = found.setdefault((int(match[1]), int(match[3])), Pieces())
            (pieces.parts if match[2] == "parts" else pieces.failures).append(int(match[4] or 0))
    return found
