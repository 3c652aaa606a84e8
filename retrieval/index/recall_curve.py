"""Measured recall of an index by the lists that queries read, and their choice for a target.

With lossless codes a neighbour is found if and only if its list is read. So the exact neighbours of
sampled vectors, and the rank and gap of each neighbour's list (`probing.py`), give the recall of
any probing without a search. With lossy codes a neighbour must also be among the candidates that
are scored exactly; candidates proposed with all lists read are proposed with fewer too, so that is
a lower bound for every probing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.records import Neighbours
from retrieval.core.schemas import RECALL
from retrieval.index.probing import Probing, exact_keys, key_gaps
from retrieval.index.recall_interval import Values, mean_intervals
from retrieval.vectors.scoring import Float64, Int64, VectorBlock, split_range

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

LISTS_OVER_MEAN = 4
"""A query reads at most this many times the mean number of lists: queries far from every centroid,
which would read nearly all lists, cost more than they add to the mean recall. Rows read by 3,000
crops of photos among 20,000 in 208 lists, at equal recall@10:

    recall     2        3        4        6        8        no limit
    0.95     3.31 %   3.37 %   3.42 %   3.43 %   3.46 %   3.47 %
    0.99     7.50 %   7.61 %   7.89 %   8.07 %   8.21 %   8.24 %
"""

_GAP_LEVELS = 1 - 2.0 ** (-np.arange(0, 10.5, 0.5))
"""Shares of the neighbours whose lists are read at the gaps of a recall curve, beside all."""

_SCORED_PAIRS = 1 << 22  # (sampled vector, list) pairs scored at once: 32 MiB of keys

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


@dataclass(frozen=True)
class RequiredProbing:
    """What a search must read to find each neighbour of sampled vectors.

    `nprobe` and `gaps` are (s, k): the rank of the neighbour's list, from 1, in the order of the
    search (closest centroid first, ties to the smaller number), and its gap. `is_neighbour` (s, k)
    tells neighbours from padding. `list_gaps` (s, nlist) are the gaps of all lists, ascending.
    """

    nprobe: Int64
    gaps: Float64
    is_neighbour: NDArray[np.bool_]
    list_gaps: Float64

    def is_read(self, probing: Probing) -> NDArray[np.bool_]:
        """Return which neighbours' lists are read, (s, k)."""
        return (self.nprobe <= probing.nprobe) & (self.gaps <= probing.gap)

    def recall(self, probing: Probing) -> Float64:
        """Return the recall of each sampled vector, (s,); 1 without neighbours."""
        return found_fraction(self.is_read(probing), self.is_neighbour)

    def lists_read(self, probing: Probing) -> Int64:
        """Return the number of lists that each sampled vector reads, (s,)."""
        within = np.count_nonzero(self.list_gaps <= probing.gap, axis=1)
        read: Int64 = np.minimum(within, probing.nprobe)
        return read

    def limited(self, gap: float) -> Probing:
        """Return the probing with a gap and at most `LISTS_OVER_MEAN` times the mean of lists."""
        nlist = self.list_gaps.shape[1]
        mean = float(np.count_nonzero(self.list_gaps <= gap, axis=1).mean())
        return Probing(min(nlist, math.ceil(LISTS_OVER_MEAN * mean)), gap)

    @staticmethod
    def concatenate(parts: Sequence[RequiredProbing]) -> RequiredProbing:
        """Return the requirements of several samples of the same index as one."""
        fields = ("nprobe", "gaps", "is_neighbour", "list_gaps")
        return RequiredProbing(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in fields)
        )


