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

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.closest import top_k
from retrieval.intervals import bootstrap_mean
from retrieval.records import Neighbours
from retrieval.scoring import Block
from retrieval.tables import RECALL

CURVE_K = (1, 10, 100)
SAMPLE = 500
"""Sampled vectors: the half width of a 95 % interval around 0.95 is then about 0.01."""

LEAST_SAMPLE = 250
"""Fewer are never drawn where there are as many: the half width is then about 0.014."""


def sample_for(queries: int, nprobe: int, nlist: int) -> int:
    """Say how many of some queries are also searched exactly.

    All lists are read for these, so they cost nlist / nprobe times as much as the others: as many
    are drawn as take a quarter of the time of all, but for the bounds above.
    """
    quarter = queries * nprobe // (4 * nlist)
    return min(SAMPLE, max(LEAST_SAMPLE, quarter))


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
    *,
    seed: int,
    places: NDArray[np.int64] | None = None,
    per_match: int = 1,
) -> pa.Table:
    """Measure recall@k over nprobe with intervals, for each k of `CURVE_K`: table RECALL.

    `places` are those of the neighbours in the order of the codes, of which `per_match` times k are
    scored exactly; None where the codes are the vectors.
    """
    needed, there = probes_needed(queries, centroids, found)
    rows = []
    for k in CURVE_K:
        reached = needed[:, :k]
        if places is not None:
            reached = np.where(places[:, :k] < per_match * k, reached, len(centroids) + 1)
        for nprobe in probe_grid(len(centroids)):
            values = recall_at(reached, there[:, :k], nprobe)
            low, high = bootstrap_mean(values, seed=seed)
            rows.append((k, nprobe, float(values.mean()), low, high, len(values)))
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


def choose_nprobe(curve: pa.Table, k: int, target: float, nlist: int) -> int:
    """Give the smallest nprobe whose lower bound of recall@k meets the target, or all lists.

    A k between two of the curve counts as the larger one, which is the harder.
    """
    measured = [c for c in CURVE_K if c >= k]
    for row in curve.to_pylist():
        if measured and row["k"] == measured[0] and row["low"] >= target:
            return int(row["nprobe"])
    return nlist


def wider_nprobe(
    needed: NDArray[np.int64], there: NDArray[np.bool_], target: float, nlist: int, seed: int
) -> int:
    """Give the smallest nprobe of the grid at which the sample's lower bound meets the target."""
    for nprobe in probe_grid(nlist):
        if bootstrap_mean(recall_at(needed, there, nprobe), seed=seed)[0] >= target:
            return nprobe
    return nlist
