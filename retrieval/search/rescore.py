"""The vectors decide: one shard's rows, streamed from the store once, against all queries.

Two things are taken from them: the exact scores of what the codes proposed, as `answer.py` puts its
own answers, and for sampled queries what the shard holds closest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.errors import Damaged, InputError
from retrieval.core.schemas import CANDIDATES, WORK, Vectors
from retrieval.index.quantized_codes import Codes
from retrieval.index.shard import read_note
from retrieval.search.candidates import best_of
from retrieval.search.exclusions import is_barred, most_barred
from retrieval.search.ivf_search import candidates_table
from retrieval.search.propose import proposed_path
from retrieval.search.shard_search import Task, candidates_path, read_answer
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.finished_output import Manifest, read_settings
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import Store, open_store, vectors_of
from retrieval.vectors.scoring import block, keys_of, pair_scores
from retrieval.vectors.topk import TopK

_PAIRS = 1 << 15  # pairs whose vectors are in memory at once: 64 MiB of 512 float32 numbers a side


def open_vectors(index: Folder, manifest: Manifest, elsewhere: str | None) -> Store:
    """Open the store that an index was made of, where its job says or where it is now."""
    place = elsewhere or str(read_settings(index)["embeddings"])
    try:
        store = open_store(open_folder(place))
    except InputError as error:
        raise InputError(
            f"{place} holds no finished store, and matches of {index.uri()} are scored from its "
            "vectors; name the store it was made of by --embeddings"
        ) from error
    if store.manifest.sha256 != manifest.counts["embeddings_sha256"]:
        raise Damaged(
            f"{place} is not the store that {index.uri()} was made of, or was changed since; index "
            "it again, or name the right one by --embeddings"
        )
    return store


def rescore(task: Task, number: int) -> int:
    """Score what one shard proposed for every block that lacks it; give the count of blocks."""
    there = {entry.path for entry in task.matches.entries(f"{WORK}candidates/{task.nprobe:07d}")}
    there |= {entry.path for entry in task.matches.entries(f"{WORK}exact")}
    blocks = range(len(task.blocks))
    found = [n for n in blocks if candidates_path(task.nprobe, number, n) not in there]
    exact = [one for one in task.exact_blocks(number, blocks) if one[0] not in there]
    if not found and not exact:
        return len(blocks)
    codes = Codes(task.open(number))
    with tempfile.TemporaryFile(dir=task.scratch) as scratch:
        wanted = _wanted(task, number, found)
        sampled = _Sampled(task, codes, exact)
        for rows, vectors in streamed(task, number):
            which = np.isin(rows, wanted, assume_unique=True)
            scratch.write(np.ascontiguousarray(vectors[which]).tobytes())
            sampled.push(rows, vectors)
        scratch.flush()
        for block_number in found:
            task.tell()
            answer = _scored(task, number, block_number, codes, wanted, scratch)
            path = candidates_path(task.nprobe, number, block_number)
            task.matches.put_new(path, sealed_parquet(answer))
    sampled.put()
    return len(blocks)


def _wanted(task: Task, number: int, blocks: Sequence[int]) -> NDArray[np.int64]:
    """Give the rows of a shard that are proposed for some blocks, each once, ascending."""
    rows = np.empty(0, np.int64)
    for block_number in blocks:
        proposed = read_answer(task.matches, proposed_path(task.nprobe, number, block_number))
        rows = np.union1d(rows, proposed["row"].to_numpy())
    return rows


def streamed(task: Task, number: int) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Give the live rows of a shard, part by part, and their vectors as they are stored."""
    assert task.vectors is not None
    for extent in read_note(task.index, number).extents:
        task.tell()
        table = task.vectors.part_rows(extent.path, extent.first, extent.last)
        if len(table):
            yield table["row"].to_numpy(), vectors_of(table)


