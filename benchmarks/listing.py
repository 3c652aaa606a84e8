"""Measure time and memory of listing 10^5 to 10^7 images, and of comparing two listings.

python -m benchmarks.listing [--sizes 100000 1000000 10000000]

The images are made up (no disk is walked), each size in a process of its own. The driver's memory
should stay below 1.5 GB for any number of images.
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

_AGAIN = 1000  # of so many images one is gone, one has been touched, and one is new


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    sizes = parser.parse_args().sizes
    found = []
    for size in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            found.append(alone.apply(measure, (size,)))
    write_result("listing", sizes=found)


def measure(size: int) -> dict[str, Any]:
    """List `size` images, list them again with a few changes, and compare the two."""
    with tempfile.TemporaryDirectory() as scratch:
        before, now = Path(scratch, "before.parquet"), Path(scratch, "now.parquet")
        started = time.perf_counter()
        write_listing(images(size, changed=False), before)
        listed = time.perf_counter()
        peak = _peak()
        write_listing(images(size, changed=True), now)
        again = time.perf_counter()
        changes = compare_listings(now, [before], np.empty(0, np.int64))
        return {
            "images": size,
            "list_seconds": round(listed - started, 2),
            "list_peak_bytes": peak,
            "listing_bytes": before.stat().st_size,
            "compare_seconds": round(time.perf_counter() - again, 2),
            "peak_bytes": _peak(),
            "changes": [len(changes.added), len(changes.removed), len(changes.touched)],
        }


def images(size: int, *, changed: bool) -> Iterator[Item]:
    """Give items of a folder in an order that is no order, a few of them changed."""
    step = random.Random(size).randrange(size // 3, size // 2) * 2 + 1
    while np.gcd(step, size) != 1:
        step += 2
    for number in range(size):
        place = number * step % size
        new = changed and place % _AGAIN == 0
        name = f"class{place % 1000:03}/{'new' if new else 'photo'}{place:09}.jpg"
        mtime = 1_700_000_000_000_000_000 + place + int(changed and place % _AGAIN == 1)
        yield Item(name, f"/photos/{name}", 50_000 + place % 7919, mtime, name[:8])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
