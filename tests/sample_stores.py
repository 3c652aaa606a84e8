"""Write finished stores from vectors, without images, for tests of later stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.core.records import Item, Transform
from retrieval.core.schemas import Vectors, part_table
from retrieval.listing.listing import write_listing
from retrieval.models.bundle import Bundle, serialize_state, write_bundle
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.local import open_folder
from retrieval.store import reader
from retrieval.store.finalize import finish_store
from retrieval.store.part_writer import put_part
from retrieval.store.segment import claim_segment


def write_store(
    path: Path,
    vectors: Vectors,
    *,
    model: int = 0,
    chunk_rows: int = 256,
    sha256: Sequence[str | None] | None = None,
) -> None:
    """Write (n, d) vectors as a finished store of images a00000.jpg, a00001.jpg, …

    The label of row n is class(n % 7). Each `model` number gives a bundle with another digest.
    `sha256` holds the checksum of each image, "0" by default.
    """
    rows, dimension = vectors.shape
    folder = open_folder(str(path))
    transform = Transform("crop", 32 + model, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    bundle = Bundle("scratch", "avg", False, transform, dimension, serialize_state({}))
    settings = {"input": "nowhere", "embedding_dtype": str(vectors.dtype), "bundle": bundle.digest}
    transaction.claim_output(folder, "store", settings)
    listing = path.with_suffix(".listing")
    names = [f"a{row:05d}.jpg" for row in range(rows)]
    items = (
        Item(name, f"/nowhere/{name}", 1, 1, f"class{row % 7}") for row, name in enumerate(names)
    )
    write_listing(items, listing, chunk_rows=chunk_rows)
    deleted_rows = np.empty(0, np.int64)
    segment = claim_segment(folder, 0, 0, listing, chunk_rows, rows, deleted_rows)
    write_bundle(folder, bundle)
    for chunk in segment.chunks():
        row_range = slice(chunk.first, chunk.last)
        checksums = sha256[row_range] if sha256 is not None else ["0"] * (chunk.last - chunk.first)
        put_part(folder, chunk, _encode_part(vectors, names, row_range, checksums), None)
    finish_store(folder, dimension, (), 0.0)


def _encode_part(
    vectors: Vectors, names: list[str], row_range: slice, checksums: Sequence[str | None]
) -> bytes:
    schema = part_table(vectors.shape[1], str(vectors.dtype)).schema
    numbers = range(row_range.start, row_range.stop)
    columns = {
        "row": numbers, "image_id": names[row_range],
        "path": [f"/nowhere/{name}" for name in names[row_range]],
        "width": [number % 5 for number in numbers], "height": [1] * len(numbers),
        "sha256": checksums, "label": [f"class{row % 7}" for row in numbers],
    }  # fmt: skip
    arrays = [pa.array(columns[f.name], f.type) for f in schema if f.name != "embedding"]
    arrays.append(reader.embedding_column(np.ascontiguousarray(vectors[row_range])))
    return checksummed_parquet(pa.table(arrays, schema=schema))
