"""A file that carries its own checksum, so that it can be trusted before any manifest exists.

An output that was killed half-way has no manifest yet, and still a flipped bit in one of its parts
must be found. So each file is written with a mark and 64 zeros, and the zeros are then replaced by
the SHA-256 of the file as it was with the zeros. Whoever reads does the same backwards, on raw
bytes, before parsing. A sidecar a file would do as well at twice the number of objects. The mark
stands in the key-value metadata of a Parquet footer, in the last entry of a JSON object, or in a
comment at the end of an HTML page; none of their readers mind it.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MARK = b"lookalike-sha256:"
BLANK = b"0" * 64
SEAL = (MARK + BLANK).decode()
_WINDOW = 1 << 20


def seal(data: bytes) -> bytes:
    """Fill in the checksum of `data`, which holds `SEAL` once after everything that varies."""
    at = data.rindex(MARK) + len(MARK)
    if data[at : at + 64] != BLANK:
        raise ValueError("the last mark in these bytes is not blank")
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


def seal_file(path: Path) -> None:
    """Do what `seal` does to a file in place, by blocks: it may be larger than memory."""
    with open(path, "r+b") as file:
        at = _find_mark(file)
        if at is None:
            raise ValueError(f"{path} holds no mark")
        file.seek(at)
        if file.read(64) != BLANK:
            raise ValueError(f"the last mark of {path} is not blank")
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(_WINDOW):
            digest.update(block)
        file.seek(at)
        file.write(digest.hexdigest().encode())


def is_sealed(file: BinaryIO) -> bool:
    """Tell whether a seekable file carries the checksum that its bytes have."""
    at = _find_mark(file)
    if at is None:
        return False
    digest = hashlib.sha256()
    file.seek(0)
    position = 0
    written = b""
    while block := file.read(_WINDOW):
        first, last = max(at, position), min(at + 64, position + len(block))
        if first < last:
            written += block[first - position : last - position]
            block = block[: first - position] + b"0" * (last - first) + block[last - position :]
        digest.update(block)
        position += len(block)
    return written == digest.hexdigest().encode()


def _find_mark(file: BinaryIO) -> int | None:
    """Give the position after the last mark, looking from the end in windows that overlap."""
    end = file.seek(0, io.SEEK_END)
    last = end
    while last > 0:
        first = max(0, last - _WINDOW)
        file.seek(first)
        found = file.read(min(last + len(MARK), end) - first).rfind(MARK)
        if found >= 0:
            return first + found + len(MARK)
        last = first
    return None


def sealed_json(values: dict[str, Any]) -> bytes:
    """Write a JSON object, keys sorted, the seal last: the same values give the same bytes."""
    ordered = json.loads(json.dumps(values, sort_keys=True))  # at every depth
    text = json.dumps({**ordered, "seal": SEAL}, indent=1, ensure_ascii=False)
    # paths that are not UTF-8 hold surrogates, which json.loads takes back
    return seal(text.encode("utf-8", "surrogatepass") + b"\n")


def read_json(data: bytes) -> dict[str, Any] | None:
    """Read what `sealed_json` wrote, without the seal; None where it is anything else."""
    if not is_sealed(io.BytesIO(data)):
        return None
    try:
        values: Any = json.loads(data)
    except ValueError:  # another sealed file lies in its place
        return None
    if not isinstance(values, dict):
        return None
    values.pop("seal", None)
    return values


def sealed_parquet(
    table: pa.Table, notes: dict[str, str] | None = None, *, row_group: int = 1 << 16
) -> bytes:
    """Write a table as Parquet, sealed; `notes` are further key-value metadata of the file."""
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema, notes) as writer:
        writer.write_table(table.combine_chunks(), row_group_size=row_group)
    return seal(sink.getvalue())


def parquet_writer(
    sink: BinaryIO, schema: pa.Schema, notes: dict[str, str] | None = None
) -> pq.ParquetWriter:
    """Open a Parquet writer with the settings every file of ours has, and a blank seal.

    Pages carry checksums too, for readers that take a range and never see the whole file. Whoever
    uses this seals the file when it is closed.
    """
    writer = pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True)
    writer.add_key_value_metadata({**(notes or {}), "seal": SEAL})
    return writer


def notes_of(data: bytes) -> dict[str, str]:
    """Give the key-value metadata of a sealed Parquet file."""
    metadata = pq.read_metadata(io.BytesIO(data)).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}
