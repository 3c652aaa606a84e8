"""Search an index in this process, with the functions that the tasks of `rank` use.

The matches are those of `rank` with the same lists: products only propose, float64 scores decide,
and equal scores are ordered by image_id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.core.errors import UsageError
from retrieval.core.schemas import Metric, Vectors
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing, choose_lists
from retrieval.index.shard import open_shard, shard_path
from retrieval.index.train import TRAINED
from retrieval.search.candidates import top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher, candidates_table
from retrieval.search.rescore import open_vector_store
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import read_vectors
from retrieval.vectors.scoring import VectorBlock, block
from retrieval.vectors.topk import top_k


@dataclass
class ShardIndex:
    """A finished index, opened for searches in this process.

    Shards stay in memory between searches if all of them together have at most `memory` bytes.
    """

    folder: Folder
    manifest: Manifest
    memory: int
    _searchers: dict[int, ShardSearcher] = field(default_factory=dict, repr=False)

    @property
    def metric(self) -> Metric:
        """Return the metric of the index."""
        metric: Metric = self.manifest.counts["metric"]
        return metric

    def search(
        self, vectors: Vectors, k: int, probing: Probing | None, embeddings: str | None = None
    ) -> pa.Table:
        """Return the `k` best rows of the index for each of (q, d) vectors as a table CANDIDATES.

        Args:
            vectors: The queries, float16 or float32; the column `query` holds their positions.
            k: Number of rows per query.
            probing: The lists that a query reads; None for all lists.
            embeddings: Path of the store of the vectors, for an index with lossy codes, if it is
                not where it was when the index was built.

        Raises UsageError for `probing` of an index with lossy codes, which is searched by its
        store, and as `open_vector_store` does.
        """
        if self.manifest.counts["codes"] is None:
            if probing is not None:
                raise UsageError(
                    f"{self.folder.uri()} has lossy codes, so that a search here compares all "
                    "vectors of its store; omit nprobe and gap, or use rank"
                )
            parts = self._search_store(block(vectors, self.metric), k, embeddings)
        else:
            parts = self._search_shards(block(vectors, self.metric), k, probing)
        return top_candidates(parts, k)[0]

    def _search_shards(
        self, queries: VectorBlock, k: int, probing: Probing | None
    ) -> Iterator[pa.Table]:
        """Yield the candidates of each shard, from the lists that the queries read."""
        lists = None
        if probing is not None and not probing.reads_all(int(self.manifest.counts["nlist"])):
            vectors = block(queries.values, self._centroids.metric)
            lists = choose_lists(vectors, self._centroids, probing)
        batch = QueryBatch(queries, np.arange(len(queries)))
        shards = range(int(self.manifest.counts["shards"]))
        size = sum(self.manifest.files[shard_path(number)].size for number in shards)
        for number in shards:
            searcher = self._searchers.get(number) or self._open(number)
            if size <= self.memory:
                self._searchers[number] = searcher
            yield searcher.search(batch, lists, k)

    @cached_property
    def _centroids(self) -> VectorBlock:
        record = self.manifest.files[TRAINED]
        trained = deserialize_index(finished_output.read_verified(self.folder, record))
        return block(read_centroids(trained), assignment_metric(self.metric))

    def _open(self, number: int) -> ShardSearcher:
        codes = self.manifest.counts["codes"]
        return ShardSearcher(
            open_shard(self.folder, self.manifest, number, self.metric, codes),
            cache_bytes=self.memory,
        )

    def _search_store(
        self, queries: VectorBlock, k: int, embeddings: str | None
    ) -> Iterator[pa.Table]:
        """Yield the candidates of each part of the store that the index was built from."""
        store = open_vector_store(self.folder, self.manifest, embeddings)
        rows = np.arange(len(queries))
        for table in store.blocks():
            if len(table) == 0:
                continue
            order = pc.sort_indices(table["image_id"]).to_numpy()
            ties = np.empty(len(table), np.int64)
            ties[order] = np.arange(len(table))
            best = top_k(queries, block(read_vectors(table), self.metric), k, ties)
            no_lists = np.full(best.positions.shape, -1, np.int32)
            yield candidates_table(table, best.keys, best.positions, no_lists, rows)
