"""Search an index in this process, with the functions that the tasks of `rank` use.

The matches are those of `rank` with the same lists: products only propose, float64 scores decide,
and equal scores are ordered by image_id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from retrieval.core.errors import UsageError
from retrieval.core.schemas import Metric, Vectors
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing, choose_lists
from retrieval.index.sample_neighbors import iterate_stored_blocks
from retrieval.index.shard import Shard, open_shard, read_lists_of_shard, shard_path
from retrieval.index.train import TRAINED
from retrieval.search.candidates import Candidates, make_candidates, top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.search.shard_search import index_lists, local_lists
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
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

    def search(self, vectors: Vectors, k: int, probing: Probing | None) -> Candidates:
        """Return the `k` best rows of the index for each of (q, d) vectors.

        Args:
            vectors: The queries, float16 or float32; the column `query` holds their positions.
            k: Number of rows per query.
            probing: The lists that a query reads; None for all lists.

        Raises UsageError for `probing` of an index with lossy codes, whose stored vectors are all
        compared.
        """
        if self.manifest.counts["codes"] is None:
            if probing is not None:
                raise UsageError(
                    f"{self.folder.uri()} has lossy codes, so that a search here compares all "
                    "vectors; omit nprobe and gap, or use rank"
                )
            parts = self._search_stored_vectors(block(vectors, self.metric), k)
        else:
            parts = self._search_shards(block(vectors, self.metric), k, probing)
        return top_candidates(parts, k)[0]

    def _search_shards(
        self, queries: VectorBlock, k: int, probing: Probing | None
    ) -> Iterator[Candidates]:
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
            local = None
            if lists is not None:
                shard_lists = read_lists_of_shard(self.folder, self.manifest, number)
                local = local_lists(lists, shard_lists)
            candidates = searcher.search(batch, local, k)
            yield index_lists(candidates, searcher.shard).with_images()

    @cached_property
    def _centroids(self) -> VectorBlock:
        record = self.manifest.files[TRAINED]
        trained = deserialize_index(finished_output.read_verified(self.folder, record))
        return block(read_centroids(trained), assignment_metric(self.metric))

    def _open(self, number: int) -> ShardSearcher:
        return ShardSearcher(self._read_shard(number), cache_bytes=self.memory)

    def _read_shard(self, number: int) -> Shard:
        codes = self.manifest.counts["codes"]
        return open_shard(self.folder, self.manifest, number, self.metric, codes)

    def _search_stored_vectors(self, queries: VectorBlock, k: int) -> Iterator[Candidates]:
        """Yield the candidates of each shard from the vectors that are stored beside its codes."""
        query_rows = np.arange(len(queries))
        for number in range(int(self.manifest.counts["shards"])):
            shard = self._read_shard(number)
            for rows, vectors, lists in iterate_stored_blocks(shard):
                positions = np.searchsorted(shard.rows, rows)
                ties = shard.image_id_ranks[positions]
                best = top_k(queries, block(vectors, self.metric), k, ties)
                is_filled = best.positions >= 0
                cells = np.where(is_filled, positions[best.positions], -1)
                yield make_candidates(
                    shard.metadata, best.keys, cells, lists[best.positions], query_rows
                ).with_images()
