"""Encoding and writing of the parts of a store and of their ledgers.

`layout` defines the paths of the files, `reader` reads them.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from retrieval.core.records import Chunk, FileRecord
from retrieval.core.schemas import FAILURES, LISTING, Vectors, extra_columns, part_table
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import Folder
from retrieval.store.layout import failures_path, part_path
from retrieval.store.reader import embedding_column


def encode_part(lines: pa.Table, measured: pa.Table, vectors: Vectors) -> bytes:
    """Encode a part as Parquet bytes.

    Args:
        lines: Table of n lines of the listing.
        measured: Table of n rows with the columns width, height and sha256.
        vectors: (n, d) vectors, float16 or float32.
    """
    metadata = extra_columns(lines.schema, LISTING)
    schema = part_table(vectors.shape[1], str(vectors.dtype), metadata).schema
    for name in ("width", "height", "sha256"):
        lines = lines.append_column(name, measured[name])
    table = lines.append_column(schema.field("embedding"), embedding_column(vectors))
    return checksummed_parquet(table.select(schema.names).cast(schema))


def encode_ledger(failures: list[dict[str, Any]]) -> bytes | None:
    """Encode the ledger of a chunk as Parquet bytes, in row order; None if nothing failed."""
    if not failures:
        return None
    rows = sorted(failures, key=lambda failure: failure["row"])
    return checksummed_parquet(pa.Table.from_pylist(rows, FAILURES.schema))


def put_part(
    folder: Folder, chunk: Chunk, part: bytes, failures: bytes | None
) -> tuple[FileRecord, ...]:
    """Write the ledger, then the part, of a chunk; existing files are kept.

    `failures` is the encoded ledger, or None. Returns the records of the files.
    """
    records = []
    if failures is not None:
        records.append(transaction.put_if_absent(folder, failures_path(chunk), failures))
    records.append(transaction.put_if_absent(folder, part_path(chunk), part))
    return tuple(records)
