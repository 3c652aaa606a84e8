"""Tests of generations: which parts they cover, their runs, and the lists of their shards."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import Damaged
from retrieval.index.generations import (
    MAX_GENERATIONS,
    claim_generations,
    cut_lists,
    generation_parts_path,
    generation_shards_path,
    read_shard_lists,
    write_shard_lists,
)
from retrieval.storage.local import open_folder
from tests.retrieval.sample_vectors import make_store, quick

list_counts = st.lists(st.integers(0, 30), min_size=1, max_size=40)


def covered_rows(counts, shards):
    """Return the (list, position in the list) of each row of each shard, in order."""
    rows = []
    for shard in shards:
        positions = [
            (number, position)
            for number in range(shard.first_list, shard.last_list)
            for position in range(counts[number])
        ]
        rows.append(positions[shard.skipped : shard.skipped + shard.rows])
    return rows


@quick
@given(list_counts, st.integers(1, 100), st.integers(1, 100))
def test_shards_cover_all_rows_and_lists_in_order(counts, rows_per_shard, capacity):
    shards = cut_lists(np.array(counts), rows_per_shard, capacity)
    rows = covered_rows(counts, shards)
    assert [row for shard in rows for row in shard] == [
        (number, position) for number, count in enumerate(counts) for position in range(count)
    ]
    assert all(len(shard) == lists.rows for shard, lists in zip(rows, shards, strict=True))
    assert max(lists.rows for lists in shards) <= capacity
    assert (shards[0].first_list, shards[-1].last_list) == (0, len(counts))
    for before, after in pairwise(shards):
        shared = before.last_list - after.first_list
        assert shared == (1 if after.skipped else 0)


@quick
@given(list_counts, st.integers(1, 100))
def test_whole_lists_are_kept_together_where_memory_allows(counts, rows_per_shard):
    shards = cut_lists(np.array(counts), rows_per_shard, 10**9)
    assert all(lists.skipped == 0 for lists in shards)
    assert max(lists.rows for lists in shards) < rows_per_shard + 2 * max(counts) + 1


def test_shards_are_even():
    rows = [lists.rows for lists in cut_lists(np.full(1000, 10), 1700, 10**9)]
    assert (len(rows), min(rows), max(rows)) == (6, 1660, 1670)


def test_list_larger_than_memory_is_split():
    shards = cut_lists(np.array([3, 25, 0, 2]), 10, 10)
    assert [(s.first_list, s.last_list, s.skipped, s.rows) for s in shards] == [
        (0, 1, 0, 3), (1, 2, 0, 10), (1, 2, 10, 10), (1, 2, 20, 5), (2, 4, 0, 2),
    ]  # fmt: skip


def test_generation_without_rows_has_an_empty_shard():
    (lists,) = cut_lists(np.zeros(5, np.int64), 10, 10)
    assert (lists.first_list, lists.last_list, lists.rows) == (0, 5, 0)


def test_runs_have_whole_chunks_up_to_the_limit(tmp_path):
    store = make_store(tmp_path / "store", np.eye(20, dtype=np.float32), chunk_rows=4)
    (generation,) = claim_generations(open_folder(str(tmp_path / "index")), store)
    assert generation.rows == 20
    assert generation.runs(1) == [(n, n + 1) for n in range(5)]
    assert generation.runs(9) == [(0, 2), (2, 4), (4, 5)]
    assert generation.runs(100) == [(0, 5)]


def grow(store, parts):
    """Return a store that has only the first `parts` parts of another one."""
    manifest = store.manifest
    keep = [n for n, path in enumerate(manifest.files.paths.to_pylist())
            if "/parts/" not in path or int(path[-16:-8]) < parts]  # fmt: skip
    files = manifest.files.take(np.array(keep))
    return type(store)(store.folder, type(manifest)(**{**vars(manifest), "files": files}),
                       store.settings)  # fmt: skip


def test_new_parts_form_a_generation_and_too_many_are_indexed_anew(tmp_path):
    folder = open_folder(str(tmp_path / "index"))
    store = make_store(tmp_path / "store", np.eye(40, dtype=np.float32), chunk_rows=4)
    for parts in range(1, MAX_GENERATIONS + 1):
        generations = claim_generations(folder, grow(store, parts))
        assert [len(generation.parts) for generation in generations] == [1] * parts
        assert claim_generations(folder, grow(store, parts)) == generations
        folder.put_new(f"shards/{parts - 1:05d}.faiss", b"")
    (generation,) = claim_generations(folder, grow(store, MAX_GENERATIONS + 1))
    assert len(generation.parts) == MAX_GENERATIONS + 1
    assert [entry.path for entry in folder.entries()] == [generation_parts_path(0)]


@pytest.mark.parametrize("state", ["another store", "first generation removed", "all removed"])
def test_shards_of_another_store_are_removed(tmp_path, state):
    folder = open_folder(str(tmp_path / "index"))
    store = make_store(tmp_path / "store", np.eye(8, dtype=np.float32))
    claim_generations(folder, grow(store, 1))
    claim_generations(folder, store)
    folder.put_new("shards/00000.faiss", b"")
    if state == "another store":
        store = make_store(tmp_path / "other", np.eye(8, dtype=np.float32)[::-1].copy())
    else:  # by a run that was killed
        folder.delete(generation_parts_path(0))
    if state == "all removed":
        folder.delete(generation_parts_path(1))
    (generation,) = claim_generations(folder, store)
    assert generation.parts["path"].to_pylist() == store.parts["path"].to_pylist()
    assert [entry.path for entry in folder.entries()] == [generation_parts_path(0)]


def test_lists_of_shards_are_written_once(tmp_path):
    folder = open_folder(str(tmp_path / "index"))
    store = make_store(tmp_path / "store", np.eye(8, dtype=np.float32))
    (generation,) = claim_generations(folder, store)
    assert read_shard_lists(folder, generation) is None
    first = cut_lists(np.array([4, 4]), 4, 4)
    assert write_shard_lists(folder, generation, first) == first
    assert write_shard_lists(folder, generation, cut_lists(np.array([4, 4]), 8, 8)) == first
    folder.put(generation_shards_path(0), folder.read(generation_shards_path(0))[:-9])
    with pytest.raises(Damaged, match=r"generations/00000\.json was altered"):
        read_shard_lists(folder, generation)
