"""Search one shard of the index for all query blocks and write the candidates it finds.

    work/parts.json                            in how many parts a shard searches a block
    work/lists/PROBING/BLOCK                   queries of a block, by shard, and the lists they read
    work/candidates/PROBING/SHARD-BLOCK-PART   candidates of a shard for a part of its queries
    work/exact/LOOK/SHARD-BLOCK-PART           exact candidates of queries that a look samples

PROBING names the choice of lists (`index/probing.py`). A shard holds some lists only: it reads and
searches the queries that read one of them (`probed_queries.py`), and is not opened for a block
without any. Where workers are more than shards and blocks, the queries of a shard and block are cut
into parts; the number is written before any search, so that a resumed run has the same parts.
Existing files are kept, so a killed run continues. A shard skips rows that are surely below the
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
from retrieval.core.schemas import WORK_FOLDER, Metric
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.generations import ShardLists
from retrieval.index.kmeans import assignment_metric
from retrieval.index.probing import Probing, choose_lists
from retrieval.index.runs import do_nothing
from retrieval.index.shard import (
    Shard,
    open_shard,
    read_lists_of_shard,
    read_lists_of_shards,
    shard_path,
)
from retrieval.index.train import TRAINED
from retrieval.search.candidates import EMPTY, Candidates, kth_best_keys
from retrieval.search.candidates_file import (
    make_limits,
    read_candidates,
    read_limits,
    write_candidates,
)
from retrieval.search.exclusions import excluded_pairs
from retrieval.search.filters import Filter, matching_rows
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.search.probed_queries import (
    ProbedQueries,
    read_all_lists,
    read_counts_of_lists,
    read_probed_queries,
    read_queries_by_row,
    write_probed_queries,
)
from retrieval.search.read_counts import ReadCounts
from retrieval.storage import finished_output
from retrieval.storage.checksum import (
    checksummed_json,
    read_checksummed_json,
    read_checksummed_parquet,
)
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
_KNOWN_SHARDS = 8  # searched shards whose candidates set lower limits of the keys
_PART_QUERIES = 128  # smallest part of the queries of a block
_PARTS = f"{WORK_FOLDER}parts.json"


@dataclass(frozen=True)
class ExactOutput:
    """A file of exact candidates, of one shard, for sampled queries of a block."""

    path: str
    block: int
    part: int
    queries: NDArray[np.int64]  # their rows in the query store, ascending


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

    @cached_property
    def parts(self) -> int:
        """Return in how many parts the queries of a block are searched (`claim_parts`)."""
        try:
            return int(read_checksummed_json(self.output, _PARTS)["parts"])
        except FileNotFoundError:
            return 1

    def exact_outputs(self, shard: int, blocks: Iterable[int]) -> list[ExactOutput]:
        """Return the files of exact candidates of a shard for some blocks, of all looks so far.

        Parts of a block without a sampled query have none.
        """
        outputs = [
            ExactOutput(exact_path(look, shard, number, part), number, part, rows)
            for number in blocks
            for look in range(min(self.look + 1, len(self.looks)))
            for part, rows in enumerate(
                np.array_split(self._sampled_rows(look, number), self.parts)
            )
        ]
        return [output for output in outputs if len(output.queries)]

    def _sampled_rows(self, look: int, number: int) -> NDArray[np.int64]:
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

        The columns are `row`, `embedding` and `exclude_by`.
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
        norms = None
        if "squared_norm" in table.column_names:  # of queries that were written for the shard
            norms = table["squared_norm"].to_numpy()
        queries = block(read_vectors(table), self.metric, norms)
        excluded = excluded_pairs(shard.metadata, table, self.exclude_by)
        return QueryBatch(queries, table["row"].to_numpy(), min_keys, excluded, self.min_key)


def queries_per_block(dimension: int, top_k: int, memory: int) -> int:
    """Return the number of queries per block: 16,000 at dimension 512 and k 10, memory allowing."""
    available = min(_BLOCK_BYTES, memory // _SHARES)
    return max(1, available // (4 * dimension + _CANDIDATE_BYTES * top_k))


def candidates_path(probing: Probing, shard: int, number: int, part: int = 0) -> str:
    """Return the path of the candidates of a shard for a part of a block."""
    return f"{WORK_FOLDER}candidates/{probing.name}/{shard:05d}-{number:05d}-{part:05d}"


def candidates_paths(task: SearchTask, shard: int, number: int) -> list[str]:
    """Return the paths of the candidates of a shard for all parts of a block."""
    return [candidates_path(task.probing, shard, number, part) for part in range(task.parts)]


def read_block_candidates(task: SearchTask, number: int) -> Iterator[Candidates]:
    """Yield the candidates of each shard and part for a block."""
    for shard in task.shards:
        for path in candidates_paths(task, shard, number):
            yield read_candidates(task.output, path)


def exact_path(look: int, shard: int, number: int, part: int = 0) -> str:
    """Return the path of a shard's exact candidates for queries of a block that a look adds."""
    return f"{WORK_FOLDER}exact/{look}/{shard:05d}-{number:05d}-{part:05d}"


