"""Decoding in tasks of Ray Data on any node, for workers that only embed.

A task reads and decodes one batch of one chunk and returns it as one block. Ray Data runs no more
tasks than the object store has room for, and delivers the blocks in the order of the chunks, so
that the driver can send references to all blocks of a chunk to one worker. The pixels go from the
node of the task to that of the worker.
"""

from __future__ import annotations

import dataclasses
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from jobs.cluster.actor_pool import ACTOR_CPUS, ItemWithBlocks
from jobs.cluster.worker_failures import begin_item
from retrieval.core.errors import LookalikeError
from retrieval.core.records import Chunk, Transform
from retrieval.embedding.decoded_batch import decode_batch, encode_error, images_per_batch
from retrieval.embedding.embed_batch import DecodeSettings
from retrieval.embedding.write_chunk import read_lines
from retrieval.storage.local import Folder
from retrieval.store.layout import part_path

_TASKS_PER_DATASET = 8192
"""Tasks that Ray Data plans at once, since the plan is in the memory of the driver."""


@dataclass(frozen=True)
class _Task:
    """The decoding of one batch: the lines of a chunk from `first` on."""

    chunk: Chunk
    first: int
    item: int  # its number in the failure log
    name: str  # in messages


@dataclass(frozen=True)
class _Shared:
    """What all tasks need."""

    folder: Folder
    transform: Transform
    decoding: DecodeSettings
    size: int  # largest number of lines of a batch
    failure_log: Any


class DecodeStage:
    """The tasks that decode the chunks of a listing."""

    def __init__(
        self, folder: Folder, chunks: list[Chunk], transform: Transform, decoding: DecodeSettings,
        tasks: int,
    ) -> None:  # fmt: skip
        """Plan the batches; `tasks` is the number of tasks that may run at once."""
        self._folder, self._chunks, self._transform = folder, chunks, transform
        self._decoding, self._tasks = decoding, tasks
        self._size = images_per_batch(transform)
        counts = [-(-(chunk.last - chunk.first) // self._size) for chunk in chunks]
        self._starts = [0, *accumulate(counts)]  # first batch of each chunk
        # the inputs of tasks whose blocks may be lost with a node while workers still need them
        self._datasets: deque[Any] = deque(maxlen=2)

    @property
    def count(self) -> int:
        """Return the number of batches of all chunks, which is that of the tasks."""
        return self._starts[-1]

    def batch_name(self, batch: int) -> str:
        """Return the name of a batch in messages; batches are numbered through all chunks."""
        number = bisect_right(self._starts, batch) - 1
        chunk = self._chunks[number]
        first = chunk.base + chunk.first + (batch - self._starts[number]) * self._size
        last = min(first + self._size, chunk.base + chunk.last) - 1
        return f"rows {first} to {last} of chunk {chunk.number}"

    def items_with_blocks(self, failure_log: Any) -> Iterator[ItemWithBlocks]:
        """Decode the chunks; yield their numbers, in order, with references to their batches."""
        shared = _Shared(
            self._folder, self._transform, self._decoding, self._size, failure_log
        )  # fmt: skip
        first = 0
        while first < len(self._chunks):
            last = first + 1
            limit = self._starts[first] + _TASKS_PER_DATASET
            while last < len(self._chunks) and self._starts[last + 1] <= limit:
                last += 1
            tasks = [task for number in range(first, last) for task in self._tasks_of(number)]
            self._datasets.append(_plan(tasks, shared, self._tasks))
            bundles = self._datasets[-1].iter_internal_ref_bundles()
            blocks = (block for bundle in bundles for block in bundle.block_refs)
            for number in range(first, last):
                count = self._starts[number + 1] - self._starts[number]
                yield number, [next(blocks) for _ in range(count)]
            next(blocks, None)  # there is none; the dataset ends
            first = last

    def _tasks_of(self, number: int) -> list[_Task]:
        batches = range(self._starts[number], self._starts[number + 1])
        return [
            _Task(
                self._chunks[number], position * self._size, len(self._chunks) + batch,
                self.batch_name(batch),
            )
            for position, batch in enumerate(batches)
        ]  # fmt: skip


def _plan(tasks: list[_Task], shared: _Shared, limit: int) -> Any:
    """Return a dataset with one block per task, in the same order; at most `limit` run at once."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    rows = [dataclasses.asdict(task) for task in tasks]
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_task,
        batch_size=None,  # one task per row
        batch_format="pyarrow",
        fn_args=(shared,),
        num_cpus=ACTOR_CPUS,
        compute=ray.data.TaskPoolStrategy(size=limit),
    )


def decode_task(rows: pa.Table, shared: _Shared) -> pa.Table:
    """Decode the batch of a task, which is the only row of a table.

    Batches of a chunk whose part exists are empty, since the worker does not read them.
    """
    (row,) = rows.to_pylist()
    task = _Task(**{**row, "chunk": Chunk(**row["chunk"])})
    try:
        if shared.folder.exists(part_path(task.chunk)):
            return decode_batch([], shared.transform, shared.decoding)
        attempt = begin_item(shared.failure_log, task.item, task.name)
        items = read_lines(shared.folder, task.chunk).slice(task.first, shared.size).to_pylist()
        batch = decode_batch(items, shared.transform, shared.decoding, attempt)
    except LookalikeError as error:
        return encode_error(error)
    shared.failure_log.end.remote(task.item)
    return batch
