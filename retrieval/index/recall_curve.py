"""Recall, measured: how many lists must be read to find the exact neighbours.

The codes are the vectors and every decision within a list is exact, so a neighbour is found if and
only if its list is read. Hence it is enough to know, for sampled vectors, their exact neighbours
and at which place of their order of lists each neighbour's list stands; recall at any nprobe
follows without a search.

Where the codes lose something, a neighbour must also be among the candidates that are scored
exactly. One that is among them when all lists are read is among them when fewer are, since fewer
rows compete; so what is measured with all lists gives a lower bound for every nprobe. (But for
codes whose keys are rounded by the lists read, as those of FAISS' fast scan; the certificate
measures what came of it.)
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
from retrieval.vectors.scoring import Block
from retrieval.vectors.topk import top_k

_MARGIN = 0.4
"""Share of the allowed loss that a first search leaves unused, so that the gate mostly passes it at
the first or second look. Lists read a query, sampled queries and second searches counted, for
20,000 clustered queries of 60,000 x 64 vectors in 234 lists, and rankings that searched twice:

    recall   no margin     0.2          0.3          0.4          lower end of the curve's interval
    0.9      17.5 (57 %)    9.9 (0 %)    9.3 (0 %)    9.8 (0 %)   11.4 (0 %)
    0.95     25.0 (50 %)   18.0 (7 %)   16.2 (3 %)   15.6 (0 %)   16.8 (3 %)
    0.99     58.7 (100 %)  57.9 (88 %)  55.2 (72 %)  46.2 (30 %)  45.9 (0 %)
"""

_ROUNDING = 1e-9  # of an interpolated number of lists

CURVE_K = (1, 10, 100)
DEEP_K = 1000
"""Also measured where the codes are the vectors; those that lose something propose ten times as
many, which would be too much to keep for each shard."""

SAMPLE = 500
"""Sampled vectors: the half width of a 95 % interval around 0.95 is then about 0.01."""

DEEP_SHARE = 4
"""Of so many sampled vectors one is measured at `DEEP_K`: all would take four times as long as the
rest of the measurement (10 s against 2 s for 150,000 x 256), a quarter about as long."""


def merge_neighbours(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """Give the k closest of what several shards found, ties to the smaller row."""
    keys = np.concatenate([part.keys for part in parts], 1)
    rows = np.concatenate([part.rows for part in parts], 1)
    lists = np.concatenate([part.lists for part in parts], 1)
    ties = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    order = np.lexsort((ties, -keys), axis=1)[:, :k]
    pick = np.arange(len(keys))[:, None]
    return Neighbours(keys[pick, order], rows[pick, order], lists[pick, order])


def without_self(found: Neighbours, own: NDArray[np.int64]) -> Neighbours:
    """Leave each sampled row itself out, or the last neighbour where it is not among them."""
    count = found.rows.shape[1]
    is_self = found.rows == own[:, None]
    drop = np.where(is_self.any(1), is_self.argmax(1), count - 1)
    keep = np.arange(count)[None, :] != drop[:, None]
    shape = (len(own), count - 1)
    return Neighbours(
        found.keys[keep].reshape(shape),
        found.rows[keep].reshape(shape),
        found.lists[keep].reshape(shape),
    )


def probes_needed(
    queries: Block, centroids: Block, found: Neighbours
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tell how many lists must be read to meet each neighbour, (s, k), and which entries count.

    Lists are read in the order of the search: closest centroid first, ties to the smaller number.
    """
    nlist = len(centroids)
    order = top_k(queries, centroids, nlist).positions
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(nlist)[None, :].repeat(len(order), 0), 1)
    there = found.rows >= 0
    needed = np.take_along_axis(place, np.where(there, found.lists, 0), 1) + 1
    return needed, there


def recall_at(
    needed: NDArray[np.int64], there: NDArray[np.bool_], nprobe: int
) -> NDArray[np.float64]:
    """Give each query's recall when `nprobe` lists are read; 1 where it has no neighbour at all."""
    return share_of(needed <= nprobe, there)


