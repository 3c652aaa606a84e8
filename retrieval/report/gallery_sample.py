"""Sample the gallery images that the map shows, with a seed and at bounded cost."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrieval.index.sampling import hash_image_ids
from retrieval.store.reader import Store

_COLUMNS = ("image_id", "path", "label", "embedding")
_CHUNKS = 64
"""Most chunks that are read; of larger stores a random sample of chunks is read."""


def sample_gallery(store: Store, count: int, seed: int) -> pa.Table:
    """Return `count` live rows of a store, or all if there are fewer, in the order of their hashes.

    The columns are image_id, path, label and embedding. Rows with the smallest hashes of image_id
    and seed (`index/sampling.py`) are taken, so the sample does not depend on how the store grew,
    as long as all its chunks are read.
    """
    chunks = store.chunks
    if len(chunks) > _CHUNKS:
        positions = np.random.default_rng(seed).choice(len(chunks), _CHUNKS, replace=False)
        chunks = [chunks[position] for position in sorted(positions)]
    sample: pa.Table | None = None
    for chunk in chunks:
        table = store.chunk_rows(chunk).select(_COLUMNS)
        sample = table if sample is None else pa.concat_tables([sample, table])
        hashes = hash_image_ids(sample["image_id"].to_pylist(), seed, "map")
        order = np.argsort(hashes, kind="stable")
        sample = sample.take(order[:count])
    assert sample is not None, "a finished store has a chunk"
    return sample