def read_exact_candidates(task: SearchTask, number: int) -> Iterator[Candidates]:
    """Yield the exact candidates of each shard for the sampled queries of a block."""
    for shard in task.shards:
        for output in task.exact_outputs(shard, [number]):
            yield read_candidates(task.output, output.path)


def expanded_queries_path(number: int) -> str:
    """Return the path of the expanded query vectors of a block."""
    return f"{WORK_FOLDER}expanded/{number:05d}.parquet"


def probed_lists_path(probing: Probing, number: int) -> str:
    """Return the path of the queries of a block, by shard, and the lists that they read."""
    return f"{WORK_FOLDER}lists/{probing.name}/{number:05d}"


def write_probed_lists(task: SearchTask, number: int) -> int:
    """Write the queries of a block, by shard, and their lists; return the block's number."""
    path = probed_lists_path(task.probing, number)
    if not task.output.exists(path):
        measure = assignment_metric(task.metric)
        trained = deserialize_index(
            finished_output.read_verified(task.index, task.manifest.files[TRAINED])
        )
        table = task.query_block(number)
        queries = block(read_vectors(table), measure)
        table = table.append_column("squared_norm", pa.array(queries.squared_norms))
        lists = choose_lists(queries, block(read_centroids(trained), measure), task.probing)
        shards = read_lists_of_shards(task.index, task.manifest)
        write_probed_queries(task.output, path, table, lists, shards)
    return number


def read_probed_lists(task: SearchTask, number: int) -> NDArray[np.int64]:
    """Return the lists that the queries of a block read, (q, width), padded with -1 at the end."""
    return read_all_lists(task.output, probed_lists_path(task.probing, number))


