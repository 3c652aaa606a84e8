"""Embed one chunk of images into one part of a store, without any cluster."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from retrieval.core.records import Chunk, ChunkResult
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.decoded_batch import read_batches
from retrieval.embedding.embed_batch import DecodeSettings, embed_decoded, embed_items
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


def embed_decoded_chunk(
    chunk: Chunk, folder: Folder, embedder: Embedder, dtype: str, batches: Iterable[pa.Table]
) -> ChunkResult:
    """Embed the decoded batches of a chunk and write its part; the same bytes as `embed_chunk`.

    Args:
        chunk: The lines of a segment whose images are embedded.
        folder: The store.
        embedder: The network.
        dtype: Type of the stored vectors.
        batches: Results of `decode_batch` for all these lines, in their order.
    """
    decoded = read_batches(batches, embedder.bundle.transform)
    return write_chunk(
        chunk,
        folder,
        lambda _: embed_decoded(decoded, embedder, dtype, embedder.batch_size, embedder.ahead),
        embedder.bundle.dimension,
        dtype,
    )