def _scored(
    task: Task, number: int, block_number: int, codes: Codes,
    wanted: NDArray[np.int64], scratch: Any,
) -> pa.Table:  # fmt: skip
    """Score the candidates of one block: its `top_k` best of each query, table CANDIDATES."""
    proposed = read_answer(task.matches, proposed_path(task.nprobe, number, block_number))
    proposed = proposed.sort_by([("query", "ascending"), ("row", "ascending")])
    asked = task.block(block_number)
    vectors = vectors_of(asked)
    stored = _stored(task, wanted, scratch)
    keys = np.empty(len(proposed))
    query = np.searchsorted(asked["row"].to_numpy(), proposed["query"].to_numpy())
    place = np.searchsorted(wanted, proposed["row"].to_numpy())
    for first in range(0, len(proposed), _PAIRS):
        part = slice(first, first + _PAIRS)
        queries, q = np.unique(query[part], return_inverse=True)
        rows, x = np.unique(place[part], return_inverse=True)
        left, right = block(vectors[queries], task.metric), block(stored[rows], task.metric)
        keys[part] = keys_of(pair_scores(left, right, q, x), task.metric)
    known = codes.shard.metadata.take(np.searchsorted(codes.shard.rows, proposed["row"]))
    columns = {"query": proposed["query"], "key": keys, "row": proposed["row"],
               "list": proposed["list"]}  # fmt: skip
    names = ("image_id", "path", "label")
    table = pa.table({**columns, **{name: known[name] for name in names}}).cast(CANDIDATES)
    table = table.filter(pc.greater_equal(table["key"], task.least))
    return best_of([table], task.top_k)[0]


def _stored(task: Task, wanted: NDArray[np.int64], scratch: Any) -> Vectors:
    """Give the vectors of the wanted rows, (n, d), as they lie in the scratch file."""
    assert task.vectors is not None
    shape = (len(wanted), task.vectors.dimension)
    if len(wanted) == 0:
        return np.empty(shape, task.vectors.dtype)
    return np.memmap(scratch, task.vectors.dtype, "r", shape=shape)


class _Sampled:
    """What a shard holds closest to the sampled queries of some blocks, as its rows pass."""

    def __init__(self, task: Task, codes: Codes, exact: Sequence[tuple[str, int, int]]) -> None:
        self._task, self._shard, self._lists = task, codes.shard, codes.lists
        self._rows: dict[str, NDArray[np.int64]] = {}
        tables = []
        for path, look, number in exact:
            asked, self._rows[path] = task.block(number), task.sampled(look, number)
            tables.append(asked.filter(pc.is_in(asked["row"], pa.array(self._rows[path]))))
        if exact:
            self._asked = task.asked(self._shard, pa.concat_tables(tables))
            more = most_barred(self._asked.barred)
            self._best = TopK(self._asked.queries, task.top_k + more)

    def push(self, rows: NDArray[np.int64], vectors: Vectors) -> None:
        """Let some rows pass."""
        if self._rows:
            places = np.searchsorted(self._shard.rows, rows)
            live = self._shard.alive[places]
            places, shard = places[live], self._shard
            self._best.push(block(vectors[live], shard.metric), shard.ties[places], places)

    def put(self) -> None:
        """Put what is closest, one file per block and look."""
        if not self._rows:
            return
        best, asked = self._best, self._asked
        places = np.where(best.keys >= asked.least, best.positions, -1)
        if asked.barred is not None:
            query = np.repeat(np.arange(len(places)), places.shape[1])
            gone = is_barred(asked.barred, query, places.ravel()).reshape(places.shape)
            places = np.where(gone, -1, places)
        lists = np.append(self._lists, -1)[places]  # -1 where there is no row
        table = candidates_table(self._shard.metadata, best.keys, places, lists, asked.numbers)
        table, _ = best_of([table], self._task.top_k)
        for path, rows in self._rows.items():
            answer = table.filter(pc.is_in(table["query"], pa.array(rows, pa.int64())))
            self._task.matches.put_new(path, sealed_parquet(answer))