def required_probing(
    queries: VectorBlock, centroids: VectorBlock, neighbours: Neighbours
) -> RequiredProbing:
    """Return what a search must read to find each of the neighbours, (s, k), of queries."""
    nlist = len(centroids)
    is_neighbour = neighbours.rows >= 0
    lists = np.where(is_neighbour, neighbours.lists, 0)
    ranks, gaps = np.empty(lists.shape, np.int64), np.empty(lists.shape)
    list_gaps = np.empty((len(queries), nlist))
    for part in split_range(len(queries), max(1, _SCORED_PAIRS // nlist)):
        keys = exact_keys(queries.take(part), centroids)
        order = np.argsort(-keys, axis=1, kind="stable")  # ties to the smaller number
        list_rank = np.empty_like(order)
        np.put_along_axis(list_rank, order, np.arange(nlist)[None, :].repeat(len(order), 0), 1)
        ranks[part] = np.take_along_axis(list_rank, lists[part], 1)
        norms = queries.norms[part, None]
        part_gaps = key_gaps(keys, keys.max(1, keepdims=True), norms, queries.metric)
        gaps[part] = np.take_along_axis(part_gaps, lists[part], 1)
        list_gaps[part] = np.take_along_axis(part_gaps, order, 1)
    return RequiredProbing(ranks + 1, gaps, is_neighbour, list_gaps)


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
    """Return recall@k with intervals for each of `ks` and each probing of a grid: table RECALL.

    The grid has numbers of lists (`probe_grid`) and gaps, each with the limit of lists that belongs
    to it. `proposal_ranks` (s, k) are the neighbours' positions among the candidates of lossy
    codes, of which `per_match` times k are scored exactly; None for lossless codes.
    """
    required = required_probing(queries, centroids, neighbours)
    grid = [required.limited(gap) for gap in gap_grid(required, ks)]
    grid += [Probing(nprobe) for nprobe in probe_grid(len(centroids))]
    lists = [float(required.lists_read(probing).mean()) for probing in grid]
    rows = []
    for k in ks:
        is_neighbour = required.is_neighbour[:, :k]
        is_scored = np.True_ if proposal_ranks is None else proposal_ranks[:, :k] < per_match * k
        values = np.stack(
            [
                found_fraction(required.is_read(probing)[:, :k] & is_scored, is_neighbour)
                for probing in grid
            ],
            axis=1,
        )
        ends = mean_intervals(values, seed=seed)
        columns = zip(grid, lists, values.mean(0), *ends, strict=True)
        for probing, read, mean, low, high in columns:
            rows.append((k, probing.gap, probing.nprobe, read, mean, low, high, len(values)))
    by_name = zip(*rows, strict=True)
    return pa.table([list(column) for column in by_name], schema=RECALL.schema)


def gap_grid(required: RequiredProbing, ks: Sequence[int]) -> list[float]:
    """Return the gaps of a recall curve: those that find certain shares of the k neighbours.

    They are gaps of neighbours' lists, so recall changes at each; the last one finds all.
    """
    grid: set[float] = set()
    for k in ks:
        gaps = required.gaps[:, :k][required.is_neighbour[:, :k]]
        if len(gaps):
            levels = np.append(_GAP_LEVELS, 1.0)
            grid |= set(np.quantile(gaps, levels, method="inverted_cdf").tolist())
    return sorted(grid)


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


def choose_probing(curve: pa.Table, k: int, target: float, nlist: int) -> Probing:
    """Return the smallest gap at which the recall check is expected to pass, with its limit.

    The expected mean recall must exceed the target by `_MARGIN` of the allowed loss, since the
    check compares the lower end of an interval of the real queries.

    Recall is interpolated in log k between two measured k, an underestimate since it falls faster
    for larger k, and linearly between two measured gaps. Beyond the largest measured k, the number
    of lists grows in proportion to k: m times as many neighbours lie in at most m times as many
    lists. All lists are read where the curve does not reach the target.
    """
    depth = measured_depth(curve)
    grid = _GapCurve.read(curve)
    recalls = grid.recalls(min(k, depth))
    goal = target + _MARGIN * (1 - target)
    enough = np.flatnonzero(recalls >= goal)
    if len(enough) == 0:
        return Probing(nlist)
    gap = _interpolate_first(recalls, grid.gaps, int(enough[0]), goal)
    if k > depth:
        lists = k / depth * float(np.interp(gap, grid.gaps, grid.lists))
        enough = np.flatnonzero(grid.lists >= lists)
        if len(enough) == 0:
            return Probing(nlist)
        gap = _interpolate_first(grid.lists, grid.gaps, int(enough[0]), lists)
    limit = math.ceil(float(np.interp(gap, grid.gaps, grid.limits)) - _ROUNDING)
    return Probing(max(1, min(nlist, limit)), gap)


def expected_lists(curve: pa.Table, probing: Probing) -> float:
    """Return the mean number of lists that a query is expected to read."""
    if math.isinf(probing.gap):
        return float(probing.nprobe)
    grid = _GapCurve.read(curve)
    return float(np.interp(probing.gap, grid.gaps, grid.lists))


def _interpolate_first(values: Float64, gaps: Float64, first: int, goal: float) -> float:
    """Return the gap where the ascending `values` reach `goal`; `first` is the first that does."""
    if first == 0:
        return float(gaps[0])
    step = (goal - values[first - 1]) / (values[first] - values[first - 1])
    return float(gaps[first - 1] + step * (gaps[first] - gaps[first - 1]))


@dataclass(frozen=True)
class _GapCurve:
    """The part of a recall curve by gap, on the gaps (g,) of all measured k."""

    depths: Int64  # (m,) measured k, ascending
    gaps: Float64
    recalls_by_k: Float64  # (m, g)
    lists: Float64  # (g,) mean lists read, the largest of all samples
    limits: Float64  # (g,) largest number of lists that a query reads

    @staticmethod
    def read(curve: pa.Table) -> _GapCurve:
        """Read a table RECALL; samples of other k have other gaps and are interpolated."""
        column = {name: curve[name].to_numpy() for name in curve.column_names}
        by_gap = np.isfinite(column["gap"])
        depths, gaps = np.unique(column["k"]), np.unique(column["gap"][by_gap])
        interpolated: dict[str, list[Float64]] = {"recall": [], "lists": [], "nprobe": []}
        for k in depths:
            rows = np.flatnonzero(by_gap & (column["k"] == k))
            rows = rows[np.argsort(column["gap"][rows])]
            for name, values in interpolated.items():
                values.append(np.interp(gaps, column["gap"][rows], column[name][rows]))
        recalls, lists, limits = (np.stack(values) for values in interpolated.values())
        return _GapCurve(depths, gaps, recalls, lists.max(0), limits.max(0))

    def recalls(self, k: float) -> Float64:
        """Return recall@k at each gap, interpolated in log k."""
        logs = np.log(self.depths)
        columns = [np.interp(math.log(k), logs, column) for column in self.recalls_by_k.T]
        return np.array(columns)


def smallest_sufficient_probing(
    required: RequiredProbing, enough: Callable[[Values], bool]
) -> Probing:
    """Return the smallest gap of a grid at which the sample's recalls are `enough`, or all lists.

    `enough` must be monotone in the recalls. So only an error at the largest gap that is truly too
    small matters, and trying several values costs no confidence.
    """
    grid = [required.limited(gap) for gap in gap_grid(required, [required.gaps.shape[1]])]
    grid.append(Probing(required.list_gaps.shape[1]))
    position = bisect.bisect_left(grid, True, key=lambda probing: enough(required.recall(probing)))
    return grid[min(position, len(grid) - 1)]