def share_of(found: NDArray[np.bool_], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give the share of each query's neighbours that was found; 1 where it has none at all."""
    counts = there.sum(1)
    hits = (found & there).sum(1)
    return np.where(counts > 0, hits / np.maximum(counts, 1), 1.0)


def places_among(found: Neighbours, proposed: Neighbours) -> NDArray[np.int64]:
    """Give the place of each neighbour, (s, k), among what the codes propose; past it if absent."""
    count = proposed.rows.shape[1]
    order = np.argsort(proposed.rows, axis=1, kind="stable")
    places = np.empty_like(found.rows)
    for one, own in enumerate(order):
        ascending = proposed.rows[one, own]
        at = np.minimum(np.searchsorted(ascending, found.rows[one]), count - 1)
        places[one] = np.where(ascending[at] == found.rows[one], own[at], count)
    return places


def recall_curve(
    queries: Block,
    centroids: Block,
    found: Neighbours,
    ks: Sequence[int],
    *,
    seed: int,
    places: NDArray[np.int64] | None = None,
    per_match: int = 1,
) -> pa.Table:
    """Measure recall@k over nprobe with intervals, for each of `ks`: table RECALL.

    `places` are those of the neighbours in the order of the codes, of which `per_match` times k are
    scored exactly; None where the codes are the vectors.
    """
    needed, there = probes_needed(queries, centroids, found)
    grid = probe_grid(len(centroids))
    rows = []
    for k in ks:
        reached = needed[:, :k]
        if places is not None:
            reached = np.where(places[:, :k] < per_match * k, reached, len(centroids) + 1)
        values = np.stack([recall_at(reached, there[:, :k], nprobe) for nprobe in grid], axis=1)
        ends = mean_intervals(values, seed=seed)
        for nprobe, mean, low, high in zip(grid, values.mean(0), *ends, strict=True):
            rows.append((k, nprobe, mean, low, high, len(values)))
    columns = zip(*rows, strict=True)
    return pa.table([list(column) for column in columns], schema=RECALL.schema)


def probe_grid(nlist: int) -> list[int]:
    """List the nprobe that a curve is measured at: 1, 2, 3, 4, 6, 8, 12, … and all."""
    grid = {nlist}
    step = 1
    while step < nlist:
        grid |= {step, min(step * 3 // 2, nlist)}
        step *= 2
    return sorted(grid)


def measured_depth(curve: pa.Table) -> int:
    """Return the largest k that a curve was measured at."""
    return int(max(curve["k"].to_pylist()))


def choose_nprobe(curve: pa.Table, k: int, target: float, nlist: int) -> int:
    """Return the smallest nprobe of which the curve expects that the gate will pass it.

    The goal is `_MARGIN` above the target, by the mean of the gallery's sample: the gate, which is
    the lower end of an interval of the real queries, decides.

    Between two measured k the goal is held against recall interpolated in log k, which falls faster
    the larger k is, so that this is rather too low; between two measured nprobe recall is
    interpolated too. Beyond the largest k lists are read in proportion: so many times as many
    neighbours lie in at most so many times as many lists. All lists where no nprobe is enough.
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
    """Return the measured nprobe and the recall@k at each, interpolated between two measured k."""
    table = curve.sort_by([("k", "ascending"), ("nprobe", "ascending")])
    depths, grid = np.unique(table["k"].to_numpy()), np.unique(table["nprobe"].to_numpy())
    recalls = table["recall"].to_numpy().reshape(len(depths), len(grid))
    columns = [np.interp(math.log(k), np.log(depths), column) for column in recalls.T]
    return grid.astype(np.int64), np.array(columns)


def wider_nprobe(
    needed: NDArray[np.int64],
    there: NDArray[np.bool_],
    nlist: int,
    enough: Callable[[Values], bool],
) -> int:
    """Return the smallest nprobe of the grid at which the sample's recalls are `enough`, or nlist.

    `enough` says yes to higher recalls where it says yes to lower ones. So only of the largest
    nprobe that is truly too small can it err in a way that matters: that several are tried costs no
    certainty.
    """
    grid = probe_grid(nlist)
    place = bisect.bisect_left(
        grid, True, key=lambda nprobe: enough(recall_at(needed, there, nprobe))
    )
    return int(grid[min(place, len(grid) - 1)])
