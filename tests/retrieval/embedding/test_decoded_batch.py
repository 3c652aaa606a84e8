"""Test that decoding and embedding in two processes write the same bytes as in one."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from retrieval.core.errors import StorageFailure
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.decoded_batch import (
    MAX_IMAGES,
    decode_batch,
    encode_error,
    images_per_batch,
    read_batches,
)
from retrieval.embedding.embed_chunk import embed_decoded_chunk
from retrieval.embedding.write_chunk import read_lines
from tests.file_tree import read_tree
from tests.retrieval.embedding.conftest import DECODING, StoreBuilder


def decode_chunk(builder, chunk, size, attempt=FIRST_ATTEMPT):
    """Decode a chunk in batches, and send each through an Arrow stream, as between processes."""
    lines = read_lines(builder.folder, chunk)
    for first in range(0, len(lines), size):
        items = lines.slice(first, size).to_pylist()
        batch = decode_batch(items, builder.embedder.bundle.transform, DECODING, attempt)
        assert batch.num_rows == 1
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)
        yield pa.ipc.open_stream(sink.getvalue()).read_all()


def embed_decoded(builder, chunk, size=3, attempt=FIRST_ATTEMPT):
    batches = [*decode_chunk(builder, chunk, size, attempt)]
    dtype = DECODING.embedding_dtype
    return embed_decoded_chunk(chunk, builder.folder, builder.embedder, dtype, batches)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_parts_and_ledgers_have_the_same_bytes(builder, source, tmp_path, embedder, size):
    decoded = StoreBuilder(source, tmp_path / "decoded", embedder).prepare()
    for chunk in builder.grid:
        expected, actual = builder.embed(chunk), embed_decoded(decoded, chunk, size)
        assert dataclasses.replace(actual, seconds=0) == dataclasses.replace(expected, seconds=0)
    assert read_tree(tmp_path / "decoded") == read_tree(tmp_path / "store")


def test_quarantined_image_is_recorded_without_reading(builder, source):
    image, noted = str(Path(source, "class1", "photo0004.jpg")), []
    attempt = Attempt(3, frozenset([image]), noted.append)
    for chunk in builder.grid:
        embed_decoded(builder, chunk, attempt=attempt)
    failures = [failure for chunk in builder.grid for failure in builder.failures(chunk)]
    assert [f["error"] for f in failures if f["path"] == image] == ["WorkerDied"]
    assert image not in noted
    assert None in noted  # after the last image


def test_existing_part_is_kept_without_reading_batches(builder):
    chunk = builder.grid[0]
    written = builder.embed(chunk)
    batches = [decode_batch([], builder.embedder.bundle.transform, DECODING)]
    kept = embed_decoded_chunk(chunk, builder.folder, builder.embedder, "float16", batches)
    assert {*kept.files} == {*written.files}


def test_error_of_the_storage_is_raised_by_the_reader(builder):
    batch = encode_error(StorageFailure("the bucket does not answer"))
    with pytest.raises(StorageFailure, match="the bucket does not answer"):
        list(read_batches([batch], builder.embedder.bundle.transform))


def test_batches_have_bounded_pixels(embedder):
    transform = embedder.bundle.transform
    assert images_per_batch(transform) == MAX_IMAGES  # of 32 x 32 pixels
    for side in (224, 448, 5000):
        count = images_per_batch(type(transform)(**{**vars(transform), "image_size": side}))
        assert count == 1 or count * 3 * side**2 <= 32 << 20
