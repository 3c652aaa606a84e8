"""K-means in two levels: for tens of thousands of lists, where one level would take hours.

A flat iteration over n rows and L lists costs n L products; L = 65,536 takes hours on a machine.
Here about the root of L coarse centroids are trained on a part of the sample, the whole sample is
parted by them, and each cell is trained by itself, with lists in proportion to its rows: n root(L)
products an iteration. The test of this file measures what that costs in loss.

    work/sample/00000.bin   rows of the sample as they are stored, a slice a file
    work/cells/00000.bin    the same rows, ordered by cell
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import WORK, Metric, Vectors
from retrieval.index.kmeans import Held, lloyd, slice_of
from retrieval.index.workers import Here, Workers
from retrieval.storage.local import Folder
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest

COARSE_ROWS = 256
"""Rows of the sample that train a coarse centroid: FAISS' ceiling, more gains little."""


@dataclass(frozen=True)
class Cells:
    """A sample on disk, ordered by cell within each slice."""

    folder: Folder
    dtype: str
    dimension: int
    metric: Metric
    counts: NDArray[np.int64]  # (slices, cells)


def put_sample(folder: Folder, number: int, vectors: Vectors) -> None:
    """Put a slice of the sample."""
    folder.put(_sample_path(number), np.ascontiguousarray(vectors).tobytes())


def two_levels(
    folder: Folder,
    coarse: Sequence[Held],
    nlist: int,
    shape: tuple[str, int, int],
    metric: Metric,
    workers: Workers,
) -> NDArray[np.float32]:
    """Find `nlist` centroids of the sample that `put_sample` has put; (nlist, d) float32.

    Of fewer rows than that each is one. `coarse` are slices of the part of it that trains the
    coarse centroids, `shape` is its dtype, its dimension and its number of slices.
    """
    dtype, dimension, slices = shape
    count = min(int(nlist**0.5), sum(len(held.hashes) for held in coarse))
    shared = workers.keep(lloyd(coarse, count, metric, workers))
    work = [(folder, number, dtype, metric, shared) for number in range(slices)]
    counts = np.stack(list(workers.map(_put_cells, work)))
    cells = Cells(folder, dtype, dimension, metric, counts)
    lists = shares_of(counts.sum(0), min(nlist, int(counts.sum())))
    trained = [(cells, cell, int(lists[cell])) for cell in np.flatnonzero(lists)]
    return np.concatenate(list(workers.map(_train_cell, trained)))


def shares_of(rows: NDArray[np.int64], nlist: int) -> NDArray[np.int64]:
    """Share `nlist` lists among cells by their rows, of which there are as many at least.

    By largest remainders; no cell has more lists than rows.
    """
    exact = rows * (nlist / rows.sum())
    lists: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), rows)
    order = np.lexsort((np.arange(len(rows)), -(exact - lists)))
    while (missing := nlist - int(lists.sum())) > 0:
        room = order[lists[order] < rows[order]]
        lists[room[:missing]] += 1
    return lists


def _put_cells(
    folder: Folder, number: int, dtype: str, metric: Metric, coarse: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Order a slice by cell; gives the rows of each cell."""
    vectors = np.frombuffer(folder.read(_sample_path(number)), dtype).reshape(-1, coarse.shape[1])
    rows = slice_of(vectors, np.empty(0, np.uint64), metric).rows
    lists = nearest(rows, block(coarse, rows.metric))
    folder.put(_cells_path(number), vectors[np.argsort(lists, kind="stable")].tobytes())
    counts: NDArray[np.int64] = np.bincount(lists, minlength=len(coarse))
    return counts


def _train_cell(cells: Cells, cell: int, nlist: int) -> NDArray[np.float32]:
    width = np.dtype(cells.dtype).itemsize * cells.dimension
    before = cells.counts[:, :cell].sum(1)
    parts = []
    for number in np.flatnonzero(cells.counts[:, cell]).tolist():
        with cells.folder.open(_cells_path(number)) as file:
            file.seek(int(before[number]) * width)
            parts.append(file.read(int(cells.counts[number, cell]) * width))
    vectors = np.frombuffer(b"".join(parts), cells.dtype).reshape(-1, cells.dimension)
    order = np.random.default_rng(cell).permutation(len(vectors)).astype(np.uint64)
    part = slice_of(vectors, order, cells.metric)
    return lloyd([Held(part, order)], nlist, cells.metric, Here())


def _sample_path(number: int) -> str:
    return f"{WORK}sample/{number:05d}.bin"


def _cells_path(number: int) -> str:
    return f"{WORK}cells/{number:05d}.bin"
