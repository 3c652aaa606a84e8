"""Fixtures for tests of embedding: a source with unreadable images and stores built from it."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval.embedding.embed_batch import DecodeSettings
from retrieval.embedding.embed_chunk import embed_chunk
from retrieval.listing.listing import write_listing
from retrieval.models.bundle import write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.resolve import resolve_bundle
from retrieval.sources.folder import FolderSource
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import open_folder
from retrieval.store.finalize import finish_store
from retrieval.store.layout import failures_path, part_path
from retrieval.store.segment import claim_segment
from tests.conftest import draw_photos

BATCH = 4
DECODING = DecodeSettings(max_pixels=10**6, embedding_dtype="float16")


@pytest.fixture(scope="module")
def embedder():
    bundle = resolve_bundle(
        backbone="scratch", weights="random", bundle=None, pooling="avg", normalize=True,
        image_size=32, resize="crop", seed=0,
    )  # fmt: skip
    return Embedder(bundle, EnginePlan("torch", "fp32", "cpu", BATCH))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a folder of nine photos and five unreadable images (three chunks of five rows)."""
    root = draw_photos(tmp_path_factory.mktemp("source"), 9)
    complete = (root / "class0" / "photo0000.jpg").read_bytes()
    (root / "class0" / "a corrupted file.jpg").write_bytes(b"not an image")
    (root / "class1" / "cut off.jpg").write_bytes(complete[: len(complete) // 2])
    (root / "class1" / "vanished.jpg").symlink_to("nowhere")
    (root / "empty.png").write_bytes(b"")
    Image.new("1", (2000, 1000)).save(root / "too large.png")
    return str(root)


class StoreBuilder:
    """A store built from a source in the steps of `lookalike embed`, without Ray."""

    def __init__(self, source, output, embedder, decoding=DECODING, chunk_rows=5):
        self.source, self.embedder, self.decoding = source, embedder, decoding
        self.folder = open_folder(str(output))
        self.chunk_rows = chunk_rows

    def prepare(self):
        """Claim the output, write its first segment and the bundle."""
        with tempfile.TemporaryDirectory() as scratch:
            listing = Path(scratch, "listing.parquet")
            items = FolderSource(self.source).items()
            self.images, _ = write_listing(items, listing, chunk_rows=self.chunk_rows)
            transaction.claim_output(self.folder, "store", {"bundle": self.embedder.bundle.digest})
            deleted = np.empty(0, np.int64)
            segment = claim_segment(
                self.folder, 0, 0, listing, self.chunk_rows, self.images, deleted
            )
            self.grid = list(segment.chunks())
        write_bundle(self.folder, self.embedder.bundle)
        return self

    def embed(self, chunk):
        return embed_chunk(chunk, self.folder, self.embedder, self.decoding)

    def build(self):
        """Build the store, or leave it as it is if it is finished."""
        self.prepare()
        if not finished_output.is_finished(self.folder):
            file_records = [record for chunk in self.grid for record in self.embed(chunk).files]
            finish_store(self.folder, self.embedder.bundle.dimension, file_records, 0.5)
        return self

    def table(self, path):
        return pq.read_table(io.BytesIO(self.folder.read(path)))

    def rows(self, chunk):
        return self.table(part_path(chunk)).to_pylist()

    def failures(self, chunk):
        path = failures_path(chunk)
        return self.table(path).to_pylist() if self.folder.exists(path) else []


@pytest.fixture
def builder(source, tmp_path, embedder):
    return StoreBuilder(source, tmp_path / "store", embedder).prepare()


class ScriptedEmbedder:
    """An embedder that returns scripted vectors, with up to `ahead` more batches in flight."""

    def __init__(self, embedder, *vectors, ahead=0):
        self.bundle, self.batch_size, self.ahead = embedder.bundle, embedder.batch_size, ahead
        self.vectors = list(vectors)
        self.in_flight = 0

    def submit(self, images):
        batch, self.vectors = self.vectors[: len(images)], self.vectors[len(images) :]
        self.in_flight += 1
        assert self.in_flight <= self.ahead + 1

        def wait():
            self.in_flight -= 1
            return np.array(batch, np.float32).reshape(len(batch), self.bundle.dimension)

        return wait
