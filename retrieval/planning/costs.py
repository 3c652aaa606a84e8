"""Cost model of a job: time, disk and memory of each stage, from measured rates and counts.

The cost of a stage is a fixed part (starting workers, drawing a page) and a part that grows with
the counts. Work is distributed in whole chunks or shards, so its time is that of the worker with
the most of them: two workers take as long for three chunks as for four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.core.records import IndexPlan
from retrieval.index.generations import MIN_RUN_ROWS
from retrieval.index.kmeans import ITERATIONS
from retrieval.index.recall_curve import SAMPLE_SIZE
from retrieval.index.recall_interval import LOOK_SIZES
from retrieval.index.train import FLAT_LISTS

FIXED_SPREAD = 0.25
"""Relative deviation of the fixed cost of a stage between runs, mostly process start-up,
measured on two shared cores (`benchmarks/README.md`, plan)."""

EXTRAPOLATION_FACTOR = 2.0
"""Factor by which an extrapolated time may be wrong in either direction, since a probe of
milliseconds predicts products of hours (the search rate falls to a third where a shard has 25 rows
per list: `benchmarks/README.md`, rank)."""

MERGE_RATE = 2e5
"""Matches per second that one core merges and writes: assumed, at a fifth of the measured cost
of reading and grading them (`benchmarks/README.md`, evaluate)."""

EVALUATION_RATE = 10**7 / 16.4
"""Matches per second that one thread evaluates: `benchmarks/README.md`, evaluate."""

PART_READ_SECONDS = 0.045 / (4096 * 512)
"""Seconds of one core, per number of a part, to verify its checksum, parse it and sample from it:
`benchmarks.scale --part`."""

_INDEX_PASSES = 5
"""Times that an index reads or writes all vectors as parts: two samples are drawn, runs are written
from the parts, and shards are filled from the runs."""

_RECALL_PASSES = 2
"""Times that a shard is compared with the recall sample: once for 100 neighbours, and with a
quarter of the sample for 1,000, which takes as long (2.4 s and 2.0 s for 150,000 x 256)."""

_DRIVER_CHUNK_BYTES = 640
"""Memory of the driver per chunk: 0.64 GB for 10^6 chunks (`benchmarks/README.md`, driver)."""

_CANDIDATE_BYTES = 28  # bytes on disk of one candidate of a shard: query, row, list, key


@dataclass(frozen=True)
class Rates:
    """Rates measured on this machine, of one worker; in seconds unless noted otherwise."""

    start: float  # until Ray runs and the network is loaded
    listing_rate: float  # images per second
    first_pool_start: float  # until the first workers embed, beyond the embedding itself
    later_pool_start: float  # the same, for workers that are started again
    chunk: float  # per chunk, beyond its images
    image: float  # per image
    image_spread: float  # relative deviation of `image`
    index: float  # of an index, whatever its rows
    rank: float  # of a ranking, whatever its queries
    report: float  # of evaluating, and of a page without thumbnails
    thumbnail: float  # of one thumbnail, on one core
    multiply_rate: float  # float32 operations per second while rows are assigned to lists
    compare_rate: float  # pairs per second, of `dimension` numbers, compared exactly
    decoder_cores: int = 0  # cores that decoded beside the GPU; 0: no GPU was measured


@dataclass(frozen=True)
class Counts:
    """The sizes of the job: images, vectors, index plan and results."""

    gallery: int
    queries: int | None  # None: nothing is ranked
    dimension: int
    chunk_rows: tuple[int, int]  # of gallery and queries
    plan: IndexPlan
    nprobe: int
    top_k: int = 10
    pca_sample: int = 0  # images that --pca is fitted on
    thumbnails: int = 0  # of the report
    shards: int = 1
    number_bytes: int = 2  # bytes per number of a stored vector

    @property
    def shard_rows(self) -> int:
        """Return the number of rows of a full shard."""
        return min(self.gallery, self.plan.rows_per_shard)


@dataclass(frozen=True)
class WorkerPool:
    """The workers of a job: actors that embed, and cores that run single tasks."""

    embedders: int
    cores: int
    decoder_cores: int = 0  # cores that decode for each GPU's worker; 0: workers are cores


@dataclass(frozen=True)
class Cost:
    """The estimated time of a stage in seconds, with a lower and an upper bound."""

    stage: str
    seconds: float
    low: float
    high: float


def makespan(items: int, piece: int, workers: int, per_item: float, per_piece: float) -> float:
    """Return the seconds until `items` are processed, distributed in pieces of `piece` items.

    A piece takes `per_piece` plus `per_item` seconds per item. List scheduling (Graham, "Bounds for
    certain multiprocessing anomalies", 1966) of equal pieces and a shorter last one; exact here.
    """
    full_pieces, remaining_items = divmod(items, piece)
    piece_seconds = per_piece + piece * per_item
    rounds = -(-full_pieces // workers)
    if full_pieces % workers or not remaining_items:
        return rounds * piece_seconds
    return rounds * piece_seconds + per_piece + remaining_items * per_item


def stage_costs(rates: Rates, counts: Counts, fleet: WorkerPool) -> list[Cost]:
    """Return the cost of each stage, in order; stages of queries only where there are queries."""
    queries = counts.queries
    listing = (counts.gallery + (queries or 0)) / rates.listing_rate
    costs = [_cost("start", rates.start), _cost("list", 0.0, measured=listing)]
    if counts.pca_sample:
        costs.append(
            _embed_cost("fit projection", rates, fleet, counts.pca_sample, 128, first=True)
        )
    first = not counts.pca_sample
    gallery_chunk, query_chunk = counts.chunk_rows
    costs.append(
        _embed_cost("embed gallery", rates, fleet, counts.gallery, gallery_chunk, first=first)
    )
    if queries is not None:
        costs.append(_embed_cost("embed queries", rates, fleet, queries, query_chunk, first=False))
    costs.append(_cost("index", rates.index, extrapolated=_index_seconds(rates, counts, fleet)))
    if queries is not None:
        ranking = _rank_seconds(rates, counts, queries, fleet)
        costs.append(_cost("rank", rates.rank, extrapolated=ranking))
        matches = queries * min(counts.top_k, counts.gallery)
        thumbnails = counts.thumbnails * rates.thumbnail / min(fleet.cores, counts.thumbnails or 1)
        evaluation = matches / EVALUATION_RATE
        costs.append(
            _cost("evaluate and report", rates.report, measured=thumbnails, extrapolated=evaluation)
        )
    return costs


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Return the sum of the costs.

    Bounds are added too, since stages deviate together: what slows one slows the others.
    """
    columns = zip(*((cost.seconds, cost.low, cost.high) for cost in costs), strict=True)
    return Cost("total", *(math.fsum(column) for column in columns))


def _cost(
    stage: str,
    fixed: float,
    *,
    measured: float = 0.0,
    spread: float = FIXED_SPREAD,
    extrapolated: float = 0.0,
) -> Cost:
    """Return the cost of a stage from its fixed, its measured and its extrapolated seconds."""
    low = fixed * (1 - FIXED_SPREAD) + measured * (1 - spread) + extrapolated / EXTRAPOLATION_FACTOR
    high = (
        fixed * (1 + FIXED_SPREAD) + measured * (1 + spread) + extrapolated * EXTRAPOLATION_FACTOR
    )
    return Cost(stage, fixed + measured + extrapolated, low, high)


def _embed_cost(
    stage: str, rates: Rates, fleet: WorkerPool, images: int, rows: int, *, first: bool
) -> Cost:
    pool = rates.first_pool_start if first else rates.later_pool_start
    work = makespan(images, rows, fleet.embedders, rates.image, rates.chunk)
    cost = _cost(stage, pool, measured=work, spread=rates.image_spread)
    if not rates.decoder_cores or rates.decoder_cores == fleet.decoder_cores:
        return cost
    # if decoding limits the rate, it scales with the decoder cores; if the GPU does, it stays
    scaled_work = work * rates.decoder_cores / fleet.decoder_cores
    smaller, larger = sorted((work, scaled_work))
    low = _cost(stage, pool, measured=smaller, spread=rates.image_spread).low
    high = _cost(stage, pool, measured=larger, spread=rates.image_spread).high
    return Cost(stage, pool + scaled_work, low, high)


def _index_seconds(rates: Rates, counts: Counts, fleet: WorkerPool) -> float:
    """Return the seconds to read samples, train, assign vectors to lists, and build shards.

    A product of d numbers counts 2 d operations. K-means compares its sample with every centroid
    `ITERATIONS` times; above `FLAT_LISTS` lists it has two levels of about sqrt(nlist) centroids
    each (`index/two_level_kmeans.py`). Rows are assigned in runs; a task of a shard compares its
    rows with the recall sample.
    """
    plan, d = counts.plan, counts.dimension
    read = _INDEX_PASSES * counts.gallery * d * PART_READ_SECONDS / fleet.cores
    lists = plan.nlist if plan.nlist <= FLAT_LISTS else 2 * math.sqrt(plan.nlist)
    train = 2.0 * d * plan.sample_rows * lists * ITERATIONS / rates.multiply_rate
    slices = max(1, plan.sample_rows // 8192)
    row_seconds = 2.0 * d * plan.nlist / rates.multiply_rate
    assign = makespan(counts.gallery, MIN_RUN_ROWS, fleet.cores, row_seconds, 0.0)
    recall_sample = min(SAMPLE_SIZE, counts.gallery)
    recall = _RECALL_PASSES * recall_sample * counts.shard_rows / rates.compare_rate
    rounds = -(-counts.shards // fleet.cores)
    return read + train / min(slices, fleet.cores) + assign + rounds * recall


def _rank_seconds(rates: Rates, counts: Counts, queries: int, fleet: WorkerPool) -> float:
    """Return the seconds to choose the lists of each query, search the shards and merge.

    A query reads `nprobe` of `nlist` lists, which are spread over the shards, and all lists if
    recall is measured on it: as many as at the second look, which mostly decides. A shard
    counts as one task, although several share it where there are fewer shards than cores
    (`search/shard_search.py`), so few shards with many queries are overestimated.
    """
    share = counts.nprobe / counts.plan.nlist
    lists = 2.0 * counts.dimension * queries * counts.plan.nlist / rates.multiply_rate
    sample = 0 if share >= 1 else min(queries, LOOK_SIZES[1])
    pairs = (queries * share + sample) * counts.shard_rows
    rounds = -(-counts.shards // fleet.cores)
    merge = queries * counts.top_k / MERGE_RATE
    return (lists if share < 1 else 0.0) + rounds * pairs / rates.compare_rate + merge


@dataclass(frozen=True)
class Sizes:
    """Measured sizes in bytes."""

    model: float  # of a bundle; store, index and query store each have a copy
    row: float  # of a part, per row
    line: float  # of a listing, per row
    shard_row: float  # of a shard and its table, per row
    match: float  # of the matches, per match
    page: float  # of a report without pictures
    picture: float  # of a thumbnail
    worker: float  # peak memory of a worker that embeds
    index_task: float  # peak memory of a task of index, with a small shard
    rank_task: float  # the same of rank
    driver: float  # peak memory of the driver


def disk_bytes(sizes: Sizes, counts: Counts) -> dict[str, float]:
    """Return the bytes of each finished output, and of intermediate files ("scratch").

    These are the runs of the index, which are as large as the parts of the store, or candidates.
    """
    d, queries = counts.dimension, counts.queries or 0
    matches = queries * min(counts.top_k, counts.gallery)
    result = {
        "store": sizes.model + counts.gallery * (sizes.row + sizes.line),
        "index": sizes.model + counts.plan.nlist * d * 4 + counts.gallery * sizes.shard_row,
    }
    if counts.queries is not None:
        result["queries"] = sizes.model + queries * (sizes.row + sizes.line)
        result["matches"] = matches * sizes.match
        result["report"] = sizes.page + counts.thumbnails * sizes.picture
    candidates = matches * counts.shards * _CANDIDATE_BYTES
    result["scratch"] = max(candidates, counts.gallery * sizes.row)
    return result


def memory_bytes(sizes: Sizes, counts: Counts) -> dict[str, float]:
    """Return the peak memory of each kind of process: the measured part and the growing part.

    A worker holds the vectors of a chunk, a task one shard, counted as in its plan. A task of index
    also holds a block of vectors in float32 and float64 and its products with the recall sample
    (`index/sample_neighbors.py`). The driver holds `_DRIVER_CHUNK_BYTES` per chunk.
    """
    shard = counts.shard_rows * counts.plan.bytes_per_vector
    block = min(counts.shard_rows, 1 << 13)
    block_bytes = block * (16 * counts.dimension + 12 * min(SAMPLE_SIZE, counts.gallery))
    chunks = counts.gallery / counts.chunk_rows[0] + (counts.queries or 0) / counts.chunk_rows[1]
    result = {
        "worker": sizes.worker + counts.chunk_rows[0] * counts.dimension * 4,
        "index_task": sizes.index_task + shard + block_bytes,
        "driver": sizes.driver + chunks * _DRIVER_CHUNK_BYTES,
    }
    return result if counts.queries is None else {**result, "rank_task": sizes.rank_task + shard}


def expected_thumbnails(queries: int, shown: int, top_k: int, gallery: int) -> int:
    """Return the expected number of thumbnails: shown queries, and distinct images among matches.

    As if matches were drawn at random: n (1 - (1 - 1/n)^draws) distinct images of n. Where the same
    images match many queries there are fewer.
    """
    queries = min(queries, shown)
    drawn = queries * min(top_k, gallery)
    distinct = -gallery * math.expm1(drawn * math.log1p(-1 / gallery)) if gallery > 1 else 1
    return queries + round(distinct)


def guess_nprobe(nlist: int) -> int:
    """Return a guess of the lists read per query for a recall of 0.95: the square root of nlist.

    That is 23 of 512, of which 16 gave 0.99 (`benchmarks/README.md`, index), and 256 of 65,536. The
    search itself uses the recall curve, which only a full index has.
    """
    return max(1, round(math.sqrt(nlist)))


def failure_interval(failed: int, tried: int) -> tuple[float, float, float]:
    """Return the share of failures and its 95 % interval, whose upper end exceeds 0 for 0 failures.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    z = 1.96
    share = failed / tried
    middle = (share + z * z / (2 * tried)) / (1 + z * z / tried)
    half = z / (1 + z * z / tried) * math.sqrt(share * (1 - share) / tried + (z / (2 * tried)) ** 2)
    return share, max(0.0, middle - half), min(1.0, middle + half)
