"""Score candidates by the stored vectors, for indexes whose codes are lossy.

The stored vectors of a shard are read once, against all queries: they yield the exact scores of the
proposals, and the exact nearest neighbours of the sampled queries.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.schemas import WORK_FOLDER, Vectors
from retrieval.index.sample_neighbors import iterate_stored_blocks
from retrieval.index.shard import Shard
from retrieval.search.candidates import Candidates, make_candidates, top_candidates
from retrieval.search.candidates_file import read_candidates, write_candidates
from retrieval.search.exclusions import is_excluded, max_excluded_per_query
from retrieval.search.propose import proposed_path
from retrieval.search.shard_search import ExactOutput, SearchTask, candidates_path
from retrieval.store.reader import read_vectors
from retrieval.vectors.scoring import block, score_pairs, scores_to_keys
from retrieval.vectors.topk import TopK

_PAIRS = 1 << 15  # pairs scored at once: 64 MiB of float32 per side at dimension 512


def rescore_shard(task: SearchTask, number: int) -> int:
    """Write scored and exact candidates of a shard for all blocks that lack them.

    Return the count of blocks.
    """
    existing = {
        entry.path for entry in task.output.entries(f"{WORK_FOLDER}candidates/{task.probing.name}")
    }
    existing |= {entry.path for entry in task.output.entries(f"{WORK_FOLDER}exact")}
    blocks = range(len(task.query_chunks))
    missing = [n for n in blocks if candidates_path(task.probing, number, n) not in existing]
    missing_exact = [
        output for output in task.exact_outputs(number, blocks) if output.path not in existing
    ]
    if not missing and not missing_exact:
        return len(blocks)
    shard = task.open_shard(number)
    with tempfile.TemporaryFile(dir=task.temp_dir) as vector_file:
        proposed_rows = _proposed_rows(task, number, missing)
        sampled, written = _SampledQueries(task, shard, missing_exact), [np.empty(0, np.int64)]
        for rows, vectors, _ in iterate_stored_blocks(shard):
            task.heartbeat()
            is_proposed = np.isin(rows, proposed_rows, assume_unique=True)
            vector_file.write(np.ascontiguousarray(vectors[is_proposed]).tobytes())
            written.append(rows[is_proposed])
            sampled.push(rows, vectors)
        vector_file.flush()
        proposed = _ProposedVectors(
            np.concatenate(written), _map_vector_file(shard, vector_file, proposed_rows)
        )
        for block_number in missing:
            task.heartbeat()
            candidates = _score_block(task, number, block_number, proposed)
            path = candidates_path(task.probing, number, block_number)
            write_candidates(task.output, path, candidates)
    sampled.write()
    return len(blocks)


def _proposed_rows(task: SearchTask, number: int, blocks: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows of a shard that are proposed for some blocks, each once, ascending."""
    rows = np.empty(0, np.int64)
    for block_number in blocks:
        proposed = read_candidates(task.output, proposed_path(task.probing, number, block_number))
        rows = np.union1d(rows, proposed.pairs["row"].to_numpy())
    return rows


@dataclass(frozen=True)
class _ProposedVectors:
    """The proposed rows of a shard and their stored vectors, in the order of its lists."""

    rows: NDArray[np.int64]
    vectors: Vectors

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of some of the rows."""
        order = np.argsort(self.rows)
        return order[np.searchsorted(self.rows, rows, sorter=order)]


def _score_block(
    task: SearchTask, number: int, block_number: int, proposed_vectors: _ProposedVectors
) -> Candidates:
    """Return the `top_k` best scored proposals of each query of a block."""
    proposals = read_candidates(task.output, proposed_path(task.probing, number, block_number))
    proposed = proposals.pairs.sort_by([("query", "ascending"), ("row", "ascending")])
    query_table = task.query_block(block_number)
    vectors = read_vectors(query_table)
    stored = proposed_vectors.vectors
    keys = np.empty(len(proposed))
    query = np.searchsorted(query_table["row"].to_numpy(), proposed["query"].to_numpy())
    positions = proposed_vectors.positions(proposed["row"].to_numpy())
    for first in range(0, len(proposed), _PAIRS):
        part = slice(first, first + _PAIRS)
        queries, q = np.unique(query[part], return_inverse=True)
        rows, x = np.unique(positions[part], return_inverse=True)
        left, right = block(vectors[queries], task.metric), block(stored[rows], task.metric)
        keys[part] = scores_to_keys(score_pairs(left, right, q, x), task.metric)
    table = proposed.set_column(proposed.column_names.index("key"), "key", pa.array(keys))
    table = table.filter(pc.greater_equal(table["key"], task.min_key))
    return top_candidates([dataclasses.replace(proposals, pairs=table)], task.top_k)[0]


def _map_vector_file(shard: Shard, vector_file: Any, proposed_rows: NDArray[np.int64]) -> Vectors:
    """Return the vectors of the proposed rows, (n, d), mapped from the temporary file."""
    assert shard.stored is not None
    shape = (len(proposed_rows), shard.index.d)
    if len(proposed_rows) == 0:
        return np.empty(shape, shard.stored.dtype)
    return np.memmap(vector_file, shard.stored.dtype, "r", shape=shape)


class _SampledQueries:
    """Finds the exact nearest rows of a shard for the sampled queries of some blocks."""

    def __init__(self, task: SearchTask, shard: Shard, outputs: Sequence[ExactOutput]) -> None:
        self._task, self._shard = task, shard
        self._rows: dict[str, NDArray[np.int64]] = {}
        tables = []
        for output in outputs:
            queries, self._rows[output.path] = task.query_block(output.block), output.queries
            tables.append(queries.filter(pc.is_in(queries["row"], pa.array(output.queries))))
        if outputs:
            self._batch = task.query_batch(self._shard, pa.concat_tables(tables))
            extra = max_excluded_per_query(self._batch.excluded)
            self._best = TopK(self._batch.queries, task.top_k + extra)

    def push(self, rows: NDArray[np.int64], vectors: Vectors) -> None:
        """Compare live rows of the gallery and their vectors, (n, d), with the queries."""
        if self._rows:
            shard = self._shard
            positions = np.searchsorted(shard.rows, rows)
            ranks = shard.image_id_ranks[positions]
            self._best.push(block(vectors, shard.metric), ranks, positions)

    def write(self) -> None:
        """Write the exact candidates, one file per block and look."""
        if not self._rows:
            return
        best, batch = self._best, self._batch
        positions = np.where(best.keys >= batch.min_key, best.positions, -1)
        if batch.excluded is not None:
            query = np.repeat(np.arange(len(positions)), positions.shape[1])
            dropped = is_excluded(batch.excluded, query, positions.ravel()).reshape(positions.shape)
            positions = np.where(dropped, -1, positions)
        lists = np.append(self._shard.lists, -1)[positions]  # -1 where there is no row
        lists = np.where(lists < 0, -1, lists + self._shard.first_list)
        every = make_candidates(self._shard.metadata, best.keys, positions, lists, batch.rows)
        nearest, _ = top_candidates([every], self._task.top_k)
        for path, rows in self._rows.items():
            write_candidates(self._task.output, path, nearest.filter_queries(rows))
