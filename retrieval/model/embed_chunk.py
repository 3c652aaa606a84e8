"""One chunk of images becomes one part of a store: the step that Ray, tests and loops call."""

from __future__ import annotations

from retrieval.model.attempt import FIRST, Attempt
from retrieval.model.embed_items import Decoding, embed_items
from retrieval.model.embedding import Embedder
from retrieval.model.put_chunk import put_chunk
from retrieval.records import Chunk, ChunkResult
from retrieval.storage.files import Folder


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
