"""Size of the chunks of a listing: depends on its length only, never on the number of workers."""

from __future__ import annotations

ROW_GROUP_CHUNKS = 16
"""Chunks per row group of a listing: to read the lines of one chunk, a worker reads those of 16 at
most, and the footer of a listing of 10^9 images stays under 10 MB."""


def chunk_rows_for(rows: int) -> int:
    """Return the rows per chunk for a listing: a power of two from 256 to 4096.

    Chosen for about 1,000 chunks within these bounds: small enough that a lost chunk costs minutes,
    large enough that 10^9 images result in no more than some 250,000 parts.
    """
    size = 256
    while size < 4096 and rows > size * 1000:
        size *= 2
    return size
