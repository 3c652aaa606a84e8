"""Which images of a gallery stand on its map: a seeded sample of bounded cost."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrieval.index.sampling import hashes_of
from retrieval.store.reader import Store

_COLUMNS = ("image_id", "path", "label", "embedding")
_CHUNKS = 64
"""Parts that are read at most: a gallery of millions is looked at in places, each of them drawn."""


def gallery_sample(store: Store, count: int, seed: int) -> pa.Table:
    """Give `count` live rows of a store, or all if there are fewer, in the order of their hashes.

    The columns are image_id, path, label and embedding. The images of the smallest hashes are drawn
    (by image_id and seed, as `index/sampling.py` has them), so that a store that grew gives what
    one made at once gives, as long as all its parts are read.
    """
    chunks = store.chunks
    if len(chunks) > _CHUNKS:
        places = np.random.default_rng(seed).choice(len(chunks), _CHUNKS, replace=False)
        chunks = [chunks[place] for place in sorted(places)]
    kept: pa.Table | None = None
    for chunk in chunks:
        table = store.chunk_rows(chunk).select(_COLUMNS)
        kept = table if kept is None else pa.concat_tables([kept, table])
        hashes = hashes_of(kept["image_id"].to_pylist(), seed, "map")
        order = np.argsort(hashes, kind="stable")
        kept = kept.take(order[:count])
    assert kept is not None, "a finished store has a chunk"
    return kept
