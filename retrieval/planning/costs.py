"""Cost model of a job: time, disk and memory of each stage, from measured rates and counts.

The cost of a stage is a fixed part (workers that start, a page that is drawn) and a part that grows
with the counts. Work is given out in whole pieces (chunks, shards), so its time is
that of the worker who has most of them: two workers take as long for three chunks as for four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.core.records import IndexPlan
from retrieval.index.kmeans import ITERATIONS
from retrieval.index.recall_curve import SAMPLE_SIZE
from retrieval.index.recall_interval import LOOK_SIZES
from retrieval.index.train import FLAT_LISTS

FIXED_SPREAD = 0.25
"""By how much what a stage takes in any case differs from one run to the next, as a share: starts
of processes, measured on two shared cores (`benchmarks/README.md`, plan)."""

EXTRAPOLATION_FACTOR = 2.0
"""A probe of milliseconds stands for products of hours: up to so many times off (the rate of
searching falls to a third where a shard has 25 rows a list: `benchmarks/README.md`, rank)."""

MERGE_RATE = 2e5
"""Matches a second, of one core, that are merged and put: assumed, a fifth of what reading and
judging them costs (`benchmarks/README.md`, evaluate)."""

EVALUATION_RATE = 10**7 / 16.4
"""Matches a second that are judged, on one thread: `benchmarks/README.md`, evaluate."""

PART_READ_SECONDS = 0.045 / (4096 * 512)
"""Seconds of a core a number of a part that is checked, parsed and drawn from: `benchmarks.scale
--part`."""

_DEPTHS = 2
"""Times that a shard meets the sample of its recall: once for 100 neighbours, once, of a quarter of
the sample, for 1,000, which takes as long (2.4 s and 2.0 s for 150,000 x 256)."""

_DRIVER_CHUNK = 640
"""Bytes the driver holds a chunk: 0.64 GB for 10^6 (`benchmarks/README.md`, driver)."""

_CANDIDATE = 28  # bytes on disk of what a shard found: query, row, list, key


@dataclass(frozen=True)
class Rates:
    """What was measured, of one worker on the machine at hand. Seconds, unless said otherwise."""

    start: float  # until Ray is there and the network is ready for it
    listed: float  # images a second
    first_pool: float  # until the first workers embed, beyond what they then do
    next_pool: float  # the same, of workers that start again
    chunk: float  # of a chunk, beyond its images
    image: float  # of an image
    image_spread: float  # by how much that differs, as a share
    index: float  # of an index, whatever its rows
    rank: float  # of a ranking
    report: float  # of evaluating, and of a page without thumbnails
    thumbnail: float  # of one thumbnail, on one core
    multiplied: float  # float32 operations a second while rows get their lists
    compared: float  # pairs a second, of `dimension` numbers, exactly
    beside: int = 0  # cores that decoded beside the GPU; 0: no GPU was measured


@dataclass(frozen=True)
class Counts:
    """How much of everything there is."""

    gallery: int
    queries: int | None  # None: nothing is ranked
    dimension: int
    chunk_rows: tuple[int, int]  # of gallery and queries
    plan: IndexPlan
    nprobe: int
    top_k: int = 10
    fitted: int = 0  # images that --pca is fitted on
    pictures: int = 0  # thumbnails of the report
    shards: int = 1
    number_bytes: int = 2  # of a stored vector

    @property
    def shard_rows(self) -> int:
        """Count the rows of a full shard."""
        return min(self.gallery, self.plan.rows_per_shard)


@dataclass(frozen=True)
class WorkerPool:
    """Who works: workers that embed, and cores that do single tasks."""

    embedders: int
    cores: int
    beside: int = 0  # cores that decode beside each GPU's worker; 0: workers are cores


@dataclass(frozen=True)
class Cost:
    """What a stage takes, in seconds, and between which bounds."""

    stage: str
    seconds: float
    low: float
    high: float


def makespan(items: int, piece: int, workers: int, per_item: float, per_piece: float) -> float:
    """Return when the last of `workers` is done, if pieces of `piece` items are given out in order.

    Graham's list scheduling of equal pieces and a shorter last one, which is exact here.
    """
    full, rest = divmod(items, piece)
    whole = per_piece + piece * per_item
    rounds = -(-full // workers)
    if full % workers or not rest:
        return rounds * whole
    return rounds * whole + per_piece + rest * per_item


def stage_costs(rates: Rates, counts: Counts, fleet: WorkerPool) -> list[Cost]:
    """Return the stages in their order; without queries those of the queries are left out."""
    queries = counts.queries
    listed = (counts.gallery + (queries or 0)) / rates.listed
    found = [_cost("start", rates.start), _cost("list", 0.0, measured=listed)]
    if counts.fitted:
        found.append(_embed_cost("fit projection", rates, fleet, counts.fitted, 128, first=True))
    first = not counts.fitted
    gallery, asked = counts.chunk_rows
    found.append(_embed_cost("embed gallery", rates, fleet, counts.gallery, gallery, first=first))
    if queries is not None:
        found.append(_embed_cost("embed queries", rates, fleet, queries, asked, first=False))
    found.append(_cost("index", rates.index, far=_index_seconds(rates, counts, fleet)))
    if queries is not None:
        found.append(_cost("rank", rates.rank, far=_rank_seconds(rates, counts, queries, fleet)))
        matches = queries * min(counts.top_k, counts.gallery)
        pictures = counts.pictures * rates.thumbnail / min(fleet.cores, counts.pictures or 1)
        judged = matches / EVALUATION_RATE
        found.append(_cost("evaluate and report", rates.report, measured=pictures, far=judged))
    return found


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Add stages up; bounds too, since what makes one stage slow makes the others slow as well."""
    columns = zip(*((cost.seconds, cost.low, cost.high) for cost in costs), strict=True)
    return Cost("total", *(math.fsum(column) for column in columns))


