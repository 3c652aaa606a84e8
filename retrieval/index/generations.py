"""Generations of an index: groups of parts of the store that were indexed together.

    INDEX/generations/00000.parquet   the parts that the generation covers: table GENERATION
    INDEX/generations/00000.json      the lists of each of its shards

The first generation covers the store as it was when the index was built, each later one the parts
that were added since. The first file is written before any work and fixes what the generation
covers; the second one is written once all its rows are assigned to lists. Shards are numbered over
all generations. If the store no longer has a part that a generation covers (it was compacted), or
if there would be more than `MAX_GENERATIONS`, all are removed and one is built in their place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import IndexPlan
from retrieval.core.schemas import WORK_FOLDER
from retrieval.storage.checksum import (
    checksummed_json,
    checksummed_parquet,
    parquet_metadata,
    read_checksummed_json,
    verify_checksum,
)
from retrieval.storage.finished_output import MANIFEST
from retrieval.storage.local import Folder
from retrieval.store.reader import Store

MAX_GENERATIONS = 8
"""Generations of an index. A list is split into a piece for each, and the products of short pieces
cost more; one more generation and all rows are indexed again around the same centroids."""

MIN_RUN_ROWS = 1 << 14
"""Rows of the smallest run that is worth a task and a file."""

_MIN_RUNS = 64  # runs of a large generation, so that all workers are busy
_RUN_SHARE = 8  # of the memory of a task, an eighth for the rows of a run
_MORE_SHARDS = 4  # a quarter more shards at most, so that whole lists fit
_FOLDERS = ("generations", "shards", f"{WORK_FOLDER}runs")
_PARTS = re.compile(r"generations/(\d{5})\.parquet")
_REMEDY = "make the index again with --overwrite"


@dataclass(frozen=True)
class Generation:
    """The parts of the store that are indexed together, and the state of the store then."""

    number: int
    sha256: str  # of the file that lists the parts
    parts: pa.Table  # GENERATION
    segments: int  # segments of the store whose deletions were known

    @property
    def rows(self) -> int:
        """Return the number of rows of the parts, deleted ones included."""
        return int(pc.sum(self.parts["rows"]).as_py() or 0)

    def runs(self, rows_per_run: int) -> list[tuple[int, int]]:
        """Return the positions first <= position < last of the parts of each run.

        A run has at most `rows_per_run` rows, or those of one chunk; the parts of a chunk, whose
        rows interleave, are in one run.
        """
        chunks = self.parts["chunk"].to_numpy()
        ends = np.append(np.flatnonzero(np.diff(chunks)) + 1, len(chunks))
        totals = np.cumsum(self.parts["rows"].to_numpy())[ends - 1]  # rows up to each end
        runs, first, rows = [], 0, 0
        for number, (end, total) in enumerate(zip(ends.tolist(), totals.tolist(), strict=True)):
            is_last = number == len(ends) - 1
            if is_last or totals[number + 1] - rows > rows_per_run:
                runs.append((first, end))
                first, rows = end, total
        return runs

    def store_of(self, store: Store) -> Store:
        """Return the store with the deletions that were known when the generation was begun.

        An interrupted build thus continues with the same rows, whatever was deleted since.
        """
        return replace(store, deleting_segments=self.segments)


@dataclass(frozen=True)
class ShardLists:
    """The rows of a shard in its generation: those of the lists first_list <= list < last_list.

    A list that is too large for one shard continues in the next ones: `skipped` is the number of
    rows of `first_list` that are in earlier shards, and `rows` that of this shard.
    """

    first_list: int
    last_list: int
    skipped: int
    rows: int


def generation_parts_path(number: int) -> str:
    """Return the path of the parts that a generation covers."""
    return f"generations/{number:05d}.parquet"


def generation_shards_path(number: int) -> str:
    """Return the path of the lists of the shards of a generation."""
    return f"generations/{number:05d}.json"


def claim_generations(folder: Folder, store: Store) -> list[Generation]:
    """Return the generations of an index; begin one where the store has parts that none covers.

    Generations that the store no longer has, or that are too many, are removed with all shards.
    """
    generations = _read_generations(folder)
    is_complete = [generation.number for generation in generations] == list(range(len(generations)))
    new = _new_parts(store, generations)
    if (
        not is_complete  # an earlier removal was interrupted
        or (not generations and _has_files(folder))
        or not _has_all_parts(store, generations)
        or (len(new) and len(generations) >= MAX_GENERATIONS)
    ):
        _remove_all(folder, generations)
        generations, new = [], _new_parts(store, [])
    while len(new):
        metadata = {"segments": str(len(store.segments))}
        path = generation_parts_path(len(generations))
        folder.put_new(path, checksummed_parquet(new.combine_chunks(), metadata))
        # another run may have begun it from another state of the store
        generations.append(_read_generation(folder, len(generations)))
        new = _new_parts(store, generations)
    return generations


def _read_generations(folder: Folder) -> list[Generation]:
    matches = [_PARTS.fullmatch(entry.path) for entry in folder.entries("generations")]
    return [
        _read_generation(folder, n) for n in sorted(int(match[1]) for match in matches if match)
    ]


def _read_generation(folder: Folder, number: int) -> Generation:
    path = generation_parts_path(number)
    data = folder.read(path)
    verify_checksum(data, folder.uri(path), _REMEDY)
    segments = int(parquet_metadata(data)["segments"])
    parts = pq.read_table(pa.BufferReader(data))
    return Generation(number, hashlib.sha256(data).hexdigest(), parts, segments)


def _new_parts(store: Store, generations: Sequence[Generation]) -> pa.Table:
    """Return the parts of the store that no generation covers: table GENERATION."""
    parts = store.parts
    for generation in generations:
        covered = pc.is_in(parts["path"], value_set=generation.parts["path"].combine_chunks())
        parts = parts.filter(pc.invert(covered))
    return parts


def _has_all_parts(store: Store, generations: Sequence[Generation]) -> bool:
    """Return whether the store still has all parts of the generations, unchanged."""
    existing = _identities(store.parts)
    return all(
        pc.all(pc.is_in(_identities(generation.parts), value_set=existing), min_count=0).as_py()
        for generation in generations
    )


def _identities(parts: pa.Table) -> pa.Array:
    """Return a text for each part that names its path and its bytes."""
    joined = pc.binary_join_element_wise(parts["path"], parts["sha256"], ":")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _has_files(folder: Folder) -> bool:
    return any(True for below in _FOLDERS for _ in folder.entries(below))


def _remove_all(folder: Folder, generations: Sequence[Generation]) -> None:
    """Remove all generations and shards, the manifest first.

    The first generation goes before the others, so that an interrupted removal is continued.
    """
    folder.delete(MANIFEST)
    for generation in generations:
        folder.delete(generation_parts_path(generation.number))
    for below in _FOLDERS:
        for entry in list(folder.entries(below)):
            folder.delete(entry.path)


def rows_per_run(plan: IndexPlan, memory: int, rows: int) -> int:
    """Return the number of rows of a run of a generation of `rows` rows.

    `memory` is what one task may use, in bytes.
    """
    fitting = memory // _RUN_SHARE // max(1, plan.bytes_per_vector)
    return max(1, min(fitting, max(MIN_RUN_ROWS, rows // _MIN_RUNS)))


def cut_lists(counts: NDArray[np.int64], rows_per_shard: int, capacity: int) -> list[ShardLists]:
    """Return the lists of each shard of a generation whose lists have `counts` rows.

    Shards have about `rows_per_shard` rows each, as evenly as whole lists allow; they cover all
    lists, empty ones too. None has more than `capacity` rows: a larger list is split.
    """
    positions = np.concatenate([[0], np.cumsum(counts)])  # of the first row of each list
    rows = int(positions[-1])
    fewest = max(1, -(-rows // min(rows_per_shard, capacity)))
    for shards in range(fewest, fewest + fewest // _MORE_SHARDS + 2):
        edges = _even_edges(positions, shards)
        if np.diff(edges).max(initial=0) <= capacity:
            break
    edges = [*_split(edges, positions, capacity), rows]
    return [_shard_lists(positions, first, last) for first, last in pairwise(edges)] or [
        ShardLists(0, len(counts), 0, 0)
    ]


def _even_edges(positions: NDArray[np.int64], shards: int) -> list[int]:
    """Return the first rows of `shards` shards of whole lists, about equally large, and the end."""
    rows = int(positions[-1])
    targets = np.arange(1, shards) * rows // shards
    after = np.searchsorted(positions, targets)
    before = np.maximum(after - 1, 0)
    is_before = targets - positions[before] <= positions[after] - targets
    cuts = set(positions[np.where(is_before, before, after)].tolist())
    return [0, *sorted(cuts - {0, rows}), rows]


def _split(edges: Sequence[int], positions: NDArray[np.int64], capacity: int) -> Iterator[int]:
    """Iterate over the first row of each shard; shards of too many rows are divided."""
    for start, last in pairwise(edges):
        first = start
        while last - first > capacity:
            yield first
            # the last whole list that fits, or a part of a list where none does
            fitting = int(positions[np.searchsorted(positions, first + capacity, "right") - 1])
            first = fitting if fitting > first else first + capacity
        if last > first:
            yield first


def _shard_lists(positions: NDArray[np.int64], first: int, last: int) -> ShardLists:
    """Return the lists that hold the rows first <= position < last of a generation.

    Empty lists before the first row belong to it, those after the last row of the last list too.
    """
    nlist = len(positions) - 1
    first_list = int(np.searchsorted(positions, first, "right")) - 1
    skipped = first - int(positions[first_list])
    if skipped == 0:  # empty lists in front
        first_list = int(np.searchsorted(positions, first))
    last_list = nlist if last == positions[-1] else int(np.searchsorted(positions, last))
    return ShardLists(first_list, last_list, skipped, last - first)


def write_shard_lists(
    folder: Folder, generation: Generation, shards: Sequence[ShardLists]
) -> list[ShardLists]:
    """Write the lists of the shards of a generation, or return those that were written before."""
    path = generation_shards_path(generation.number)
    values = {"parts_sha256": generation.sha256, "shards": [asdict(shard) for shard in shards]}
    folder.put_new(path, checksummed_json(values))
    written = read_shard_lists(folder, generation)
    assert written is not None
    return written


def read_shard_lists(folder: Folder, generation: Generation) -> list[ShardLists] | None:
    """Return the lists of the shards of a generation, or None while rows are being assigned.

    Raises Damaged where the file was altered or belongs to another generation.
    """
    path = generation_shards_path(generation.number)
    try:
        values = read_checksummed_json(folder, path, _REMEDY)
    except FileNotFoundError:
        return None
    if values.get("parts_sha256") != generation.sha256:
        raise Damaged(f"{folder.uri(path)} was altered; {_REMEDY}")
    return [ShardLists(**shard) for shard in values["shards"]]
