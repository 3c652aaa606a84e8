"""Measured recall of an index as a function of nprobe, and the choice of nprobe for a target.

With lossless codes a neighbour is found if and only if its list is read. So the exact neighbours of
sampled vectors, and the rank of each neighbour's list in the probing order, give recall at any
nprobe without a search. With lossy codes a neighbour must also be among the candidates that are
scored exactly; candidates proposed with all lists read are proposed with fewer too, so that is a
lower bound for every nprobe. (Keys that FAISS' fast scan rounds depending on the lists read are
an exception; the recall check of a search measures the result.)
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.records import Neighbours
from retrieval.core.schemas import RECALL
from retrieval.index.recall_interval import Values, mean_intervals
from retrieval.vectors.scoring import VectorBlock
from retrieval.vectors.topk import top_k

_MARGIN = 0.4
"""Share of the allowed loss that a first search leaves unused, so that the gate mostly passes it at
the first or second look. Lists read per query, including sampled queries and second searches, for
20,000 clustered queries of 60,000 x 64 vectors in 234 lists, and rankings that searched twice:

    recall   no margin     0.2          0.3          0.4          lower end of the curve's interval
    0.9      17.5 (57 %)    9.9 (0 %)    9.3 (0 %)    9.8 (0 %)   11.4 (0 %)
    0.95     25.0 (50 %)   18.0 (7 %)   16.2 (3 %)   15.6 (0 %)   16.8 (3 %)
    0.99     58.7 (100 %)  57.9 (88 %)  55.2 (72 %)  46.2 (30 %)  45.9 (0 %)
"""

_ROUNDING = 1e-9  # tolerance of an interpolated number of lists

CURVE_K = (1, 10, 100)
DEEP_K = 1000
"""Also measured for lossless codes; lossy codes propose ten times as many candidates, which would
be too many to keep for each shard."""

SAMPLE_SIZE = 500
"""Sampled vectors: the half width of a 95 % interval around 0.95 is then about 0.01."""

DEEP_SHARE = 4
"""Every fourth sampled vector is measured at `DEEP_K`: all would take four times as long as the
rest of the measurement (10 s against 2 s for 150,000 x 256), a quarter about as long."""


def merge_neighbours(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """Return the k closest neighbours of several shards, ties to the smaller row."""
    keys = np.concatenate([part.keys for part in parts], 1)
    rows = np.concatenate([part.rows for part in parts], 1)
    lists = np.concatenate([part.lists for part in parts], 1)
    ties = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    order = np.lexsort((ties, -keys), axis=1)[:, :k]
    pick = np.arange(len(keys))[:, None]
    return Neighbours(keys[pick, order], rows[pick, order], lists[pick, order])


def drop_self(neighbours: Neighbours, self_rows: NDArray[np.int64]) -> Neighbours:
    """Drop each sampled row from its own neighbours, or the last one if it is not among them."""
    count = neighbours.rows.shape[1]
    is_self = neighbours.rows == self_rows[:, None]
    drop = np.where(is_self.any(1), is_self.argmax(1), count - 1)
    keep = np.arange(count)[None, :] != drop[:, None]
    shape = (len(self_rows), count - 1)
    return Neighbours(
        neighbours.keys[keep].reshape(shape),
        neighbours.rows[keep].reshape(shape),
        neighbours.lists[keep].reshape(shape),
    )


def required_nprobe(
    queries: VectorBlock, centroids: VectorBlock, neighbours: Neighbours
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the nprobe required to read each neighbour's list, (s, k), and a mask of neighbours.

    Lists are read in the order of the search: closest centroid first, ties to the smaller number.
    """
    nlist = len(centroids)
    order = top_k(queries, centroids, nlist).positions
    list_rank = np.empty_like(order)
    np.put_along_axis(list_rank, order, np.arange(nlist)[None, :].repeat(len(order), 0), 1)
    is_neighbour = neighbours.rows >= 0
    required = np.take_along_axis(list_rank, np.where(is_neighbour, neighbours.lists, 0), 1) + 1
    return required, is_neighbour


def recall_at(
    required: NDArray[np.int64], is_neighbour: NDArray[np.bool_], nprobe: int
) -> NDArray[np.float64]:
    """Return each query's recall when `nprobe` lists are read, (s,); 1 without neighbours."""
    return found_fraction(required <= nprobe, is_neighbour)


