"""Files that carry their own SHA-256, so that they can be verified before any manifest exists.

A file is written with a mark and 64 zeros; the zeros are then replaced by the SHA-256 of the file
with the zeros. A reader reverses this on the raw bytes, before anything is parsed. The mark is in
the key-value metadata of a Parquet footer, in the last entry of a JSON object, or in a comment at
the end of an HTML page. A separate checksum file for each would double the number of objects.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.core.errors import Damaged
from retrieval.storage.folder import Folder

CHECKSUM_MARK = b"lookalike-sha256:"
BLANK_DIGEST = b"0" * 64
CHECKSUM_PLACEHOLDER = (CHECKSUM_MARK + BLANK_DIGEST).decode()
"""Text that a writer puts into a file where `fill_checksum` is to insert the digest."""

_WINDOW = 1 << 20
_REMEDY = "remove it and run again"


def fill_checksum(data: bytes) -> bytes:
    """Return `data` with its SHA-256 in place of the last blank digest.

    The placeholder must come after all content that varies, since that may contain the mark. Raises
    ValueError if the last mark is missing or not followed by a blank digest.
    """
    start = data.rindex(CHECKSUM_MARK) + len(CHECKSUM_MARK)
    if data[start : start + 64] != BLANK_DIGEST:
        raise ValueError("the digest after the last checksum mark is not blank")
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + 64 :]


def fill_file_checksum(path: Path) -> None:
    """Fill in the checksum of a local file in place; it may be larger than memory.

    Raises ValueError if the last mark is missing or not followed by a blank digest.
    """
    with open(path, "r+b") as file:
        start = _find_digest(file)
        if start is None:
            raise ValueError(f"{path} contains no mark of a checksum")
        file.seek(start)
        if file.read(64) != BLANK_DIGEST:
            raise ValueError(f"the digest after the last checksum mark of {path} is not blank")
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(_WINDOW):
            digest.update(block)
        file.seek(start)
        file.write(digest.hexdigest().encode())


def has_valid_checksum(file: BinaryIO) -> bool:
    """Return whether a seekable file carries a checksum that matches its bytes."""
    start = _find_digest(file)
    if start is None:
        return False
    digest = hashlib.sha256()
    file.seek(0)
    position = 0
    stored = b""
    while block := file.read(_WINDOW):
        first, last = max(start, position), min(start + 64, position + len(block))
        if first < last:
            stored += block[first - position : last - position]
            block = block[: first - position] + b"0" * (last - first) + block[last - position :]
        digest.update(block)
        position += len(block)
    return stored == digest.hexdigest().encode()


def _find_digest(file: BinaryIO) -> int | None:
    """Return the byte offset after the last mark, or None; search backwards in windows."""
    end = file.seek(0, io.SEEK_END)
    last = end
    while last > 0:
        first = max(0, last - _WINDOW)
        file.seek(first)
        window = file.read(min(last + len(CHECKSUM_MARK), end) - first)
        offset = window.rfind(CHECKSUM_MARK)
        if offset >= 0:
            return first + offset + len(CHECKSUM_MARK)
        last = first
    return None


def checksummed_json(values: dict[str, Any]) -> bytes:
    """Serialise a JSON object with sorted keys and its checksum as the last entry."""
    ordered = json.loads(json.dumps(values, sort_keys=True))  # at every depth
    text = json.dumps({**ordered, "seal": CHECKSUM_PLACEHOLDER}, indent=1, ensure_ascii=False)
    # paths that are not UTF-8 contain surrogates; json.loads accepts them
    return fill_checksum(text.encode("utf-8", "surrogatepass") + b"\n")


def parse_checksummed_json(data: bytes) -> dict[str, Any] | None:
    """Parse the output of `checksummed_json`; return None if the checksum or the type is wrong."""
    if not has_valid_checksum(io.BytesIO(data)):
        return None
    try:
        values: Any = json.loads(data)
    except ValueError:  # a checksummed file of another type is in its place
        return None
    if not isinstance(values, dict):
        return None
    values.pop("seal", None)
    return values


def verify_checksum(data: bytes, uri: str, remedy: str = _REMEDY) -> None:
    """Raise Damaged, naming `uri` and the remedy, unless `data` carries a valid checksum."""
    if not has_valid_checksum(io.BytesIO(data)):
        raise Damaged(f"{uri} was altered; {remedy}")


def read_checksummed_json(folder: Folder, path: str, remedy: str = _REMEDY) -> dict[str, Any]:
    """Read and parse a checksummed JSON file; raise Damaged if it was altered."""
    values = parse_checksummed_json(folder.read(path))
    if values is None:
        raise Damaged(f"{folder.uri(path)} was altered; {remedy}")
    return values


def read_checksummed_parquet(
    folder: Folder, path: str, columns: list[str] | None = None, remedy: str = _REMEDY
) -> pa.Table:
    """Read some or all columns of a checksummed Parquet file; raise Damaged if it was altered."""
    data = folder.read(path)
    verify_checksum(data, folder.uri(path), remedy)
    return pq.read_table(io.BytesIO(data), columns=columns)


def stream_checksummed_parquet(
    folder: Folder, path: str, remedy: str = _REMEDY
) -> Iterator[pa.RecordBatch]:
    """Iterate over the rows of a checksummed Parquet file, which may be larger than memory.

    Raises Damaged, before the first row, if it was altered.
    """
    with folder.open(path) as file:
        if not has_valid_checksum(file):
            raise Damaged(f"{folder.uri(path)} was altered; {remedy}")
        yield from pq.ParquetFile(file).iter_batches()


def checksummed_parquet(
    table: pa.Table, metadata: dict[str, str] | None = None, *, row_group: int = 1 << 16
) -> bytes:
    """Serialise a table as checksummed Parquet.

    `metadata` holds further key-value pairs of the footer; `row_group` is the number of rows per
    row group.
    """
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema, metadata) as writer:
        writer.write_table(table.combine_chunks(), row_group_size=row_group)
    return fill_checksum(sink.getvalue())


def parquet_writer(
    sink: BinaryIO, schema: pa.Schema, metadata: dict[str, str] | None = None
) -> pq.ParquetWriter:
    """Open a Parquet writer with this project's settings and a blank checksum.

    Pages have checksums too, for readers that read a range of rows only. The caller fills in the
    checksum of the file after closing the writer.
    """
    writer = pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True)
    writer.add_key_value_metadata({**(metadata or {}), "seal": CHECKSUM_PLACEHOLDER})
    return writer


def parquet_metadata(data: bytes) -> dict[str, str]:
    """Return the key-value metadata of a checksummed Parquet file."""
    metadata = pq.read_metadata(io.BytesIO(data)).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}
