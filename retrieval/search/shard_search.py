"""The step of a ranking: one shard against every block of queries, each answer put once.

    work/lists/NPROBE/BLOCK.parquet              the lists that each query of a block reads
    work/candidates/NPROBE/SHARD-BLOCK.parquet   what the shard found for the block
    work/exact/LOOK/SHARD-BLOCK.parquet          for queries that a look samples, all lists read

A shard is read once, or once a task that shares it; an answer that is there already is not made
again. What other shards have answered spares work: a row that is surely below their k-th best is
left out. So an answer may depend on what was there before it, and the best of all answers does not.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk
from retrieval.core.schemas import WORK, Metric
from retrieval.index.build_shard import nothing
from retrieval.index.faiss_io import centroids_of, from_bytes
from retrieval.index.kmeans import list_metric
from retrieval.index.shard import Shard, open_shard, shard_path
from retrieval.index.train import TRAINED
from retrieval.search.candidates import kth_keys
from retrieval.search.exclusions import barred_pairs
from retrieval.search.ivf_search import Asked, Searcher
from retrieval.storage import finished_output
from retrieval.storage.checksum import is_sealed, sealed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.reader import Store, vectors_of
from retrieval.vectors.int8_matmul import search_product
from retrieval.vectors.scoring import Float64, block
from retrieval.vectors.topk import closest

Mask = NDArray[np.bool_]
_BLOCK_BYTES = 1 << 26  # of a block's queries and candidates
_SHARES = 8  # a task's memory is half the shard's; a block, and lists kept ready, get an eighth
_CANDIDATE_BYTES = 200  # of a candidate, on its way to an answer
_KNOWN = 4  # answers of other shards that are looked at


@dataclass(frozen=True)
class Task:
    """What answering needs beside the shard's number."""

    index: Folder
    manifest: Manifest
    codes: str | None  # None: the codes are not the vectors, and do not decide
    metric: Metric
    queries: Store
    matches: Folder
    nprobe: int
    top_k: int
    looks: tuple[NDArray[np.int64], ...]  # rows of queries that each look adds to the sample
    tell: Callable[[], None] = nothing  # called for each block, as a sign of life
    vectors: Store | None = None  # where the codes are not the vectors: the store that has them
    product: str = "cpu"  # what multiplies: cpu, cuda
    allowed: Callable[[pa.Table], Mask] | None = None  # rows of a shard that may be a match
    bars: str | None = None  # what bars a match: the query's own row, or its sha256
    least: float = -np.inf  # keys below it are no match
    expanded: bool = False  # whether queries have vectors of their own (`gather.py`)
    block_rows: int = 1  # queries of a block, unless a chunk of them has more
    memory: int = 1 << 32  # bytes that a task may hold
    scratch: str | None = None  # local folder: the shard at hand, where that is in a bucket
    look: int = 0  # the look at hand: all queries up to it are also searched exactly

    @cached_property
    def sample(self) -> NDArray[np.int64]:
        """Return the rows, ascending, of the queries that are also searched exactly."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *self.looks[: self.look + 1]]))

    def exact_blocks(self, shard: int, blocks: Iterable[int]) -> list[tuple[str, int, int]]:
        """Return the path, look and block of each exact answer of a shard up to the look at hand.

        Blocks without a query of a look have none.
        """
        return [
            (exact_path(look, shard, number), look, number)
            for number in blocks
            for look in range(min(self.look + 1, len(self.looks)))
            if len(self.sampled(look, number))
        ]

    def sampled(self, look: int, number: int) -> NDArray[np.int64]:
        """Return the rows, ascending, of the queries of a block that a look adds to the sample."""
        chunks = self.blocks[number]
        first, last = chunks[0].base + chunks[0].first, chunks[-1].base + chunks[-1].last
        rows = np.sort(self.looks[look])
        begin, end = np.searchsorted(rows, [first, last])
        return rows[begin:end]

    def open(self, number: int) -> Shard:
        """Read a shard, with what its rows are allowed."""
        shard = open_shard(self.index, self.manifest, number, self.metric, self.codes, self.scratch)
        if self.allowed is None:
            return shard
        return dataclasses.replace(shard, allowed=self.allowed(shard.metadata))

    @property
    def shards(self) -> range:
        """Give the numbers of the shards."""
        return range(int(self.manifest.counts["shards"]))

    @property
    def room(self) -> int:
        """Give the bytes that lists may take which stay ready to be met again."""
        return self.memory // _SHARES

    @cached_property
    def blocks(self) -> list[list[Chunk]]:
        """Group the chunks of the queries, so that a block is worth a product; by size alone."""
        blocks: list[list[Chunk]] = []
        held = self.block_rows
        for chunk in self.queries.chunks:
            count = chunk.last - chunk.first
            if held + count > self.block_rows:
                blocks.append([])
                held = 0
            blocks[-1].append(chunk)
            held += count
        return blocks

    def plain_block(self, number: int) -> pa.Table:
        """Give the queries of a block as their store has them."""
        return pa.concat_tables([self.queries.chunk_rows(chunk) for chunk in self.blocks[number]])

    def block(self, number: int) -> pa.Table:
        """Give the queries of a block, with the vectors that are asked."""
        table = self.plain_block(number)
        if not self.expanded:
            return table
        place = table.column_names.index("embedding")
        return table.set_column(
            place, "embedding", read_answer(self.matches, expanded_path(number))["embedding"]
        )

    def asked(self, shard: Shard, table: pa.Table, floors: Float64 | None = None) -> Asked:
        """Make queries ready for a shard."""
        queries = block(vectors_of(table), self.metric)
        barred = barred_pairs(shard.metadata, table, self.bars)
        return Asked(queries, table["row"].to_numpy(), floors, barred, self.least)


def block_rows(dimension: int, top_k: int, memory: int) -> int:
    """Say how many queries are a block: 16,000 of 512 numbers and 10 matches, if memory allows."""
    room = min(_BLOCK_BYTES, memory // _SHARES)
    return max(1, room // (4 * dimension + _CANDIDATE_BYTES * top_k))


def candidates_path(nprobe: int, shard: int, number: int) -> str:
    """Give the path of what a shard found for a block."""
    return f"{WORK}candidates/{nprobe:07d}/{shard:05d}-{number:05d}.parquet"


def exact_path(look: int, shard: int, number: int) -> str:
    """Return the path of what a shard holds closest to the queries of a block that a look adds."""
    return f"{WORK}exact/{look}/{shard:05d}-{number:05d}.parquet"


def exact_answers(task: Task, number: int) -> Iterator[pa.Table]:
    """Yield what the shards hold closest to the sampled queries of a block."""
    for shard in task.shards:
        for path, _, _ in task.exact_blocks(shard, [number]):
            yield read_answer(task.matches, path)


def expanded_path(number: int) -> str:
    """Give the path of the vectors of a block's expanded queries."""
    return f"{WORK}expanded/{number:05d}.parquet"


