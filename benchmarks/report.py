"""Measure time, memory and size of writing a report, and the time to open it.

python -m benchmarks.report [--photos DIR] [--queries 1000 100000] [--top-k 10]

Matches are made up. Up to 2,000 queries all images are copies of the photos in DIR (drawn ones
without it), each a file of its own, so that reading and shrinking count; beyond that queries share
2,000 of them and have no picture, so that what is measured is the pages. Memory is the proportional
share of the command and all its descendants, Ray included, sampled twice a second. "Open" is the
time until the first page stands, and until one that is sorted over all queries does, in Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.output import write_result
from tests.conftest import draw_photos
from tests.matches import put_matches


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--top-k", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = [
            measure(Path(scratch, str(count)), count, asked.top_k, asked.photos)
            for count in asked.queries
        ]
    write_result("report", top_k=asked.top_k, reports=found)


def measure(root: Path, queries: int, top_k: int, photos: Path | None) -> dict[str, Any]:
    """Make matches of so many queries, report them, and open the report."""
    photos = photos or draw_photos(root / "drawn", 64)
    kept = sorted(path for path in photos.rglob("*.jpg"))
    few = queries <= 2000
    names = [f"{root}/photos/q{number:06}.jpg" for number in range(queries)]
    gallery = [f"{root}/photos/g{number:06}.jpg" for number in range(10_000 if few else 2000)]
    (root / "photos").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*gallery, *(names if few else ())]):
        shutil.copyfile(kept[number % len(kept)], name)
    put_matches(root / "m", names, gallery, top_k=top_k, classes=max(3, queries // 5))
    command = [sys.executable, "-m", "jobs.cli", "report", "--matches", str(root / "m"),
               "--output", str(root / "out/report.html"), "--json"]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    sizes = {path: path.stat().st_size for path in (root / "out").rglob("*") if path.is_file()}
    facets = root / "out/report_files/facets.js"
    return {
        "queries": queries,
        "images": sum(path.suffix == ".jpg" for path in sizes),
        "seconds": round(seconds, 1),
        "peak_bytes_of_all_processes": peak,
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        "page_bytes": sizes[root / "out/report.html"],
        "facets_bytes": sizes.get(facets),
        "open_seconds": _opened(root / "out/report.html"),
    }


def _memory(pid: int) -> int:
    total = 0
    try:
        alone = psutil.Process(pid)
        everyone = [alone, *alone.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in everyone:
        try:
            total += each.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total


@contextmanager
def _browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def _opened(page: Path) -> dict[str, float] | None:
    """Open the page, and then at the least sure of the wrong ones; None without a browser."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return None
    settled = (
        "const done = arguments[0]; const look = () => document.getElementById('list')"
        ".hasAttribute('aria-busy') ? setTimeout(look, 5) : done(performance.now());"
        "setTimeout(look, 0)"
    )
    with _browser() as driver:
        found = {}
        for name, part in (("first", ""), ("sorted", "#show=wrong&sort=least")):
            driver.get("about:blank")
            started = time.perf_counter()
            driver.get(page.as_uri() + part)
            driver.execute_async_script(settled)
            found[name] = round(time.perf_counter() - started, 2)
    return found


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
