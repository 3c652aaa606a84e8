"""Search one shard of the index for all query blocks and write the candidates it finds.

    work/lists/PROBING/BLOCK.parquet             the lists that each query of a block reads
    work/candidates/PROBING/SHARD-BLOCK.parquet  the candidates of a shard for a block
    work/exact/LOOK/SHARD-BLOCK.parquet          exact candidates of queries that a look samples

PROBING names the choice of lists (`index/probing.py`). A shard holds some lists only: it is
searched for the queries that read one of them, and not opened for a block without any. Existing
files are kept, so a killed run continues. A shard skips rows that are surely below the
k-th best key of the shards already searched: a file may depend on those, the merged result does
not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.records import Chunk
from retrieval.core.schemas import CANDIDATES_SCHEMA, WORK_FOLDER, Metric
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.generations import ShardLists
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing, choose_lists
from retrieval.index.runs import do_nothing
from retrieval.index.shard import Shard, open_shard, read_lists_of_shard, shard_path
from retrieval.index.train import TRAINED
from retrieval.search.candidates import kth_best_keys
from retrieval.search.exclusions import excluded_pairs
from retrieval.search.filters import Filter, matching_rows
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.search.read_counts import ReadCounts, count_read
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_parquet, read_checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store, read_vectors
from retrieval.vectors.matmul import choose_search_product
from retrieval.vectors.scoring import Float64, block

_BLOCK_BYTES = 1 << 26  # upper limit for the queries and candidates of a block
_SHARES = (
    8  # of the memory: half for the shard, an eighth each for a query block and for cached lists
)
_CANDIDATE_BYTES = 200  # memory for one candidate while it is collected
_KNOWN_SHARDS = 4  # searched shards whose candidates set lower limits of the keys


@dataclass(frozen=True)
class SearchTask:
    """Inputs, options and output folder of a search, shared by all of its tasks.

    `looks` are the steps of the sequential recall check (`recall_check.py`): each adds rows of
    queries to the sample that is also searched exactly.
    """

    index: Folder
    manifest: Manifest
    codes: str | None  # dtype of the vectors in the index; None where codes are lossy
    metric: Metric
    queries: Store
    output: Folder
    nprobe: int  # largest number of lists that a query reads
    top_k: int
    looks: tuple[NDArray[np.int64], ...]  # rows of queries that each look adds
    heartbeat: Callable[[], None] = do_nothing  # called once per block
    device: str = "cpu"  # of the matrix products: cpu or cuda
    row_filter: Filter | None = None  # gallery rows that may match
    exclude_by: str | None = None  # column whose equal values exclude a match (`exclusions.py`)
    min_key: float = -np.inf  # candidates with a smaller key are not matches
    expanded: Folder | None = (
        None  # has the expanded vectors to search by (`expanded_queries_path`)
    )
    queries_per_block: int = 1  # a block has at least one chunk, even if that has more
    memory: int = 1 << 32  # bytes that one task may use
    temp_dir: str | None = None  # local folder for the copy of a remote shard
    gap: float = math.inf  # of the lists that a query reads (`index/probing.py`)
    look: int = 0  # current look: queries of all looks up to it are searched exactly

    @property
    def probing(self) -> Probing:
        """Return which lists a query reads."""
        return Probing(self.nprobe, self.gap)

    @property
    def reads_all_lists(self) -> bool:
        """Return whether every query reads every list."""
        return self.probing.reads_all(int(self.manifest.counts["nlist"]))

    @cached_property
    def sampled_queries(self) -> NDArray[np.int64]:
        """Return the rows, ascending, of the queries that are also searched exactly, (s,) int64."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *self.looks[: self.look + 1]]))

    def exact_outputs(self, shard: int, blocks: Iterable[int]) -> list[tuple[str, int, int]]:
        """Return (path, look, block) of each file of exact candidates of a shard up to `look`.

        Blocks without a sampled query have none.
        """
        return [
            (exact_path(look, shard, number), look, number)
            for number in blocks
            for look in range(min(self.look + 1, len(self.looks)))
            if len(self.sampled_rows(look, number))
        ]

    def sampled_rows(self, look: int, number: int) -> NDArray[np.int64]:
        """Return the rows, ascending, of the queries of a block that a look adds to the sample."""
        chunks = self.query_chunks[number]
        first, last = chunks[0].base + chunks[0].first, chunks[-1].base + chunks[-1].last
        rows = np.sort(self.looks[look])
        start, stop = np.searchsorted(rows, [first, last])
        return rows[start:stop]

    def open_shard(self, number: int) -> Shard:
        """Return a shard, with a mask of its rows that pass `row_filter`."""
        shard = open_shard(
            self.index, self.manifest, number, self.metric, self.codes, self.temp_dir
        )
        if self.row_filter is None:
            return shard
        return dataclasses.replace(shard, allowed=matching_rows(self.row_filter, shard.metadata))

    def lists_of_shard(self, number: int) -> ShardLists:
        """Return the lists of a shard, without opening it."""
        return read_lists_of_shard(self.index, self.manifest, number)

    @property
    def shards(self) -> range:
        """Return the numbers of the shards."""
        return range(int(self.manifest.counts["shards"]))

    @property
    def cache_bytes(self) -> int:
        """Return the bytes that prepared lists may take in the cache of a searcher."""
        return self.memory // _SHARES

    @cached_property
    def query_chunks(self) -> list[list[Chunk]]:
        """Return the chunks of each query block, by size alone."""
        blocks: list[list[Chunk]] = []
        block_queries = self.queries_per_block
        for chunk in self.queries.chunks:
            count = chunk.last - chunk.first
            if block_queries + count > self.queries_per_block:
                blocks.append([])
                block_queries = 0
            blocks[-1].append(chunk)
            block_queries += count
        return blocks

    def stored_queries(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the queries of a block as they are in their store; None means all columns."""
        chunks = self.query_chunks[number]
        return pa.concat_tables([self.queries.chunk_rows(chunk, columns) for chunk in chunks])

    def query_block(self, number: int) -> pa.Table:
        """Return the queries of a block with the vectors to search by, expanded if `expanded`.

        The columns are `row`, `embedding` and `exclude_by`: every shard reads every block, and
        names and paths would take most of that time.
        """
        columns = dict.fromkeys(
            ["row", "embedding", *([self.exclude_by] if self.exclude_by else [])]
        )
        table = self.stored_queries(number, list(columns))
        if self.expanded is None:
            return table
        column = table.column_names.index("embedding")
        expanded = read_intermediate(self.expanded, expanded_queries_path(number))
        return table.set_column(column, "embedding", expanded["embedding"])

    def query_batch(
        self, shard: Shard, table: pa.Table, min_keys: Float64 | None = None
    ) -> QueryBatch:
        """Return the queries of `table` as a batch for a shard, with the pairs to exclude.

        `min_keys` (q,) are lower limits of the k-th best keys, where other shards have set them.
        """
        queries = block(read_vectors(table), self.metric)
        excluded = excluded_pairs(shard.metadata, table, self.exclude_by)
        return QueryBatch(queries, table["row"].to_numpy(), min_keys, excluded, self.min_key)


def queries_per_block(dimension: int, top_k: int, memory: int) -> int:
    """Return the number of queries per block: 16,000 at dimension 512 and k 10, memory allowing."""
    available = min(_BLOCK_BYTES, memory // _SHARES)
    return max(1, available // (4 * dimension + _CANDIDATE_BYTES * top_k))


def candidates_path(probing: Probing, shard: int, number: int) -> str:
    """Return the path of the candidates of a shard for a block."""
    return f"{WORK_FOLDER}candidates/{probing.name}/{shard:05d}-{number:05d}.parquet"


def exact_path(look: int, shard: int, number: int) -> str:
    """Return the path of a shard's exact candidates for the queries of a block that a look adds."""
    return f"{WORK_FOLDER}exact/{look}/{shard:05d}-{number:05d}.parquet"


def read_exact_candidates(task: SearchTask, number: int) -> Iterator[pa.Table]:
    """Yield the exact candidates of each shard for the sampled queries of a block."""
    for shard in task.shards:
        for path, _, _ in task.exact_outputs(shard, [number]):
            yield read_intermediate(task.output, path)


def expanded_queries_path(number: int) -> str:
    """Return the path of the expanded query vectors of a block."""
    return f"{WORK_FOLDER}expanded/{number:05d}.parquet"


def probed_lists_path(probing: Probing, number: int) -> str:
    """Return the path of the lists that the queries of a block read."""
    return f"{WORK_FOLDER}lists/{probing.name}/{number:05d}.parquet"


def write_probed_lists(task: SearchTask, number: int) -> int:
    """Write the lists that each query of a block reads; return the block's number."""
    path = probed_lists_path(task.probing, number)
    if not task.output.exists(path):
        measure = assignment_metric(task.metric)
        trained = deserialize_index(
            finished_output.read_verified(task.index, task.manifest.files[TRAINED])
        )
        queries = block(read_vectors(task.query_block(number)), measure)
        lists = choose_lists(queries, block(read_centroids(trained), measure), task.probing)
        counts = np.count_nonzero(lists >= 0, axis=1)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        values = pa.array(lists[lists >= 0].astype(np.int32))
        table = pa.table({"lists": pa.ListArray.from_arrays(pa.array(offsets), values)})
        task.output.put_new(path, checksummed_parquet(table))
    return number


def read_probed_lists(task: SearchTask, number: int) -> NDArray[np.int64]:
    """Return the lists that the queries of a block read, (q, width), padded with -1 at the end."""
    table = read_intermediate(task.output, probed_lists_path(task.probing, number))
    column = table["lists"].combine_chunks()
    counts = np.diff(column.offsets.to_numpy())
    lists = np.full((len(counts), int(counts.max(initial=0))), -1, np.int64)
    lists[np.arange(lists.shape[1]) < counts[:, None]] = column.values.to_numpy()
    return lists


def shares_per_shard(task: SearchTask, workers: int) -> int:
    """Return how many tasks search each shard: more than 1 where shards are fewer than workers.

    Each task reads the shard and searches it for some of the blocks. The tasks of a shard together
    use no more than the memory of one task; vectors count twice, as in one task.
    """
    sizes = [task.manifest.files[shard_path(number)].size for number in task.shards]
    fitting = task.memory // max(1, 2 * max(sizes, default=1))
    return max(1, min(len(task.query_chunks), workers // max(1, len(sizes)), fitting))


def search_shard(task: SearchTask, number: int, share: int = 0, shares: int = 1) -> int:
    """Search a shard for every `shares`-th block from `share` on; write missing candidates.

    Return the number of all blocks.
    """
    existing = {
        entry.path for entry in task.output.entries(f"{WORK_FOLDER}candidates/{task.probing.name}")
    }
    existing |= {entry.path for entry in task.output.entries(f"{WORK_FOLDER}exact")}
    search = _ShardSearch(task, number, existing)
    for block_number in range(share, len(task.query_chunks), shares):
        path = candidates_path(task.probing, number, block_number)
        missing_exact = [
            output
            for output in task.exact_outputs(number, [block_number])
            if output[0] not in existing
        ]
        if path in existing and not missing_exact:
            continue
        task.heartbeat()
        queries = task.query_block(block_number)
        if path not in existing:
            candidates, read = search.search_block(queries, block_number)
            task.output.put_new(path, checksummed_parquet(candidates, read.to_metadata()))
        for exact_file, look, _ in missing_exact:
            sampled = _filter_queries(queries, "row", task.sampled_rows(look, block_number))
            known = [read_intermediate(task.output, path, ["query", "key"])]
            known += _known_candidates(task, number, block_number, existing)
            parts = [_filter_queries(part, "query", sampled["row"].to_numpy()) for part in known]
            min_keys = kth_best_keys(parts, task.top_k, sampled["row"].to_numpy())
            candidates = search.search_lists(sampled, None, min_keys)
            task.output.put_new(exact_file, checksummed_parquet(candidates))
    return len(task.query_chunks)


def local_lists(lists: NDArray[np.int64], shard_lists: ShardLists) -> NDArray[np.int64]:
    """Return the numbers in a shard of the lists that queries read, (q, width).

    Lists of other shards are left out, so that each query has its lists in the same order as
    before, padded with -1 at the end.
    """
    first, last = shard_lists.first_list, shard_lists.last_list
    local = np.where((lists >= first) & (lists < last), lists - first, -1)
    order = np.argsort(local < 0, axis=1, kind="stable")
    width = int((local >= 0).sum(1).max(initial=0))
    return np.take_along_axis(local, order[:, :width], 1)


def index_lists(candidates: pa.Table, shard: Shard) -> pa.Table:
    """Return the candidates of a shard with their lists as numbered in the index."""
    position = candidates.column_names.index("list")
    lists = pc.add(candidates["list"], pa.scalar(shard.first_list, pa.int32()))
    return candidates.set_column(position, candidates.schema.field(position), lists)


class _ShardSearch:
    """Searches one shard block by block; it is read when a query first needs it."""

    def __init__(self, task: SearchTask, number: int, existing: set[str]) -> None:
        self._task, self._number, self._existing = task, number, existing

    @cached_property
    def _lists(self) -> ShardLists:
        return self._task.lists_of_shard(self._number)

    @cached_property
    def _searcher(self) -> ShardSearcher:
        task = self._task
        product = choose_search_product(task.device)
        return ShardSearcher(task.open_shard(self._number), product, task.cache_bytes)

    def search_block(self, queries: pa.Table, number: int) -> tuple[pa.Table, ReadCounts]:
        """Return the candidates of the shard for a block, and what its queries read."""
        task, nlist = self._task, int(self._task.manifest.counts["nlist"])
        lists = local = None
        positions = np.arange(len(queries))
        if not task.reads_all_lists:
            lists = read_probed_lists(task, number)
            local = local_lists(lists, self._lists)
            positions = np.flatnonzero((local >= 0).any(1))
            local = local[positions]
        if self._lists.rows == 0 or len(positions) == 0:
            return CANDIDATES_SCHEMA.empty_table(), count_read(None, nlist, lists, len(queries))
        known = _known_candidates(task, self._number, number, self._existing)
        min_keys = kth_best_keys(known, task.top_k, queries["row"].to_numpy())
        if len(positions) < len(queries):
            queries = queries.take(pa.array(positions))
        candidates = self.search_lists(queries, local, min_keys[positions])
        sizes = self._searcher.shard.list_sizes
        rows = len(positions) * sizes.sum() if local is None else np.append(sizes, 0)[local].sum()
        count = len(positions) if lists is None else len(lists)
        return candidates, count_read(int(rows), nlist, lists, count)

    def search_lists(
        self, queries: pa.Table, local: NDArray[np.int64] | None, min_keys: Float64
    ) -> pa.Table:
        """Return the candidates of some queries in their lists, (q, width), or in all.

        `min_keys` (q,) are lower limits of the k-th best keys.
        """
        if self._lists.rows == 0:
            return CANDIDATES_SCHEMA.empty_table()
        searcher = self._searcher
        batch = self._task.query_batch(searcher.shard, queries, min_keys)
        return index_lists(searcher.search(batch, local, self._task.top_k), searcher.shard)


def _filter_queries(table: pa.Table, column: str, rows: NDArray[np.int64]) -> pa.Table:
    """Return the rows of a table that belong to queries with some `rows` in the query store."""
    return table.filter(pc.is_in(table[column], pa.array(rows)))


def _known_candidates(
    task: SearchTask, shard: int, number: int, existing: set[str]
) -> list[pa.Table]:
    """Return the candidates that up to `_KNOWN_SHARDS` other shards have for a block."""
    paths = [
        candidates_path(task.probing, other_shard, number)
        for other_shard in task.shards
        if other_shard != shard
    ]
    paths = [path for path in paths if path in existing][:_KNOWN_SHARDS]
    return [read_intermediate(task.output, path, ["query", "key"]) for path in paths]


def read_intermediate(output: Folder, path: str, columns: list[str] | None = None) -> pa.Table:
    """Return a checksummed Parquet file of an earlier step; Damaged if it was altered."""
    return read_checksummed_parquet(output, path, columns)
