"""Two-level k-means for tens of thousands of lists, where one level would take hours.

A flat iteration over n rows and L lists costs n L products. Here about sqrt(L) coarse centroids are
trained on a part of the sample, the whole sample is partitioned into their cells, and each cell is
trained by itself, with lists in proportion to its rows: n sqrt(L) products per iteration. The tests
measure the increase in k-means loss.

    work/sample/00000.bin   rows of the sample as stored, one slice per file
    work/cells/00000.bin    the same rows, ordered by cell
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import WORK_FOLDER, Metric, Vectors
from retrieval.index.kmeans import StoredSlice, fit_kmeans, make_slice
from retrieval.index.workers import InProcessWorkers, Workers
from retrieval.storage.local import Folder
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids

COARSE_ROWS = 256
"""Sample rows per coarse centroid: FAISS' ceiling; more gains little."""


@dataclass(frozen=True)
class CellFiles:
    """A sample on disk, ordered by cell within each slice file."""

    folder: Folder
    dtype: str
    dimension: int
    metric: Metric
    counts: NDArray[np.int64]  # (slices, cells)


def write_sample_slice(folder: Folder, number: int, vectors: Vectors) -> None:
    """Write slice `number` of the sample, (n, d)."""
    folder.put(_sample_path(number), np.ascontiguousarray(vectors).tobytes())


def fit_two_level_kmeans(
    folder: Folder,
    coarse: Sequence[StoredSlice],
    nlist: int,
    shape: tuple[str, int, int],
    metric: Metric,
    workers: Workers,
) -> NDArray[np.float32]:
    """Return `nlist` centroids, (nlist, d) float32, of the sample files in `folder`.

    A sample with fewer rows than `nlist` returns one centroid per row. `coarse` are the slices that
    train the coarse centroids; `shape` is the sample's dtype, dimension and number of slices.
    """
    dtype, dimension, slices = shape
    count = min(int(nlist**0.5), sum(len(stored.hashes) for stored in coarse))
    shared = workers.broadcast(fit_kmeans(coarse, count, metric, workers))
    slice_items = [(folder, number, dtype, metric, shared) for number in range(slices)]
    counts = np.stack(list(workers.map(_write_cells, slice_items)))
    cells = CellFiles(folder, dtype, dimension, metric, counts)
    lists = apportion_lists(counts.sum(0), min(nlist, int(counts.sum())))
    cell_items = [(cells, cell, int(lists[cell])) for cell in np.flatnonzero(lists)]
    return np.concatenate(list(workers.map(_train_cell, cell_items)))


def apportion_lists(rows: NDArray[np.int64], nlist: int) -> NDArray[np.int64]:
    """Apportion `nlist` lists to cells in proportion to their rows, by largest remainders.

    There must be at least `nlist` rows in all; no cell gets more lists than rows.
    """
    exact = rows * (nlist / rows.sum())
    lists: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), rows)
    order = np.lexsort((np.arange(len(rows)), -(exact - lists)))
    while (remaining := nlist - int(lists.sum())) > 0:
        growable_cells = order[lists[order] < rows[order]]
        lists[growable_cells[:remaining]] += 1
    return lists


def _write_cells(
    folder: Folder, number: int, dtype: str, metric: Metric, coarse: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Write a slice ordered by cell; return the number of rows in each cell."""
    vectors = np.frombuffer(folder.read(_sample_path(number)), dtype).reshape(-1, coarse.shape[1])
    rows = make_slice(vectors, np.empty(0, np.uint64), metric).rows
    lists = nearest_centroids(rows, block(coarse, rows.metric))
    folder.put(_cells_path(number), vectors[np.argsort(lists, kind="stable")].tobytes())
    counts: NDArray[np.int64] = np.bincount(lists, minlength=len(coarse))
    return counts


def _train_cell(cells: CellFiles, cell: int, nlist: int) -> NDArray[np.float32]:
    width = np.dtype(cells.dtype).itemsize * cells.dimension
    first_rows = cells.counts[:, :cell].sum(1)
    parts = []
    for number in np.flatnonzero(cells.counts[:, cell]).tolist():
        with cells.folder.open(_cells_path(number)) as file:
            file.seek(int(first_rows[number]) * width)
            parts.append(file.read(int(cells.counts[number, cell]) * width))
    vectors = np.frombuffer(b"".join(parts), cells.dtype).reshape(-1, cells.dimension)
    order = np.random.default_rng(cell).permutation(len(vectors)).astype(np.uint64)
    cell_slice = make_slice(vectors, order, cells.metric)
    return fit_kmeans([StoredSlice(cell_slice, order)], nlist, cells.metric, InProcessWorkers())


def _sample_path(number: int) -> str:
    return f"{WORK_FOLDER}sample/{number:05d}.bin"


def _cells_path(number: int) -> str:
    return f"{WORK_FOLDER}cells/{number:05d}.bin"
