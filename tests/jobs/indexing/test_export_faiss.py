"""Test `index --export-faiss`, which writes a finished index as one FAISS file."""

import faiss
import numpy as np
import pytest

from jobs.config.settings import IndexSettings
from jobs.indexing import index
from retrieval.core.errors import UsageError
from tests.jobs.in_process import without_ray
from tests.sample_stores import write_store


@pytest.fixture(autouse=True)
def in_process():
    """Run all stages in this process."""
    with without_ray():
        yield


def test_exported_file_is_searchable_and_not_overwritten(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float16)
    write_store(tmp_path / "store", vectors)
    file = tmp_path / "all.faiss"
    options = {
        "embeddings": str(tmp_path / "store"), "output": str(tmp_path / "index"),
        "rows_per_shard": 400, "metric": "l2", "ray_address": "local",
    }  # fmt: skip
    result = index.start(IndexSettings(**options, export_faiss=str(file)))
    assert f"900 vectors, ids are rows: {file}" in result.lines[-1]
    assert result.values["merged_rows"] == 900
    faiss_index = faiss.read_index(str(file))
    distances, ids = faiss_index.search(vectors[:5].astype(np.float32), 1)
    assert ids.ravel().tolist() == [0, 1, 2, 3, 4]
    assert not distances.any()
    with pytest.raises(UsageError, match="--overwrite"):
        index.start(IndexSettings(**options, export_faiss=str(file)))
    second_result = index.start(
        IndexSettings(**options, export_faiss=str(tmp_path / "again.faiss"))
    )
    assert second_result.values["rows"] == 900
    assert (tmp_path / "again.faiss").read_bytes() == file.read_bytes()
