"""`lookalike index --export-faiss`: one FAISS file of a finished index, or a refusal."""

import faiss
import numpy as np
import pytest

from jobs.config.settings import IndexSettings
from jobs.indexing import index
from retrieval.core.errors import UsageError
from tests.stores import write_store

pytestmark = pytest.mark.usefixtures("ray_here")


def test_one_file_of_a_finished_index(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float16)
    write_store(tmp_path / "store", vectors)
    file = tmp_path / "all.faiss"
    words = {
        "embeddings": str(tmp_path / "store"), "output": str(tmp_path / "index"),
        "rows_per_shard": 400, "metric": "l2", "ray_address": "local",
    }  # fmt: skip
    result = index.start(IndexSettings(**words, export_faiss=str(file)))
    assert f"900 vectors, ids are rows: {file}" in result.lines[-1]
    assert result.values["merged_rows"] == 900
    opened = faiss.read_index(str(file))
    distances, ids = opened.search(vectors[:5].astype(np.float32), 1)
    assert ids.ravel().tolist() == [0, 1, 2, 3, 4]
    assert not distances.any()
    with pytest.raises(UsageError, match="--overwrite"):
        index.start(IndexSettings(**words, export_faiss=str(file)))
    again = index.start(IndexSettings(**words, export_faiss=str(tmp_path / "again.faiss")))
    assert again.values["rows"] == 900
    assert (tmp_path / "again.faiss").read_bytes() == file.read_bytes()
