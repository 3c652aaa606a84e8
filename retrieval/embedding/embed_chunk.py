"""Embed one chunk of images into one part of a store, without any cluster."""

from __future__ import annotations

from retrieval.core.records import Chunk, ChunkResult
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.embed_batch import DecodeSettings, embed_items
from retrieval.embedding.write_chunk import write_chunk
from retrieval.models.embedder import Embedder
from retrieval.storage.local import Folder


def embed_chunk(
    chunk: Chunk,
    folder: Folder,
    embedder: Embedder,
    decoding: DecodeSettings,
    attempt: Attempt = FIRST_ATTEMPT,
) -> ChunkResult:
    """Read, decode and embed the images of a chunk and write its part; see `write_chunk`."""
    return write_chunk(
        chunk,
        folder,
        lambda lines: embed_items(lines.to_pylist(), embedder, decoding, attempt),
        embedder.bundle.dimension,
        decoding.embedding_dtype,
    )