def found_fraction(
    is_found: NDArray[np.bool_], is_neighbour: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the fraction of each query's neighbours that was found, (s,); 1 without neighbours."""
    counts = is_neighbour.sum(1)
    hits = (is_found & is_neighbour).sum(1)
    return np.where(counts > 0, hits / np.maximum(counts, 1), 1.0)


def proposal_positions(neighbours: Neighbours, proposed: Neighbours) -> NDArray[np.int64]:
    """Return each neighbour's position among the proposals, (s, k); their count if absent."""
    count = proposed.rows.shape[1]
    order = np.argsort(proposed.rows, axis=1, kind="stable")
    positions = np.empty_like(neighbours.rows)
    for query, by_row in enumerate(order):
        ascending = proposed.rows[query, by_row]
        slots = np.minimum(np.searchsorted(ascending, neighbours.rows[query]), count - 1)
        positions[query] = np.where(
            ascending[slots] == neighbours.rows[query], by_row[slots], count
        )
    return positions


def recall_curve(
    queries: VectorBlock,
    centroids: VectorBlock,
    neighbours: Neighbours,
    ks: Sequence[int],
    *,
    seed: int,
    proposal_ranks: NDArray[np.int64] | None = None,
    per_match: int = 1,
) -> pa.Table:
    """Return recall@k with intervals for each of `ks` and each nprobe of the grid: table RECALL.

    `proposal_ranks` (s, k) are the neighbours' positions among the candidates of lossy codes, of
    which `per_match` times k are scored exactly; None for lossless codes.
    """
    required, is_neighbour = required_nprobe(queries, centroids, neighbours)
    grid = probe_grid(len(centroids))
    rows = []
    for k in ks:
        k_required = required[:, :k]
        if proposal_ranks is not None:
            k_required = np.where(
                proposal_ranks[:, :k] < per_match * k, k_required, len(centroids) + 1
            )
        values = np.stack(
            [recall_at(k_required, is_neighbour[:, :k], nprobe) for nprobe in grid], axis=1
        )
        ends = mean_intervals(values, seed=seed)
        for nprobe, mean, low, high in zip(grid, values.mean(0), *ends, strict=True):
            rows.append((k, nprobe, mean, low, high, len(values)))
    columns = zip(*rows, strict=True)
    return pa.table([list(column) for column in columns], schema=RECALL.schema)


def probe_grid(nlist: int) -> list[int]:
    """Return the nprobe values of a recall curve: 1, 2, 3, 4, 6, 8, 12, … and nlist."""
    grid = {nlist}
    step = 1
    while step < nlist:
        grid |= {step, min(step * 3 // 2, nlist)}
        step *= 2
    return sorted(grid)


def measured_depth(curve: pa.Table) -> int:
    """Return the largest k of a recall curve."""
    return int(max(curve["k"].to_pylist()))


def choose_nprobe(curve: pa.Table, k: int, target: float, nlist: int) -> int:
    """Return the smallest nprobe at which the recall check is expected to pass, at most `nlist`.

    The expected mean recall must exceed the target by `_MARGIN` of the allowed loss, since the
    check compares the lower end of an interval of the real queries.

    Recall is interpolated in log k between two measured k, an underestimate since it falls faster
    for larger k, and linearly between two measured nprobe. Beyond the largest measured k, nprobe
    grows in proportion to k: m times as many neighbours lie in at most m times as many lists.
    """
    depth = measured_depth(curve)
    grid, recalls = _expected(curve, min(k, depth))
    goal = target + _MARGIN * (1 - target)
    enough = np.flatnonzero(recalls >= goal)
    if len(enough) == 0:
        return nlist
    first = int(enough[0])
    nprobe = float(grid[first])
    if first:
        step = (goal - recalls[first - 1]) / (recalls[first] - recalls[first - 1])
        nprobe = grid[first - 1] + step * (grid[first] - grid[first - 1])
    return min(nlist, math.ceil(nprobe * max(1.0, k / depth) - _ROUNDING))


def _expected(curve: pa.Table, k: int) -> tuple[NDArray[np.int64], Values]:
    """Return the measured nprobe values and recall@k at each, interpolated in log k."""
    table = curve.sort_by([("k", "ascending"), ("nprobe", "ascending")])
    depths, grid = np.unique(table["k"].to_numpy()), np.unique(table["nprobe"].to_numpy())
    recalls = table["recall"].to_numpy().reshape(len(depths), len(grid))
    columns = [np.interp(math.log(k), np.log(depths), column) for column in recalls.T]
    return grid.astype(np.int64), np.array(columns)


def smallest_sufficient_nprobe(
    required: NDArray[np.int64],
    is_neighbour: NDArray[np.bool_],
    nlist: int,
    enough: Callable[[Values], bool],
) -> int:
    """Return the smallest nprobe of the grid at which the sample's recalls are `enough`, or nlist.

    `enough` must be monotone in the recalls. So only an error at the largest nprobe that is truly
    too small matters, and trying several values costs no confidence.
    """
    grid = probe_grid(nlist)
    position = bisect.bisect_left(
        grid, True, key=lambda nprobe: enough(recall_at(required, is_neighbour, nprobe))
    )
    return int(grid[min(position, len(grid) - 1)])
