"""How a listing is cut into units of work: by its length alone, never by the number of workers."""

from __future__ import annotations

ROW_GROUP_CHUNKS = 16
"""Chunks a row group of the listing: a worker reads at most 16 chunks' lines to get its own, and
the footer of a listing of 10^9 images stays under 10 MB."""


def chunk_rows_for(rows: int) -> int:
    """Give the rows of a chunk, a power of two from 256 to 4096.

    About 1,000 chunks as long as the bounds allow: small enough that a lost one costs minutes,
    large enough that 10^9 images make no more than some 250,000 parts.
    """
    size = 256
    while size < 4096 and rows > size * 1000:
        size *= 2
    return size
