"""Measure time and memory of the driver for jobs of many chunks.

python -m benchmarks.driver [--chunks 10000 100000 1000000] [--workers 1000]

Without Ray, images or vectors: the product's own driver lists made-up images, claims a segment,
distributes chunks to simulated workers, collects the results and finishes the store. Each step is a
new process, like a run of the command: one is killed when half of the chunks are done, the next
finishes the job, then the store is opened, and the finished job is run again. A chunk has ten
images, so that listing 10^6 chunks takes minutes; apart from the listing, the driver's work depends
only on the number of chunks. The listing has the row groups of chunks of usual size: a footer of
62,500 row groups, which no job writes, would take half a gigabyte.

Seconds are processor time: of the driver, of the failure log (a separate actor in a job), and of
the simulated workers. `listings` counts how often all files of the store were listed, and `reads`
how many parts and ledgers the driver opened: in a bucket a listing takes one request per thousand
files, a read one or two requests.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.listing import images
from benchmarks.output import write_result
from benchmarks.simulated import CHUNK_ROWS, LEDGER_EVERY, Bucket, Meter, Prepared, Team
from jobs.cluster import actor_pool
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.listing import SourceListing
from jobs.embedding.store_sync import StoreSync
from retrieval.listing.listing import write_listing
from retrieval.storage import transaction
from retrieval.store.reader import open_store


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--workers", type=int, default=1000)
    arguments = parser.parse_args()
    sizes = [measure(chunks, arguments.workers) for chunks in arguments.chunks]
    exponents = [_exponents(*pair) for pair in itertools.pairwise(sizes)]
    write_result("driver", sizes=sizes, by_step=_by_step(sizes, exponents))


def _by_step(sizes: list[dict[str, Any]], exponents: list[dict[str, float]]) -> dict[str, Any]:
    """Return for each step the driver's seconds by chunks, the last exponent and the last peak."""
    return {
        name: {
            **{str(size["chunks"]): size["steps"][name]["driver_seconds"] for size in sizes},
            **({"exponent": exponents[-1][name]} if exponents else {}),
            "peak_bytes": 1e6 * last["peak_mb"],
        }
        for name, last in sizes[-1]["steps"].items()
    }


def measure(chunks: int, workers: int) -> dict[str, Any]:
    """Measure a job of `chunks` chunks; each run of its command is a separate process."""
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for run in (_list, _run_until_half, _resume, _open_store, _run_finished):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                steps |= pool.apply(run, (Path(scratch), chunks, workers))
    return {"chunks": chunks, "chunk_rows": CHUNK_ROWS, "workers": workers, "steps": steps}


def _exponents(smaller: dict[str, Any], larger: dict[str, Any]) -> dict[str, float]:
    """Return the exponent of each step: its driver time grows as chunks ** exponent."""
    log_ratio = math.log(larger["chunks"] / smaller["chunks"])
    return {
        name: round(
            math.log(max(step["driver_seconds"], 1e-3) / max(smaller_step["driver_seconds"], 1e-3))
            / log_ratio,
            2,
        )
        for (name, smaller_step), step in zip(
            smaller["steps"].items(), larger["steps"].values(), strict=True
        )
    }


def _list(scratch: Path, chunks: int, _: int) -> dict[str, Any]:
    meter = Meter()
    meter.begin("list")
    photos = images(chunks * CHUNK_ROWS, changed=False)
    write_listing(photos, scratch / "listing.parquet")
    return meter.steps()


def _run_until_half(scratch: Path, chunks: int, workers: int) -> dict[str, Any]:
    """Start the job; the whole job is killed when half of the chunks are done."""
    bucket, meter = Bucket(scratch, chunks), Meter()
    team = Team(bucket, meter, workers, "collect half", kill_after=chunks // 2)
    meter.begin("claim", bucket)
    transaction.claim_output(bucket, "store", {"embedding_dtype": "float16", "bundle": None})
    try:
        _synchronize(scratch, chunks, bucket, team)
    except KeyboardInterrupt:
        bucket.save()
        return meter.steps()
    raise AssertionError("the job was not killed")


def _resume(scratch: Path, chunks: int, workers: int) -> dict[str, Any]:
    bucket, meter = Bucket(scratch, chunks), Meter()
    meter.begin("resume", bucket)
    counts = _synchronize(scratch, chunks, bucket, Team(bucket, meter, workers, "collect"))
    failed = -(-chunks // LEDGER_EVERY)
    if (counts["rows"], counts["failures"]) != (chunks * CHUNK_ROWS - failed, failed):
        raise AssertionError(f"{counts} differ from what the workers wrote")
    bucket.save()
    return meter.steps()


def _open_store(scratch: Path, chunks: int, _: int) -> dict[str, Any]:
    bucket, meter = Bucket(scratch, chunks), Meter()
    meter.begin("open", bucket)
    store = open_store(bucket)
    meter.begin("parts", bucket)
    store.parts  # noqa: B018 - an index reads it first
    return meter.steps()


def _run_finished(scratch: Path, chunks: int, workers: int) -> dict[str, Any]:
    bucket, meter = Bucket(scratch, chunks), Meter()
    meter.begin("again", bucket)
    _synchronize(scratch, chunks, bucket, Team(bucket, meter, workers, "nothing is left"))
    return meter.steps()


def _synchronize(scratch: Path, chunks: int, bucket: Bucket, team: Team) -> dict[str, Any]:
    """Run `lookalike embed` from the point where its source is listed and its model loaded."""
    listing = SourceListing(scratch / "listing.parquet", chunks * CHUNK_ROWS, CHUNK_ROWS, 0)
    settings = EmbedSettings(input="photos", output=bucket.uri())
    cluster, prepared = Cluster(None, team.workers), Prepared(bucket)
    store_sync = StoreSync(settings, cluster, bucket, prepared, listing, "embed", lambda: None)  # type: ignore[arg-type]
    with mock.patch.object(actor_pool, "stream", team.stream):
        return store_sync.synchronize().counts


if __name__ == "__main__":
    main()