def lists_path(nprobe: int, number: int) -> str:
    """Give the path of the lists that the queries of a block read."""
    return f"{WORK}lists/{nprobe:07d}/{number:05d}.parquet"


def put_lists(task: Task, number: int) -> int:
    """Put the lists that the queries of a block read; give the block's number."""
    path = lists_path(task.nprobe, number)
    if not task.matches.exists(path):
        measure = list_metric(task.metric)
        trained = from_bytes(finished_output.read_checked(task.index, task.manifest.files[TRAINED]))
        asked = block(vectors_of(task.block(number)), measure)
        lists = closest(asked, block(centroids_of(trained), measure), task.nprobe)
        table = pa.table({"list": lists.ravel().astype(np.int32)})
        task.matches.put_new(path, sealed_parquet(table))
    return number


def shares_of(task: Task, workers: int) -> int:
    """Say how many tasks answer from each shard, where shards are fewer than workers.

    Each reads the shard and answers some of the blocks. Together they hold no more than one task
    may, vectors twice as in one.
    """
    sizes = [task.manifest.files[shard_path(number)].size for number in task.shards]
    room = task.memory // max(1, 2 * max(sizes, default=1))
    return max(1, min(len(task.blocks), workers // max(1, len(sizes)), room))


def answer_shard(task: Task, number: int, share: int = 0, shares: int = 1) -> int:
    """Let one shard answer the blocks of queries it has not answered, or every `shares`-th of them.

    Gives the count of all blocks.
    """
    there = {entry.path for entry in task.matches.entries(f"{WORK}candidates/{task.nprobe:07d}")}
    there |= {entry.path for entry in task.matches.entries(f"{WORK}exact")}
    searcher: Searcher | None = None
    for block_number in range(share, len(task.blocks), shares):
        path = candidates_path(task.nprobe, number, block_number)
        exact = [one for one in task.exact_blocks(number, [block_number]) if one[0] not in there]
        if path in there and not exact:
            continue
        task.tell()
        searcher = searcher or _searcher(task, number)
        asked = task.block(block_number)
        if path not in there:
            known = _known(task, number, block_number, there)
            answer = _answer(task, searcher, asked, block_number, known)
            task.matches.put_new(path, sealed_parquet(answer))
        for exact_file, look, _ in exact:
            rows = pa.array(task.sampled(look, block_number))
            sampled = task.asked(searcher.shard, asked.filter(pc.is_in(asked["row"], rows)))
            answer = searcher.search(sampled, None, task.top_k)
            task.matches.put_new(exact_file, sealed_parquet(answer))
    return len(task.blocks)


def _searcher(task: Task, number: int) -> Searcher:
    """Read a shard, and choose what multiplies by the work there is."""
    shard = task.open(number)
    lists = max(1, shard.index.nlist)
    met = task.queries.rows * (task.nprobe / lists)
    product = search_product(task.product, met, len(shard.rows), shard.index.d, lists)
    return Searcher(shard, product, task.room)


def _answer(
    task: Task, searcher: Searcher, asked: pa.Table, number: int, known: list[pa.Table]
) -> pa.Table:
    lists = None
    if task.nprobe < searcher.shard.index.nlist:
        table = read_answer(task.matches, lists_path(task.nprobe, number))
        lists = table["list"].to_numpy().reshape(-1, task.nprobe).astype(np.int64)
    floors = kth_keys(known, task.top_k, asked["row"].to_numpy())
    return searcher.search(task.asked(searcher.shard, asked, floors), lists, task.top_k)


def _known(task: Task, shard: int, number: int, there: set[str]) -> list[pa.Table]:
    """Read some of what other shards have answered for a block."""
    paths = [candidates_path(task.nprobe, other, number) for other in task.shards if other != shard]
    paths = [path for path in paths if path in there][:_KNOWN]
    return [read_answer(task.matches, path, ["query", "key"]) for path in paths]


def read_answer(matches: Folder, path: str, columns: list[str] | None = None) -> pa.Table:
    """Read an answer that an earlier step put; it carries its own checksum."""
    data = matches.read(path)
    if not is_sealed(io.BytesIO(data)):
        raise Damaged(f"{matches.uri(path)} was altered; remove it and run again")
    return pq.read_table(io.BytesIO(data), columns=columns)
