"""What does a job of very many chunks cost its driver, in time and memory?

python -m benchmarks.driver [--chunks 10000 100000 1000000] [--workers 1000]

No Ray, no images and no vectors: the product's own driver lists made-up images, claims a segment,
hands chunks out, collects the answers and finishes the store. Each process is one run of the
command: one that is killed when half of the chunks are done, the next that finishes the job, the
store opened, and the finished job found finished. A chunk has ten images, so that listing 10^6
chunks takes minutes; apart from the listing the driver's work depends on the number of chunks only.
The listing's row groups are those of chunks of a usual size: a footer of 62,500 row groups, which
no job writes, would take half a gigabyte by itself.

Seconds are processor time: of the driver, of the failure log (a separate actor in a job),
and of the simulated workers. `listings` counts how often all files of the store were listed, and
`reads` how many parts and ledgers the driver opened: on a bucket a listing is a request a thousand
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
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--workers", type=int, default=1000)
    asked = parser.parse_args()
    found = [measure(chunks, asked.workers) for chunks in asked.chunks]
    grown = [_exponents(*two) for two in itertools.pairwise(found)]
    write_result("driver", sizes=found, by_step=_by_step(found, grown))


def _by_step(found: list[dict[str, Any]], grown: list[dict[str, float]]) -> dict[str, Any]:
    """Give of each step the driver's seconds by chunks, the last exponent and the last peak."""
    return {
        name: {
            **{str(size["chunks"]): size["steps"][name]["driver_seconds"] for size in found},
            **({"exponent": grown[-1][name]} if grown else {}),
            "peak_bytes": 1e6 * last["peak_mb"],
        }
        for name, last in found[-1]["steps"].items()
    }


def measure(chunks: int, workers: int) -> dict[str, Any]:
    """Run one job of so many chunks, each run of its command in a process of its own."""
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for run in (_list, _half, _rest, _open, _again):
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                steps |= alone.apply(run, (Path(scratch), chunks, workers))
    return {"chunks": chunks, "chunk_rows": CHUNK_ROWS, "workers": workers, "steps": steps}


def _exponents(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Give the power of the number of chunks that the driver's time of each step grows by."""
    wider = math.log(other["chunks"] / one["chunks"])
    return {
        name: round(
            math.log(max(step["driver_seconds"], 1e-3) / max(before["driver_seconds"], 1e-3))
            / wider,
            2,
        )
        for (name, before), step in zip(one["steps"].items(), other["steps"].values(), strict=True)
    }


def _list(scratch: Path, chunks: int, _: int) -> dict[str, Any]:
    meter = Meter()
    meter.begin("list")
    photos = images(chunks * CHUNK_ROWS, changed=False)
    write_listing(photos, scratch / "listing.parquet")
    return meter.steps()


def _half(scratch: Path, chunks: int, workers: int) -> dict[str, Any]:
    """Begin the job; it is killed as a whole when half of the chunks are done."""
    bucket, meter = Bucket(scratch, chunks), Meter()
    team = Team(bucket, meter, workers, "collect half", killed_at=chunks // 2)
    meter.begin("claim", bucket)
    transaction.claim_output(bucket, "store", {"embedding_dtype": "float16", "bundle": None})
    try:
        _bring_up(scratch, chunks, bucket, team)
    except KeyboardInterrupt:
        bucket.save()
        return meter.steps()
    raise AssertionError("it was to be killed")


def _rest(scratch: Path, chunks: int, workers: int) -> dict[str, Any]:
    bucket, meter = Bucket(scratch, chunks), Meter()
    meter.begin("resume", bucket)
    counts = _bring_up(scratch, chunks, bucket, Team(bucket, meter, workers, "collect"))
    failed = -(-chunks // LEDGER_EVERY)
    if (counts["rows"], counts["failures"]) != (chunks * CHUNK_ROWS - failed, failed):
        raise AssertionError(f"{counts} is not what was put")
    bucket.save()
    return meter.steps()


def _open(scratch: Path, chunks: int, _: int) -> dict[str, Any]:
    bucket, meter = Bucket(scratch, chunks), Meter()
    meter.begin("open", bucket)
    store = open_store(bucket)
    meter.begin("parts", bucket)
    store.parts  # noqa: B018 - what an index asks first
    return meter.steps()


def _again(scratch: Path, chunks: int, workers: int) -> dict[str, Any]:
    bucket, meter = Bucket(scratch, chunks), Meter()
    meter.begin("again", bucket)
    _bring_up(scratch, chunks, bucket, Team(bucket, meter, workers, "nothing is left"))
    return meter.steps()


def _bring_up(scratch: Path, chunks: int, bucket: Bucket, team: Team) -> dict[str, Any]:
    """Do what `lookalike embed` does once its source is listed and its model ready."""
    listed = SourceListing(scratch / "listing.parquet", chunks * CHUNK_ROWS, CHUNK_ROWS, 0)
    settings = EmbedSettings(input="photos", output=bucket.uri())
    where, prepared = Cluster(None, team.workers), Prepared(bucket)
    growth = StoreSync(settings, where, bucket, prepared, listed, "embed", lambda: None)  # type: ignore[arg-type]
    with mock.patch.object(actor_pool, "stream", team.stream):
        return growth.synchronize().counts


if __name__ == "__main__":
    main()
