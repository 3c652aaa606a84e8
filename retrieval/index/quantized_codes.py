"""Indexes with lossy codes (PQ, SQ8, …): FAISS encodes and searches them and only proposes.

Proposals must not depend on how the gallery was sharded, so: the lists that a query reads come from
our exact order of centroids; FAISS assigns added rows pair by pair, since its blocked products
round by batch size; rows with equal keys at the cut are ordered by row. Deleted rows are skipped by
requesting more candidates, which every kind supports (some lack selectors and removal).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.core.records import Neighbours
from retrieval.core.schemas import Metric, Vectors
from retrieval.index.faiss_io import read_centroids
from retrieval.index.probing import Probing, choose_lists
from retrieval.index.shard import Shard
from retrieval.vectors.scoring import (
    Float32,
    Float64,
    Int64,
    VectorBlock,
    block,
    score_pairs,
    scores_to_keys,
)

CANDIDATES_PER_MATCH = 10
"""Candidates that are scored exactly per requested match."""

_EXTRA = 16  # additional candidates, so that a tie at the cut rarely needs another search
_RESULTS_PER_CALL = 1 << 22  # results of one call: 48 MiB
_NO_BLOCKING = np.iinfo(np.int32).max  # row count from which FAISS would use blocked products


@dataclass(frozen=True)
class CoarseQuantizer:
    """The coarse quantizer of an IVF index with the vector transforms in front of it."""

    ivf: Any
    transforms: tuple[Any, ...]  # FAISS transforms in order of application
    ids_are_positions: bool  # list ids are positions in order of adding, not rows

    @cached_property
    def metric(self) -> Metric:
        """Return the metric of the centroids."""
        inner = self.ivf.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
        return "ip" if inner else "l2"

    @cached_property
    def centroids(self) -> VectorBlock:
        """Return the centroids, in the transformed space."""
        return block(read_centroids(self.ivf), self.metric)

    @property
    def is_plain(self) -> bool:
        """Return whether lists are those of the nearest centroid in the space of the vectors."""
        flat = isinstance(faiss.downcast_index(self.ivf.quantizer), faiss.IndexFlat)
        return flat and not self.transforms

    def project(self, vectors: Vectors, metric: Metric) -> VectorBlock:
        """Transform (n, d) vectors into the space of the centroids."""
        faiss_vectors = to_faiss_vectors(vectors, metric)
        for transform in self.transforms:
            faiss_vectors = transform.apply(faiss_vectors)
        return block(faiss_vectors, self.metric)


def to_faiss_vectors(vectors: Vectors, metric: Metric) -> Float32:
    """Return (n, d) vectors as FAISS input: contiguous float32, of unit length for cosine."""
    return np.ascontiguousarray(block(vectors, metric).matmul_input)


def find_coarse_quantizer(index: Any) -> CoarseQuantizer:
    """Return the coarse quantizer of an index, with the transforms and wrappers around its IVF."""
    inner: Any = faiss.downcast_index(index)
    transforms: list[Any] = []
    ids_are_positions = False
    while not isinstance(inner, faiss.IndexIVF):
        if isinstance(inner, faiss.IndexPreTransform):
            vector: Any = inner.chain
            chain = (vector.at(number) for number in range(vector.size()))
            transforms += [faiss.downcast_VectorTransform(transform) for transform in chain]
            inner = inner.index
        else:
            ids_are_positions = True
            inner = inner.base_index if isinstance(inner, faiss.IndexRefine) else inner.index
        inner = faiss.downcast_index(inner)
    return CoarseQuantizer(inner, tuple(transforms), ids_are_positions)


def add_rows(index: Any, faiss_vectors: Float32, rows: Int64) -> None:
    """Add (n, d) vectors with their rows as ids, or without ids where the kind has none."""
    with _pair_by_pair():
        if isinstance(faiss.downcast_index(index), faiss.IndexRefine):
            index.add(faiss_vectors)
        else:
            index.add_with_ids(faiss_vectors, np.ascontiguousarray(rows))


@contextmanager
def _pair_by_pair() -> Iterator[None]:
    """Make FAISS compute each pair by itself: a third of the speed, the same for any batch."""
    previous = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = _NO_BLOCKING
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = previous


@dataclass(frozen=True)
class QuantizedShard:
    """A shard in memory with lossy codes."""

    shard: Shard

    @cached_property
    def coarse(self) -> CoarseQuantizer:
        """Return the coarse quantizer of the shard."""
        return find_coarse_quantizer(self.shard.index)

    @cached_property
    def lists(self) -> NDArray[np.int64]:
        """Return the list number of each metadata row, (n,)."""
        result = np.full(len(self.shard.rows), -1, np.int64)
        inverted = self.coarse.ivf.invlists
        for number in range(self.coarse.ivf.nlist):
            size = inverted.list_size(number)
            if size:
                ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
                result[self._positions(ids)] = number
        return result

    @property
    def list_sizes(self) -> NDArray[np.int64]:
        """Return the number of rows of each list, deleted ones included."""
        return np.bincount(self.lists, minlength=self.coarse.ivf.nlist)

    def _positions(self, ids: Int64) -> Int64:
        """Return the metadata positions of list ids."""
        if self.coarse.ids_are_positions:
            return ids
        return np.searchsorted(self.shard.rows, ids)

    def choose_lists(self, queries: VectorBlock, probing: Probing) -> Int64:
        """Return the lists that each query reads, (q, width), padded with -1.

        `queries` are in the space of `CoarseQuantizer.project`. Lists are in the exact order of
        their centroids, ties by number.
        """
        lists = choose_lists(queries, self.coarse.centroids, probing)
        keys = scores_to_keys(self._list_scores(queries, lists), queries.metric)
        order = np.lexsort((lists, np.where(lists < 0, np.inf, -keys)), axis=1)
        return np.take_along_axis(lists, order, 1)

    def _list_scores(self, queries: VectorBlock, lists: Int64) -> Float64:
        """Return the scores of the centroids of lists, (q, width); 0 for padding."""
        scores = np.zeros(lists.shape)
        q, column = np.nonzero(lists >= 0)
        scores[q, column] = score_pairs(queries, self.coarse.centroids, q, lists[q, column])
        return scores

    def search(self, queries: VectorBlock, probes: Int64, count: int) -> Neighbours:
        """Return the `count` live rows closest to each query by the codes, best first.

        `queries` are in the space of `CoarseQuantizer.project`, `probes` are those that
        `choose_lists` returns; equal keys are ordered by row. Missing rows are -1 with key -inf.
        """
        shape = (len(queries), count)
        result = Neighbours(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1))
        if len(self.shard.rows) == 0 or len(queries) == 0:
            return result
        distances = self._list_scores(queries, probes).astype(np.float32)
        incomplete, requested = np.arange(len(queries)), self._initial_request(count)
        while len(incomplete):
            step = max(1, _RESULTS_PER_CALL // requested)
            completed = []
            for part in np.split(incomplete, range(step, len(incomplete), step)):
                faiss_queries = queries.matmul_input[part], probes[part], distances[part]
                keys, positions, complete = self._search_once(*faiss_queries, requested, count)
                _store_results(result, part, keys, self.shard.rows, self.lists, positions)
                completed.append(complete)
            incomplete = incomplete[~np.concatenate(completed)]
            requested = min(2 * requested, len(self.shard.rows))
        return result

    def _initial_request(self, count: int) -> int:
        """Return how many rows to request first so that `count` of them should be alive."""
        rows, alive = len(self.shard.rows), int(self.shard.alive.sum())
        return min(rows, (count + _EXTRA) * rows // max(1, alive) + 1)

    def _search_once(
        self, faiss_queries: Float32, probes: Int64, distances: Float32, requested: int, count: int
    ) -> tuple[Float64, Int64, NDArray[np.bool_]]:
        """Return keys and metadata positions, (q, count), and which queries are complete, (q,).

        A query is complete if its lists hold no more rows, or if `count` live rows are closer than
        the last one that FAISS returned: rows as close as that may have been left out.
        """
        ivf = self.coarse.ivf
        ivf.nprobe = probes.shape[1]
        faiss_distances, ids = ivf.search_preassigned(faiss_queries, requested, probes, distances)
        keys = faiss_distances.astype(np.float64)
        if ivf.metric_type != faiss.METRIC_INNER_PRODUCT:
            keys = -keys
        keys[np.isnan(keys)] = -np.inf
        last = np.where(ids[:, -1] < 0, -np.inf, keys.min(1))
        positions = np.where(ids < 0, 0, self._positions(ids))
        excluded = (ids < 0) | ~self.shard.alive[positions]
        keys[excluded] = -np.inf
        enough = (keys > last[:, None]).sum(1) >= count
        complete = enough | (ids[:, -1] < 0) | (requested >= len(self.shard.rows))
        positions[excluded] = -1
        best = np.lexsort((np.where(excluded, len(self.shard.rows), positions), -keys), axis=1)[
            :, :count
        ]
        return np.take_along_axis(keys, best, 1), np.take_along_axis(positions, best, 1), complete


def _store_results(
    result: Neighbours,
    query_positions: Int64,
    keys: Float64,
    rows: Int64,
    lists: Int64,
    positions: Int64,
) -> None:
    """Copy the results of the queries at `query_positions` into the result arrays."""
    is_row, targets = positions >= 0, np.ix_(query_positions, np.arange(positions.shape[1]))
    result.keys[targets] = keys
    result.rows[targets] = np.where(is_row, rows[positions], -1)
    result.lists[targets] = np.where(is_row, lists[positions], -1)
