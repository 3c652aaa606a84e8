"""Estimate a job of 10^9 images on 100 nodes from measured rates.

python -m benchmarks.scale [--part]

Nothing is run: a stage is a count times a rate that another benchmark measured (results.yaml).
Counts of lists, shards and chunks come from the program's own plan. docs/scale.md has the table
and its assumptions. `--part` measures the one rate that no other benchmark
does: the processor time of reading a part of 4,096 x 512 float16 and of drawing a sample from it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.output import write_result
from benchmarks.results import recorded
from retrieval.core.records import IndexPlan
from retrieval.index.kmeans import ITERATIONS
from retrieval.index.plan import Gallery, plan_index
from retrieval.index.recall_curve import SAMPLE_SIZE
from retrieval.index.sampling import sample_table
from retrieval.listing.chunking import chunk_rows_for
from retrieval.search.shard_search import queries_per_block
from retrieval.store.reader import encode_part

IMAGES, DIMENSION, QUERIES, TOP_K = 10**9, 512, 10**6, 10
NODES, CORES, GPUS = 100, 16, 8
MEMORY = 4 << 30  # --max-index-memory
IMAGE_BYTES, PIXELS = 100_000, 3 * 224 * 224
NPROBE = 256  # assumed, 0.4 % of the rows; the recall curve decides
NETWORK = 1.25e9  # assumed bytes a second and node
REQUEST = 0.1  # assumed seconds for a listing of 1,000 keys

CORES_MEASURED = 2  # of the machines whose rates these are

LISTED = 10**7 / recorded("listing.n7.list_seconds")  # images a second, one process
DRIVEN = 10**6 / sum(recorded(f"driver.{step}.1000000") for step in ("claim", "collect", "finish"))
DECODED = recorded("embed-gpu.decode") / 16  # photos a second and core
ON_GPU = recorded("embed-gpu.network")  # images a second, ResNet-50 in bf16, the network alone
ON_CORE = recorded("embed-heavy.rates.ray") / CORES_MEASURED  # images a second and core, ResNet-50
PLACED = 1e9 * recorded("index.placed")  # operations a second and core while rows get their lists
PART_READ = sum(recorded(f"part.{step}") for step in ("checksum", "parquet", "names")) / 1000
SCANNED = recorded("rank.rate") / CORES_MEASURED * 200_000 * 32 / 512  # pairs a second and core
SHORT_LISTS = recorded("rank-curves.shards.16") / recorded("rank-curves.shards.1")
COMPARED = recorded("rank.all") / CORES_MEASURED * 200_000  # pairs a second and core, exact
JUDGED = 10**7 / recorded("evaluate.seconds")  # matches a second, one thread
REPORT = recorded("report.large.seconds")  # 100,000 queries x 10 on two cores


@dataclass(frozen=True)
class Stage:
    """A stage: how long it takes, on how many cores, what it moves and leaves."""

    name: str
    seconds: float
    cores: int  # that have work
    nodes: float  # that these are
    moved: float  # bytes, read and written
    files: int


def stages() -> list[Stage]:
    """Give the stages, in their order, and after those of embedding what else it could be."""
    parts = -(-IMAGES // chunk_rows_for(IMAGES))
    vectors = 2.0 * IMAGES * DIMENSION
    images = float(IMAGES * IMAGE_BYTES)
    keys = IMAGES / 1000 * REQUEST
    everything, beside = NODES * CORES, GPUS * CORES
    fed = min(DECODED * beside, ON_GPU * GPUS)
    spread = min(DECODED * everything, ON_GPU * GPUS)
    moved = images + vectors
    return [
        Stage("list, of one bucket", keys, 1, 1, IMAGES * 100.0, 0),
        Stage("list, sort and write", IMAGES / LISTED, 1, 1, IMAGES * 10.7, 1),
        Stage("embed, driver", parts / DRIVEN, 1, 1, parts * 1e3, 1),
        Stage("embed, 8 GPU nodes", IMAGES / fed, beside, GPUS, moved, parts),
        Stage("… or by all nodes' cores", IMAGES / ON_CORE / everything, everything, NODES, moved,
              parts),
        Stage("… or were all to decode", IMAGES / spread, everything, NODES,
              moved + PIXELS * IMAGES, parts),
        *_index(parts, vectors),
        *_rank(vectors),
        Stage("evaluate", QUERIES * TOP_K / JUDGED, 1, 1, QUERIES * TOP_K * 20.0, 0),
        Stage("report, of 100,000", REPORT, 2, 1, 2e9, 4000),
    ]  # fmt: skip


def _index(parts: int, vectors: float) -> list[Stage]:
    plan, shards = _plan()
    cores = NODES * CORES
    pass_ = max(parts * PART_READ / cores, vectors / NETWORK / NODES)
    root = int(plan.nlist**0.5)
    sample = 2.0 * DIMENSION * plan.sample_rows * root * (1 + ITERATIONS) / PLACED / root
    place = 2.0 * DIMENSION * plan.rows_per_shard * plan.nlist / PLACED
    known = SAMPLE_SIZE * plan.rows_per_shard / COMPARED
    slices = plan.sample_rows // 8192
    return [
        Stage("train, read the sample", pass_, cores, NODES, vectors, slices),
        Stage("train, k-means", sample + slices * 0.05, root, root / CORES, 3 * plan.sample_rows *
              DIMENSION * 2.0, slices + 1),
        Stage("index, recall's sample", pass_, cores, NODES, vectors, 0),
        Stage("index, shards", place + known, shards, shards / CORES, 2.2 * vectors, 3 * shards),
    ]  # fmt: skip


def _rank(vectors: float) -> list[Stage]:
    plan, shards = _plan()
    blocks = -(-QUERIES // queries_per_block(DIMENSION, TOP_K, MEMORY))
    lists = 2.0 * DIMENSION * QUERIES * plan.nlist / PLACED / blocks
    pairs = QUERIES * plan.rows_per_shard * NPROBE / plan.nlist
    answers = pairs / (SCANNED * SHORT_LISTS) + SAMPLE_SIZE * plan.rows_per_shard / COMPARED
    found = float(QUERIES * TOP_K * shards * 28)
    return [
        Stage("rank, lists of queries", lists, blocks, blocks / CORES, QUERIES * NPROBE * 4.0,
              blocks),
        Stage("rank, shards", answers, shards, shards / CORES, 1.2 * vectors + found,
              2 * shards * blocks),
        Stage("rank, merge", shards * 0.05, blocks, blocks / CORES, found, blocks),
    ]  # fmt: skip


def _plan() -> tuple[IndexPlan, int]:
    plan = plan_index(Gallery(IMAGES, DIMENSION, "float16", "cosine"), MEMORY)
    return plan, -(-IMAGES // plan.rows_per_shard)


def part_milliseconds() -> list[float]:
    """Give the medians of checking, parsing and drawing from a part."""
    rows = 4096
    names = [f"class{number % 1000:03}/photo{number:09}.jpg" for number in range(rows)]
    lines = pa.table({"row": range(rows), "image_id": names, "path": names, "label": names})
    sums = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    measured = pa.table({"width": [500] * rows, "height": [300] * rows, "sha256": sums})
    vectors = np.random.default_rng(0).normal(size=(rows, DIMENSION)).astype(np.float16)
    data = encode_part(lines, measured, vectors)
    times = []
    for _ in range(30):
        marks = [time.process_time()]
        hashlib.sha256(data).hexdigest()
        marks.append(time.process_time())
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        marks.append(time.process_time())
        sample_table(table, 1e-6, 1, "training")
        marks.append(time.process_time())
        times.append(np.diff(marks))
    return [round(1000 * float(seconds), 1) for seconds in np.median(times, 0)]


def _said(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds:.0f} s"


def table() -> str:
    """Draw the stages."""
    lines = [
        "| stage | time | cores at work | node-hours | moved | files |",
        "|---|---|---|---|---|---|",
    ]
    for stage in stages():
        hours = stage.seconds / 3600
        lines.append(
            f"| {stage.name} | {_said(stage.seconds)} | {stage.cores:,} | "
            f"{hours * stage.nodes:.2f} | {stage.moved / 1e9:,.0f} GB | {stage.files:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or what a part costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", action="store_true")
    if parser.parse_args().part:
        names = ("checksum", "parquet", "names")
        write_result("part", milliseconds=dict(zip(names, part_milliseconds(), strict=True)))
        return
    print(table(), end="")


if __name__ == "__main__":
    main()