def claim_parts(task: SearchTask, workers: int) -> None:
    """Write in how many parts the queries of a block are searched, unless it is written already.

    There are more than one where shards and blocks are fewer than `workers`.
    """
    units = max(1, len(task.shards) * len(task.query_chunks))
    queries = -(-task.queries.rows // max(1, len(task.query_chunks)))
    parts = max(1, min(workers // units, queries // _PART_QUERIES))
    task.output.put_new(_PARTS, checksummed_json({"parts": parts}))


def shares_per_shard(task: SearchTask, workers: int) -> int:
    """Return how many tasks search each shard: more than 1 where shards are fewer than workers.

    Each task reads the shard and searches it for some parts of the blocks. The tasks of a shard
    together use no more than the memory of one task; vectors count twice, as in one task.
    """
    sizes = [task.manifest.files[shard_path(number)].size for number in task.shards]
    fitting = task.memory // max(1, 2 * max(sizes, default=1))
    units = len(task.query_chunks) * task.parts
    return max(1, min(units, workers // max(1, len(sizes)), fitting))


def search_shard(task: SearchTask, number: int, share: int = 0, shares: int = 1) -> int:
    """Search a shard for every `shares`-th part of a block from `share` on.

    Write missing candidates and return the number of all blocks.
    """
    existing = {
        entry.path for entry in task.output.entries(f"{WORK_FOLDER}candidates/{task.probing.name}")
    }
    existing |= {entry.path for entry in task.output.entries(f"{WORK_FOLDER}exact")}
    search, blocks = _ShardSearch(task, number, existing), range(len(task.query_chunks))
    parts = [(block_number, part) for block_number in blocks for part in range(task.parts)]
    for block_number, part in parts[share::shares]:
        if candidates_path(task.probing, number, block_number, part) not in existing:
            task.heartbeat()
            search.search_part(block_number, part)
        for output in task.exact_outputs(number, [block_number]):
            if output.part == part and output.path not in existing:
                task.heartbeat()
                search.search_exactly(output)
    return len(blocks)


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


def index_lists(candidates: Candidates, shard: Shard) -> Candidates:
    """Return the candidates of a shard with their lists as numbered in the index."""
    pairs = candidates.pairs
    position = pairs.column_names.index("list")
    lists = pc.add(pairs["list"], pa.scalar(shard.first_list, pa.int32()))
    pairs = pairs.set_column(position, pairs.schema.field(position), lists)
    return dataclasses.replace(candidates, pairs=pairs)


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

    def search_part(self, number: int, part: int) -> None:
        """Write the candidates of the shard for a part of a block, and what its queries read."""
        queries, read = self._read_queries(number, part)
        rows, candidates = queries.table["row"].to_numpy(), EMPTY
        limits = self._read_limits(number, rows)
        if self._lists.rows and len(rows):
            local = None
            if not self._task.reads_all_lists:
                local = np.where(queries.lists < 0, -1, queries.lists - self._lists.first_list)
            candidates = self._search_lists(queries.table, local, limits)
            kth_keys = kth_best_keys([candidates.pairs], self._task.top_k, rows)
            limits = np.maximum(limits, kth_keys)
            sizes = self._searcher.shard.list_sizes
            count = len(rows) * sizes.sum() if local is None else np.append(sizes, 0)[local].sum()
            read = dataclasses.replace(read, rows=int(count))
        path = candidates_path(self._task.probing, self._number, number, part)
        write_candidates(self._task.output, path, candidates, make_limits(rows, limits), read)
        self._existing.add(path)

    def search_exactly(self, output: ExactOutput) -> None:
        """Write the candidates of the shard among all lists for sampled queries."""
        task, candidates = self._task, EMPTY
        if self._lists.rows:
            if task.reads_all_lists:
                table = task.query_block(output.block)
                table = table.filter(pc.is_in(table["row"], pa.array(output.queries)))
            else:
                path = probed_lists_path(task.probing, output.block)
                table = read_queries_by_row(task.output, path, output.queries).table
            limits = self._read_limits(output.block, table["row"].to_numpy())
            candidates = self._search_lists(table, None, limits)
        write_candidates(task.output, output.path, candidates)

    def _read_queries(self, number: int, part: int) -> tuple[ProbedQueries, ReadCounts]:
        """Return a part of the queries of a block that read the shard, and counts of the block.

        The first part counts, and the others count nothing.
        """
        task = self._task
        if task.reads_all_lists:
            table, nlist = task.query_block(number), int(task.manifest.counts["nlist"])
            count = len(table)
            first, last = part * count // task.parts, (part + 1) * count // task.parts
            no_lists = np.empty((last - first, 0), np.int64)
            queries = ProbedQueries(table.slice(first, last - first), no_lists)
            read = ReadCounts(count, count * nlist, nlist, 0)
        else:
            path = probed_lists_path(task.probing, number)
            queries = read_probed_queries(task.output, path, self._number, part, task.parts)
            read = ReadCounts(*read_counts_of_lists(task.output, path), 0)
        return queries, read if part == 0 else ReadCounts(0, 0, 0, 0)

    def _read_limits(self, number: int, rows: NDArray[np.int64]) -> Float64:
        """Return lower limits of the k-th best keys of queries with ascending rows, (q,).

        They are those of this shard and of the nearest ones that were searched for the block.
        """
        task = self._task
        by_distance = sorted(task.shards, key=lambda shard: abs(shard - self._number))
        paths = [path for shard in by_distance for path in candidates_paths(task, shard, number)]
        known = [path for path in paths if path in self._existing]
        return read_limits(task.output, known[: _KNOWN_SHARDS * task.parts], rows)

    def _search_lists(
        self, queries: pa.Table, local: NDArray[np.int64] | None, min_keys: Float64
    ) -> Candidates:
        """Return the candidates of some queries in their lists, (q, width), or in all.

        `min_keys` (q,) are lower limits of the k-th best keys.
        """
        searcher = self._searcher
        batch = self._task.query_batch(searcher.shard, queries, min_keys)
        return index_lists(searcher.search(batch, local, self._task.top_k), searcher.shard)


def read_intermediate(output: Folder, path: str, columns: list[str] | None = None) -> pa.Table:
    """Return a checksummed Parquet file of an earlier step; Damaged if it was altered."""
    return read_checksummed_parquet(output, path, columns)
