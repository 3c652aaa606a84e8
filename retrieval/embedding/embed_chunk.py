"""One chunk of images becomes one part of a store: the step that Ray, tests and loops call."""

from __future__ import annotations

from retrieval.core.records import Chunk, ChunkResult
from retrieval.embedding.attempt import FIRST, Attempt
from retrieval.embedding.embed_batch import Decoding, embed_items
from retrieval.embedding.write_chunk import put_chunk
from retrieval.models.embedder import Embedder
from retrieval.storage.local import Folder


def embed_chunk(
    chunk: Chunk,
    folder: Folder,
    embedder: Embedder,
    decoding: Decoding,
    attempt: Attempt = FIRST,
) -> ChunkResult:
    """Read, decode and embed the images of a chunk and put its part (`put_chunk.py`)."""
    return put_chunk(
        chunk,
        folder,
        lambda items: embed_items(items, embedder, decoding, attempt),
        embedder.bundle.dimension,
        decoding.embedding_dtype,
    )
