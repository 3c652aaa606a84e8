"""Kinds whose codes are not the vectors: FAISS adds to them and searches them, and proposes only.

What FAISS leaves open is decided here, so that proposals do not depend on how the gallery was cut:
the lists that a query reads come from our own order of the centroids; products of FAISS that find
a row's list are made pair by pair, since its blocked ones round by the size of the batch; of rows
whose keys are equal at the cut the smaller come first. Deleted rows are passed over by asking for
more, which every kind can do (selectors and removal are lacking in some).
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
from retrieval.index.faiss_io import centroids_of
from retrieval.index.shard import Shard
from retrieval.vectors.scoring import Block, Float32, Float64, Int64, block
from retrieval.vectors.topk import top_k

CANDIDATES_PER_MATCH = 10
"""Candidates that are scored exactly for each match asked for."""

_MORE = 16  # candidates beyond those wanted, so that a tie at the cut seldom asks again
_ANSWERS = 1 << 22  # of one call: 48 MiB
_NEVER = np.iinfo(np.int32).max  # rows from which FAISS would compare blocks


@dataclass(frozen=True)
class Coarse:
    """The way from a vector to its lists, through whatever stands before the IVF."""

    ivf: Any
    transforms: tuple[Any, ...]  # of FAISS, first one first
    by_place: bool  # the lists hold places in the order of adding, and not rows

    @cached_property
    def metric(self) -> Metric:
        """Give the metric of the centroids."""
        inner = self.ivf.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
        return "ip" if inner else "l2"

    @cached_property
    def centroids(self) -> Block:
        """Give the centroids, in their own space."""
        return block(centroids_of(self.ivf), self.metric)

    @property
    def is_plain(self) -> bool:
        """Tell whether lists are those of the nearest centroid in the space of the vectors."""
        flat = isinstance(faiss.downcast_index(self.ivf.quantizer), faiss.IndexFlat)
        return flat and not self.transforms

    def inside(self, vectors: Vectors, metric: Metric) -> Block:
        """Bring (n, d) vectors into the space of the centroids."""
        wide = wide_of(vectors, metric)
        for transform in self.transforms:
            wide = transform.apply(wide)
        return block(wide, self.metric)


def wide_of(vectors: Vectors, metric: Metric) -> Float32:
    """Give (n, d) vectors as FAISS gets them: float32, of unit length for cosine."""
    return np.ascontiguousarray(block(vectors, metric).cheap)


def coarse_of(index: Any) -> Coarse:
    """Find the IVF in an index, and what stands around it."""
    inner: Any = faiss.downcast_index(index)
    transforms: list[Any] = []
    by_place = False
    while not isinstance(inner, faiss.IndexIVF):
        if isinstance(inner, faiss.IndexPreTransform):
            vector: Any = inner.chain
            chain = (vector.at(number) for number in range(vector.size()))
            transforms += [faiss.downcast_VectorTransform(transform) for transform in chain]
            inner = inner.index
        else:
            by_place = True
            inner = inner.base_index if isinstance(inner, faiss.IndexRefine) else inner.index
        inner = faiss.downcast_index(inner)
    return Coarse(inner, tuple(transforms), by_place)


def add_rows(index: Any, wide: Float32, rows: Int64) -> None:
    """Add (n, d) vectors under their rows, or one after another where a kind keeps no ids."""
    with _pair_by_pair():
        if isinstance(faiss.downcast_index(index), faiss.IndexRefine):
            index.add(wide)
        else:
            index.add_with_ids(wide, np.ascontiguousarray(rows))


@contextmanager
def _pair_by_pair() -> Iterator[None]:
    """Let FAISS compare each pair by itself: a third of the speed, the same for any batch."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = _NEVER
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


