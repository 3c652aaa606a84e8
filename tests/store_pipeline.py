"""The embed stage as plain library calls without Ray, for the fault loop (`fault_loop.py`).

A pipeline is called with a folder, writes the output there, and resumes an unfinished one.
"""

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from retrieval.core.schemas import LISTING
from retrieval.embedding.embed_batch import DecodeSettings
from retrieval.embedding.embed_chunk import embed_chunk
from retrieval.models.bundle import write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import resolve_bundle
from retrieval.sources.folder import FolderSource
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import checksummed_parquet
from retrieval.store.finalize import finish_store
from retrieval.store.segment import claim_segment
from tests.conftest import draw_photos


@functools.cache
def small_embedder():
    """Return an embedder that takes a millisecond per photo."""
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return Embedder(bundle, EnginePlan("torch", "fp32", "cpu", 4))


def draw_mixed_source(root, readable=7):
    """Draw `readable` photos and four that fail for different reasons, and return the folder."""
    draw_photos(root, readable)
    jpeg = (root / "class0" / "photo0000.jpg").read_bytes()
    (root / "class0" / "a broken one.jpg").write_bytes(b"no photo at all")
    (root / "class1" / "cut off.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "empty.png").write_bytes(b"")
    Image.new("1", (2000, 1000)).save(root / "too large.png")
    return str(root)


@dataclass(frozen=True)
class StorePipeline:
    """Calls claim_output, claim_segment, write_bundle, embed_chunk per chunk and finish_store."""

    source: str
    chunk_rows: int = 3
    options: dict = field(default_factory=dict)  # of the source

    def _write_listing(self, target):
        """Write the sorted listing of the source to `target`, and return its length."""
        items = sorted(FolderSource(self.source, self.options).items(), key=lambda i: i.image_id)
        columns = [f.name for f in LISTING.schema if f.name != "row"]
        rows = [
            {"row": n, **{c: getattr(item, c) for c in columns}} for n, item in enumerate(items)
        ]
        table = pa.Table.from_pylist(rows, LISTING.schema)
        target.write_bytes(checksummed_parquet(table, row_group=self.chunk_rows))
        return len(rows)

    def __call__(self, folder):
        embedder = small_embedder()
        with tempfile.TemporaryDirectory() as scratch:
            listing = Path(scratch, "listing.parquet")
            images = self._write_listing(listing)
            transaction.claim_output(folder, "store", {"bundle": embedder.bundle.digest})
            deleted_rows = np.empty(0, np.int64)
            segment = claim_segment(folder, 0, 0, listing, self.chunk_rows, images, deleted_rows)
        if finished_output.is_finished(folder):
            return
        write_bundle(folder, embedder.bundle)
        decoding = DecodeSettings(max_pixels=10**6, embedding_dtype="float16", options=self.options)
        file_records = []
        for chunk in segment.chunks():
            file_records += embed_chunk(chunk, folder, embedder, decoding).files
        finish_store(folder, embedder.bundle.dimension, file_records, 0.5)
