"""Outputs that the tests of the readers share, made in this process without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw_photos
from tests.jobs.in_process import embed_in_process, index_in_process, rank_in_process
from tests.sample_stores import write_store


@pytest.fixture(scope="session")
def photo_outputs(tmp_path_factory) -> Path:
    """Return a folder with photos, and store, queries, index and matches of them."""
    root = tmp_path_factory.mktemp("photo outputs")
    draw_photos(root / "photos", 12)
    draw_photos(root / "new", 4, seed=1)
    embed_in_process(root / "photos", root / "store")
    embed_in_process(root / "new", root / "queries")
    index_in_process(root / "store", root / "index")
    rank_in_process(root / "index", root / "queries", root / "matches", top_k=5)
    return root


@pytest.fixture(scope="session", params=["cosine", "l2"])
def vector_index(request, tmp_path_factory) -> tuple[Path, np.ndarray, str]:
    """Return a folder with a store and an index of several shards, the vectors, and the metric."""
    root = tmp_path_factory.mktemp("vector index")
    vectors = np.random.default_rng(0).normal(size=(900, 12)).astype(np.float32)
    vectors[5] = vectors[3]  # equal scores, which the id decides
    write_store(root / "store", vectors)
    index_in_process(
        root / "store", root / "index", metric=request.param, rows_per_shard=300,
        index_factory="IVF8,Flat",
    )  # fmt: skip
    return root, vectors, request.param
