"""Measure time, memory and size of writing a report, and the time to open it.

python -m benchmarks.report [--photos DIR] [--queries 1000 100000] [--top-k 10]

Matches are made up. With up to 2,000 queries, all images are separate files, copies of the photos
in DIR (or drawn ones), so that reading and resizing are included. With more queries, matches share
2,000 images and queries have no picture, so that mostly the pages are measured. Memory is the
proportional set size of the command and all its descendants, Ray included, sampled twice per
second. "Open" is the time until Chromium shows the first page, and one sorted over all queries.
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
from tests.sample_matches import write_matches


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--top-k", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        reports = [
            measure(Path(scratch, str(count)), count, arguments.top_k, arguments.photos)
            for count in arguments.queries
        ]
    write_result("report", top_k=arguments.top_k, reports=reports)


def measure(root: Path, queries: int, top_k: int, photos: Path | None) -> dict[str, Any]:
    """Write matches of `queries` queries, run `report` on them, and open the report."""
    photos = photos or draw_photos(root / "drawn", 64)
    photo_paths = sorted(path for path in photos.rglob("*.jpg"))
    has_pictures = queries <= 2000
    names = [f"{root}/photos/q{number:06}.jpg" for number in range(queries)]
    gallery = [
        f"{root}/photos/g{number:06}.jpg" for number in range(10_000 if has_pictures else 2000)
    ]
    (root / "photos").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*gallery, *(names if has_pictures else ())]):
        shutil.copyfile(photo_paths[number % len(photo_paths)], name)
    write_matches(root / "m", names, gallery, top_k=top_k, classes=max(3, queries // 5))
    command = [sys.executable, "-m", "lookalike", "report", "--matches", str(root / "m"),
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
        "open_seconds": _open_seconds(root / "out/report.html"),
    }


def _memory(pid: int) -> int:
    total = 0
    try:
        command = psutil.Process(pid)
        processes = [command, *command.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
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


def _open_seconds(page: Path) -> dict[str, float] | None:
    """Open the page, and the wrong answers by margin; return seconds, or None without Chromium."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return None
    settled = (
        "const done = arguments[0]; const look = () => document.getElementById('list')"
        ".hasAttribute('aria-busy') ? setTimeout(look, 5) : done(performance.now());"
        "setTimeout(look, 0)"
    )
    with _browser() as driver:
        seconds = {}
        for name, fragment in (("first", ""), ("sorted", "#show=wrong&sort=least")):
            driver.get("about:blank")
            started = time.perf_counter()
            driver.get(page.as_uri() + fragment)
            driver.execute_async_script(settled)
            seconds[name] = round(time.perf_counter() - started, 2)
    return seconds


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