def _cost(
    stage: str,
    fixed: float,
    *,
    measured: float = 0.0,
    spread: float = FIXED_SPREAD,
    far: float = 0.0,
) -> Cost:
    """Add what is fixed, what was measured as such, and what is far from what was measured."""
    low = fixed * (1 - FIXED_SPREAD) + measured * (1 - spread) + far / EXTRAPOLATION_FACTOR
    high = fixed * (1 + FIXED_SPREAD) + measured * (1 + spread) + far * EXTRAPOLATION_FACTOR
    return Cost(stage, fixed + measured + far, low, high)


def _embed_cost(
    stage: str, rates: Rates, fleet: WorkerPool, images: int, rows: int, *, first: bool
) -> Cost:
    pool = rates.first_pool if first else rates.next_pool
    work = makespan(images, rows, fleet.embedders, rates.image, rates.chunk)
    cost = _cost(stage, pool, measured=work, spread=rates.image_spread)
    if not rates.beside or rates.beside == fleet.beside:
        return cost
    # a GPU that waits for its decoders works as they do; one that does not, as it did
    other = work * rates.beside / fleet.beside
    least, most = sorted((work, other))
    wide = _cost(stage, pool, measured=least, spread=rates.image_spread).low
    high = _cost(stage, pool, measured=most, spread=rates.image_spread).high
    return Cost(stage, pool + other, wide, high)


