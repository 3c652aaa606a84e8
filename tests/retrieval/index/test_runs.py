"""Tests of runs: rows grouped by list that a shard reads piece by piece."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.core.errors import Damaged
from retrieval.index import runs
from retrieval.index.generations import claim_generations
from retrieval.index.kmeans import assignment_metric
from retrieval.index.runs import read_run, read_run_counts, run_path, write_run
from retrieval.store.reader import read_vectors
from tests.file_tree import read_tree
from tests.retrieval.sample_vectors import IndexBuilder, exact_keys, image_ids, make_store

NLIST = 12


def make_run(root, metric="cosine", dtype="float16"):
    """Return the folder of an index, the path of its run, and the rows and vectors in it."""
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(dtype)
    vectors[100:120] = vectors[:20]
    store = make_store(root / "store", vectors, chunk_rows=16)
    builder = IndexBuilder(root / "index", store, metric, nlist=NLIST)
    (generation,) = builder.generations
    return builder, run_path(generation, (0, 13)), vectors


@pytest.mark.parametrize("piece_bytes", [1, 300, 1 << 18])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_run_returns_the_rows_of_any_range_of_lists(tmp_path, monkeypatch, piece_bytes, dtype):
    monkeypatch.setattr(runs, "PIECE_BYTES", piece_bytes)
    builder, path, vectors = make_run(tmp_path, dtype=dtype)
    centroids = builder.finish().centroids
    nearest = exact_keys(vectors, centroids, assignment_metric("cosine")).argmax(1)
    IndexBuilder(tmp_path / "index2", builder.store, "cosine", nlist=NLIST)
    folder = builder.folder
    write_run(builder.context, builder.generations[0], (0, 13))
    np.testing.assert_array_equal(
        read_run_counts(folder, path), np.bincount(nearest, minlength=NLIST)
    )
    for first, last in ((0, NLIST), (0, 1), (3, 7), (NLIST - 1, NLIST)):
        pieces = list(read_run(folder, path, first, last))
        expected = np.flatnonzero((nearest >= first) & (nearest < last))
        expected = expected[np.argsort(nearest[expected], kind="stable")]
        rows = np.concatenate([piece["row"].to_numpy() for piece in pieces])
        np.testing.assert_array_equal(rows, expected)
        lists = np.concatenate([piece["list"].to_numpy() for piece in pieces])
        np.testing.assert_array_equal(lists, nearest[expected])
        values = np.concatenate([read_vectors(piece) for piece in pieces])
        assert values.tobytes() == vectors[expected].tobytes()
        ids = [name for piece in pieces for name in piece["image_id"].to_pylist()]
        assert ids == [image_ids(200)[row] for row in expected]


def read_all(folder, path):
    """Read the counts and all pieces of a run."""
    read_run_counts(folder, path)
    list(read_run(folder, path, 0, NLIST))


def test_every_altered_byte_is_detected(tmp_path):
    builder, path, _ = make_run(tmp_path)
    data = builder.folder.read(path)
    for position in [*range(0, len(data), 97), *range(len(data) - 16, len(data))]:
        changed = bytearray(data)
        changed[position] ^= 4
        builder.folder.put(path, bytes(changed))
        with pytest.raises(Damaged, match="was altered"):
            read_all(builder.folder, path)


def test_shards_have_the_same_bytes_for_any_runs_and_pieces(tmp_path, monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float16)
    store = make_store(tmp_path / "store", vectors, chunk_rows=16)
    trees = []
    for name, rows, piece_bytes in (("a", 10**6, 1 << 18), ("b", 40, 1), ("c", 16, 200)):
        monkeypatch.setattr(runs, "PIECE_BYTES", piece_bytes)
        monkeypatch.setattr("retrieval.index.build_shard.rows_per_run", lambda *_, rows=rows: rows)
        options = {"nlist": NLIST, "rows_per_shard": 90}
        IndexBuilder(tmp_path / name, store, "l2", **options).finish()
        trees.append(read_tree(tmp_path / name))
    assert trees[0] == trees[1] == trees[2]


def test_list_larger_than_a_shard_continues_in_the_next_ones(tmp_path):
    """Half of the vectors are equal, so that they are in one list."""
    vectors = np.random.default_rng(2).normal(size=(120, 8)).astype(np.float32)
    vectors[::2] = vectors[0]
    store = make_store(tmp_path / "store", vectors, chunk_rows=16)
    options = {"nlist": 4, "rows_per_shard": 10**9}
    whole = IndexBuilder(tmp_path / "whole", store, "l2", **options).finish()
    split = IndexBuilder(tmp_path / "split", store, "l2", memory=50, **options).finish()

    def rows_of_lists(index):
        lists = [[] for _ in range(4)]
        for shard in index.shards:
            for number in range(shard.index.nlist):
                lists[shard.first_list + number] += shard.list_ids(number).tolist()
        return lists

    assert max(map(len, rows_of_lists(whole))) >= 60
    assert rows_of_lists(split) == rows_of_lists(whole)
    assert len(whole.shards) == 1
    assert max(len(shard.rows) for shard in split.shards) <= 25
    assert split.folder.read("recall.parquet") == whole.folder.read("recall.parquet")


def test_claimed_generation_has_the_rows_of_its_store(tmp_path):
    builder, path, _ = make_run(tmp_path)
    assert claim_generations(builder.folder, builder.store)[0].sha256[:16] in path
