"""Measure time and memory of listing 10^5 to 10^7 images, and of comparing two listings.

python -m benchmarks.listing [--sizes 100000 1000000 10000000]

The images are made up (no disk is walked); each size is measured in a separate process. Memory of
the driver should stay below 1.5 GB for any number of images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import write_result
from retrieval.core.records import Item
from retrieval.listing.diff import compare_listings
from retrieval.listing.listing import write_listing

_CHANGE_PERIOD = 1000  # of this many images one is replaced by a new one, and one is touched


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    sizes = parser.parse_args().sizes
    results = []
    for size in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(measure, (size,)))
    write_result("listing", sizes=results)


def measure(size: int) -> dict[str, Any]:
    """List `size` images, list them again with a few changes, and compare the two."""
    with tempfile.TemporaryDirectory() as scratch:
        previous, current = Path(scratch, "previous.parquet"), Path(scratch, "current.parquet")
        started = time.perf_counter()
        write_listing(images(size, changed=False), previous)
        listed = time.perf_counter()
        peak = _peak()
        write_listing(images(size, changed=True), current)
        relisted = time.perf_counter()
        changes = compare_listings(current, [previous], np.empty(0, np.int64))
        return {
            "images": size,
            "list_seconds": round(listed - started, 2),
            "list_peak_bytes": peak,
            "listing_bytes": previous.stat().st_size,
            "compare_seconds": round(time.perf_counter() - relisted, 2),
            "peak_bytes": _peak(),
            "changes": [len(changes.added), len(changes.removed), len(changes.touched)],
        }


def images(size: int, *, changed: bool) -> Iterator[Item]:
    """Yield made-up items of a folder in random order; with `changed`, some are new or touched."""
    step = random.Random(size).randrange(size // 3, size // 2) * 2 + 1
    while np.gcd(step, size) != 1:
        step += 2
    for number in range(size):
        image_number = number * step % size
        is_new = changed and image_number % _CHANGE_PERIOD == 0
        name = f"class{image_number % 1000:03}/{'new' if is_new else 'photo'}{image_number:09}.jpg"
        mtime = (
            1_700_000_000_000_000_000
            + image_number
            + int(changed and image_number % _CHANGE_PERIOD == 1)
        )
        yield Item(name, f"/photos/{name}", 50_000 + image_number % 7919, mtime, name[:8])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
