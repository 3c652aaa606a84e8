"""Estimate a job of 10^9 images on 100 nodes from measured rates.

python -m benchmarks.scale [--part]

Nothing is run: the time of a stage is a count divided by a rate that another benchmark measured
(results.yaml). Counts of lists, shards and chunks come from the index plan of lookalike.
docs/scale.md has the table and its assumptions. `--part` measures the only rate that no other
benchmark measures: the processor time to read a part of 4,096 x 512 float16 and to sample from it.
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
from retrieval.index.generations import rows_per_run
from retrieval.index.kmeans import ITERATIONS
from retrieval.index.plan import Gallery, plan_index
from retrieval.index.recall_curve import SAMPLE_SIZE
from retrieval.index.sampling import sample_table
from retrieval.listing.chunking import chunk_rows_for
from retrieval.search.shard_search import queries_per_block
from retrieval.store.part_writer import encode_part

IMAGES, DIMENSION, QUERIES, TOP_K = 10**9, 512, 10**6, 10
NODES, CORES, GPUS = 100, 16, 8
MEMORY = 4 << 30  # --max-index-memory
IMAGE_BYTES, PIXELS = 100_000, 3 * 224 * 224
NPROBE = 256  # assumed, 0.4 % of the rows; a search takes it from the recall curve
NETWORK_RATE = 1.25e9  # assumed bytes per second and node
LISTING_SECONDS = 0.1  # assumed seconds for a listing of 1,000 keys

CORES_MEASURED = 2  # cores of the machines on which the rates were measured

LISTING_RATE = 10**7 / recorded("listing.n7.list_seconds")  # images per second, one process
DRIVER_RATE = 10**6 / sum(
    recorded(f"driver.{step}.1000000") for step in ("claim", "collect", "finish")
)
DECODE_RATE = recorded("embed-gpu.decode") / 16  # photos per second and core
GPU_RATE = recorded("embed-gpu.network")  # images per second, ResNet-50 in bf16, the network alone
CORE_RATE = recorded("embed-heavy.rates.ray") / CORES_MEASURED  # images/s and core, ResNet-50
ASSIGN_RATE = 1e9 * recorded("index.placed")  # operations/s and core, while rows get their lists
PART_READ_SECONDS = (
    sum(recorded(f"part.{step}") for step in ("checksum", "parquet", "names")) / 1000
)
SCAN_RATE = recorded("rank.rate") / CORES_MEASURED * 200_000 * 32 / 512  # pairs per second and core
COMPARE_RATE = recorded("rank.all") / CORES_MEASURED * 200_000  # pairs per second and core, exact
EVALUATION_RATE = 10**7 / recorded("evaluate.seconds")  # matches per second, one thread
REPORT_SECONDS = recorded("report.large.seconds")  # 100,000 queries x 10 on two cores


@dataclass(frozen=True)
class Stage:
    """Estimated time and resources of a stage."""

    name: str
    seconds: float
    cores: int  # cores with work
    nodes: float  # nodes of these cores
    moved: float  # bytes read and written
    files: int  # files written


def stages() -> list[Stage]:
    """Return all stages in order, with alternatives to embedding on GPU nodes."""
    parts = -(-IMAGES // chunk_rows_for(IMAGES))
    vectors = 2.0 * IMAGES * DIMENSION
    images = float(IMAGES * IMAGE_BYTES)
    listing_seconds = IMAGES / 1000 * LISTING_SECONDS
    all_cores, decoder_cores = NODES * CORES, GPUS * CORES
    gpu_node_rate = min(DECODE_RATE * decoder_cores, GPU_RATE * GPUS)
    all_decode_rate = min(DECODE_RATE * all_cores, GPU_RATE * GPUS)
    moved = images + vectors
    return [
        Stage("list, of one folder", listing_seconds, 1, 1, IMAGES * 100.0, 0),
        Stage("list, sort and write", IMAGES / LISTING_RATE, 1, 1, IMAGES * 10.7, 1),
        Stage("embed, driver", parts / DRIVER_RATE, 1, 1, parts * 1e3, 1),
        Stage("embed, 8 GPU nodes", IMAGES / gpu_node_rate, decoder_cores, GPUS, moved, parts),
        Stage("embed, on all CPUs instead", IMAGES / CORE_RATE / all_cores, all_cores, NODES, moved,
              parts),
        Stage("embed, all CPUs decode instead", IMAGES / all_decode_rate, all_cores, NODES,
              moved + PIXELS * IMAGES, parts),
        *_index(parts, vectors),
        *_rank(vectors),
        Stage("evaluate", QUERIES * TOP_K / EVALUATION_RATE, 1, 1, QUERIES * TOP_K * 20.0, 0),
        Stage("report, of 100,000", REPORT_SECONDS, 2, 1, 2e9, 4000),
    ]  # fmt: skip


def _index(parts: int, vectors: float) -> list[Stage]:
    plan, shards = _plan()
    cores = NODES * CORES
    read_pass = max(parts * PART_READ_SECONDS / cores, vectors / NETWORK_RATE / NODES)
    root = int(plan.nlist**0.5)
    sample = 2.0 * DIMENSION * plan.sample_rows * root * (1 + ITERATIONS) / ASSIGN_RATE / root
    run_rows = rows_per_run(plan, MEMORY, IMAGES)
    runs = -(-IMAGES // run_rows)
    assign = 2.0 * DIMENSION * run_rows * plan.nlist / ASSIGN_RATE
    moved = 2.4 * vectors  # runs are read, shards written
    recall_sample = SAMPLE_SIZE * plan.rows_per_shard / COMPARE_RATE
    slices = plan.sample_rows // 8192
    return [
        Stage("train, read the sample", read_pass, cores, NODES, vectors, slices),
        Stage("train, k-means", sample + slices * 0.05, root, root / CORES, 3 * plan.sample_rows *
              DIMENSION * 2.0, slices + 1),
        Stage("index, recall sample", read_pass, cores, NODES, vectors, 0),
        Stage("index, assign rows", -(-runs // cores) * assign, cores, NODES, 2.2 * vectors, runs),
        Stage("index, shards", max(recall_sample, moved / NETWORK_RATE / (shards / CORES)), shards,
              shards / CORES, moved, 3 * shards),
    ]  # fmt: skip


def _rank(vectors: float) -> list[Stage]:
    plan, shards = _plan()
    blocks = -(-QUERIES // queries_per_block(DIMENSION, TOP_K, MEMORY))
    lists = 2.0 * DIMENSION * QUERIES * plan.nlist / ASSIGN_RATE / blocks
    pairs = QUERIES * plan.rows_per_shard * NPROBE / plan.nlist
    answers = pairs / SCAN_RATE + SAMPLE_SIZE * plan.rows_per_shard / COMPARE_RATE
    candidate_bytes = float(QUERIES * TOP_K * min(shards, NPROBE) * 28)
    return [
        Stage("rank, lists of queries", lists, blocks, blocks / CORES,
              QUERIES * (NPROBE * 4.0 + DIMENSION * 2.0), blocks),
        Stage("rank, shards", answers, shards, shards / CORES, 1.2 * vectors + candidate_bytes,
              2 * shards * blocks),
        Stage("rank, merge", shards * 0.05, blocks, blocks / CORES, candidate_bytes, blocks),
    ]  # fmt: skip


def _plan() -> tuple[IndexPlan, int]:
    plan = plan_index(Gallery(IMAGES, DIMENSION, "float16", "cosine"), MEMORY)
    return plan, -(-IMAGES // plan.rows_per_shard)


def part_milliseconds() -> list[float]:
    """Return the median milliseconds to verify, parse and sample a part."""
    rows = 4096
    names = [f"class{number % 1000:03}/photo{number:09}.jpg" for number in range(rows)]
    listing_rows = pa.table({"row": range(rows), "image_id": names, "path": names, "label": names})
    sums = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    measured = pa.table({"width": [500] * rows, "height": [300] * rows, "sha256": sums})
    vectors = np.random.default_rng(0).normal(size=(rows, DIMENSION)).astype(np.float16)
    data = encode_part(listing_rows, measured, vectors)
    times = []
    for _ in range(30):
        timestamps = [time.process_time()]
        hashlib.sha256(data).hexdigest()
        timestamps.append(time.process_time())
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        timestamps.append(time.process_time())
        sample_table(table, 1e-6, 1, "training")
        timestamps.append(time.process_time())
        times.append(np.diff(timestamps))
    return [round(1000 * float(seconds), 1) for seconds in np.median(times, 0)]


def _format_seconds(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds:.0f} s"


def table() -> str:
    """Return the stages as a Markdown table."""
    lines = [
        "| stage | time | busy cores | node-hours | moved | files |",
        "|---|---|---|---|---|---|",
    ]
    for stage in stages():
        hours = stage.seconds / 3600
        lines.append(
            f"| {stage.name} | {_format_seconds(stage.seconds)} | {stage.cores:,} | "
            f"{hours * stage.nodes:.2f} | {stage.moved / 1e9:,.0f} GB | {stage.files:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or with `--part` measure reading a part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", action="store_true")
    if parser.parse_args().part:
        names = ("checksum", "parquet", "names")
        write_result("part", milliseconds=dict(zip(names, part_milliseconds(), strict=True)))
        return
    print(table(), end="")


if __name__ == "__main__":
    main()