def _index_seconds(rates: Rates, counts: Counts, fleet: WorkerPool) -> float:
    """Read for two samples, train, and place each vector among all lists, shard by shard.

    2 d operations a product of d numbers. K-means compares its sample with every centroid ten
    times (Lloyd); above some 10,000 lists the product has two levels, each of their root (`index/
    two_levels.py`). A task of a shard also meets the sample that recall is measured on.
    """
    plan, d = counts.plan, counts.dimension
    read = 2 * counts.gallery * d * PART_READ_SECONDS / fleet.cores
    lists = plan.nlist if plan.nlist <= FLAT_LISTS else 2 * math.sqrt(plan.nlist)
    train = 2.0 * d * plan.sample_rows * lists * ITERATIONS / rates.multiplied
    slices = max(1, plan.sample_rows // 8192)
    place = 2.0 * d * counts.shard_rows * plan.nlist / rates.multiplied
    known = _DEPTHS * min(SAMPLE_SIZE, counts.gallery) * counts.shard_rows / rates.compared
    rounds = -(-counts.shards // fleet.cores)
    return read + train / min(slices, fleet.cores) + rounds * (place + known)


def _rank_seconds(rates: Rates, counts: Counts, queries: int, fleet: WorkerPool) -> float:
    """Choose the lists of each query, meet them in each shard, merge.

    A shard meets `nprobe` of `nlist` lists of each query, and all of them of the queries that the
    recall is measured by: as many as are sampled at the second look, by which it is mostly decided.
    It is counted as one task, though several share it where shards are fewer than cores
    (`index/answer.py`): of few shards and many queries this is too much.
    """
    share = counts.nprobe / counts.plan.nlist
    lists = 2.0 * counts.dimension * queries * counts.plan.nlist / rates.multiplied
    sample = 0 if share >= 1 else min(queries, LOOK_SIZES[1])
    pairs = (queries * share + sample) * counts.shard_rows
    rounds = -(-counts.shards // fleet.cores)
    merge = queries * counts.top_k / MERGE_RATE
    return (lists if share < 1 else 0.0) + rounds * pairs / rates.compared + merge


@dataclass(frozen=True)
class Sizes:
    """What was measured, in bytes."""

    model: float  # of a bundle, which store, index and queries' store each hold
    row: float  # of a part, a row
    line: float  # of a listing, a row
    shard_row: float  # of a shard and its table
    match: float
    page: float  # of a report without pictures
    picture: float  # of a thumbnail
    worker: float  # memory of a worker that embeds, at most
    index_task: float  # of a task of index, with a small shard
    rank_task: float
    driver: float


def disk_bytes(sizes: Sizes, counts: Counts) -> dict[str, float]:
    """Return the bytes that each output holds in the end, and what lies there only meanwhile."""
    d, queries = counts.dimension, counts.queries or 0
    matches = queries * min(counts.top_k, counts.gallery)
    found = {
        "store": sizes.model + counts.gallery * (sizes.row + sizes.line),
        "index": sizes.model + counts.plan.nlist * d * 4 + counts.gallery * sizes.shard_row,
    }
    if counts.queries is not None:
        found["queries"] = sizes.model + queries * (sizes.row + sizes.line)
        found["matches"] = matches * sizes.match
        found["report"] = sizes.page + counts.pictures * sizes.picture
    candidates = matches * counts.shards * _CANDIDATE
    found["scratch"] = max(candidates, counts.shard_rows * d * counts.number_bytes)
    return found


def memory_bytes(sizes: Sizes, counts: Counts) -> dict[str, float]:
    """Return what a process of each kind holds at most: what was measured and what grows.

    A worker holds the vectors of a chunk, a task a shard as its plan counts it; one of index also a
    block of vectors, in float32 and float64, and its products with the sample that recall is
    measured on (`index/neighbours.py`). The driver holds some words a chunk.
    """
    shard = counts.shard_rows * counts.plan.bytes_per_vector
    block = min(counts.shard_rows, 1 << 13)
    met = block * (16 * counts.dimension + 12 * min(SAMPLE_SIZE, counts.gallery))
    chunks = counts.gallery / counts.chunk_rows[0] + (counts.queries or 0) / counts.chunk_rows[1]
    found = {
        "worker": sizes.worker + counts.chunk_rows[0] * counts.dimension * 4,
        "index_task": sizes.index_task + shard + met,
        "driver": sizes.driver + chunks * _DRIVER_CHUNK,
    }
    return found if counts.queries is None else {**found, "rank_task": sizes.rank_task + shard}


def expected_thumbnails(queries: int, shown: int, top_k: int, gallery: int) -> int:
    """Guess the thumbnails of a report: its queries, and the different ones of their matches.

    As if matches were drawn at random: n (1 - (1 - 1/n)^draws) of n. Where the same images are
    found over and over there are fewer.
    """
    queries = min(queries, shown)
    drawn = queries * min(top_k, gallery)
    different = -gallery * math.expm1(drawn * math.log1p(-1 / gallery)) if gallery > 1 else 1
    return queries + round(different)


def guess_nprobe(nlist: int) -> int:
    """Guess how many lists a query reads for a recall of 0.95: the root of all.

    That is 23 of 512, of which 16 gave 0.99 (`benchmarks/README.md`, index), and 256 of 65,536. The
    recall curve decides, which only an index of all rows has.
    """
    return max(1, round(math.sqrt(nlist)))


def failure_interval(failed: int, tried: int) -> tuple[float, float, float]:
    """Return the share that fails, and the ends of its 95 % interval, which none in 200 is not 0.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    z = 1.96
    share = failed / tried
    middle = (share + z * z / (2 * tried)) / (1 + z * z / tried)
    half = z / (1 + z * z / tried) * math.sqrt(share * (1 - share) / tried + (z / (2 * tried)) ** 2)
    return share, max(0.0, middle - half), min(1.0, middle + half)