@dataclass(frozen=True)
class Codes:
    """A shard in memory whose codes are not the vectors."""

    shard: Shard

    @cached_property
    def coarse(self) -> Coarse:
        """Give the way to its lists."""
        return coarse_of(self.shard.index)

    @cached_property
    def lists(self) -> NDArray[np.int64]:
        """Give the list of each row of the metadata."""
        found = np.full(len(self.shard.rows), -1, np.int64)
        inverted = self.coarse.ivf.invlists
        for number in range(self.coarse.ivf.nlist):
            size = inverted.list_size(number)
            if size:
                ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
                found[self._places(ids)] = number
        return found

    def _places(self, ids: Int64) -> Int64:
        """Give the place in the metadata of what the lists hold."""
        if self.coarse.by_place:
            return ids
        return np.searchsorted(self.shard.rows, ids)

    def search(self, queries: Block, nprobe: int, count: int) -> Neighbours:
        """Give the `count` live rows closest by the codes to each query, best first.

        `queries` are `Coarse.inside` the index; equal keys are ordered by row. Fewer rows than
        `count` are followed by row -1 with key -inf.
        """
        shape = (len(queries), count)
        found = Neighbours(np.full(shape, -np.inf), np.full(shape, -1), np.full(shape, -1))
        if len(self.shard.rows) == 0 or len(queries) == 0:
            return found
        order = top_k(queries, self.coarse.centroids, nprobe)
        probes, distances = order.positions, order.scores().astype(np.float32)
        waiting, wanted = np.arange(len(queries)), self._first(count)
        while len(waiting):
            step = max(1, _ANSWERS // wanted)
            ready = []
            for part in np.split(waiting, range(step, len(waiting), step)):
                asked = queries.cheap[part], probes[part], distances[part]
                keys, places, complete = self._ask(*asked, wanted, count)
                _keep(found, part, keys, self.shard.rows, self.lists, places)
                ready.append(complete)
            waiting = waiting[~np.concatenate(ready)]
            wanted = min(2 * wanted, len(self.shard.rows))
        return found

    def _first(self, count: int) -> int:
        """Say how many to ask for at first, so that as many as are wanted should be alive."""
        rows, alive = len(self.shard.rows), int(self.shard.alive.sum())
        return min(rows, (count + _MORE) * rows // max(1, alive) + 1)

    def _ask(
        self, asked: Float32, probes: Int64, distances: Float32, wanted: int, count: int
    ) -> tuple[Float64, Int64, NDArray[np.bool_]]:
        """Give the `count` closest live ones, (q, count) keys and places, and who has all it can.

        A query has them if the lists it reads hold no more, or if enough are closer than the last
        one that FAISS gave: of rows that are as close as that, others may have been left out.
        """
        ivf = self.coarse.ivf
        ivf.nprobe = probes.shape[1]
        far, ids = ivf.search_preassigned(asked, wanted, probes, distances)
        keys = far.astype(np.float64)
        if ivf.metric_type != faiss.METRIC_INNER_PRODUCT:
            keys = -keys
        keys[np.isnan(keys)] = -np.inf
        last = np.where(ids[:, -1] < 0, -np.inf, keys.min(1))
        places = np.where(ids < 0, 0, self._places(ids))
        dead = (ids < 0) | ~self.shard.alive[places]
        keys[dead] = -np.inf
        enough = (keys > last[:, None]).sum(1) >= count
        complete = enough | (ids[:, -1] < 0) | (wanted >= len(self.shard.rows))
        places[dead] = -1
        best = np.lexsort((np.where(dead, len(self.shard.rows), places), -keys), axis=1)[:, :count]
        return np.take_along_axis(keys, best, 1), np.take_along_axis(places, best, 1), complete


def _keep(
    found: Neighbours, which: Int64, keys: Float64, rows: Int64, lists: Int64, places: Int64
) -> None:
    """Write what some queries got into their lines."""
    there, line = places >= 0, np.ix_(which, np.arange(places.shape[1]))
    found.keys[line] = keys
    found.rows[line] = np.where(there, rows[places], -1)
    found.lists[line] = np.where(there, lists[places], -1)
