"""Run every benchmark: `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "start",
    "listing",
    "resume",
    "driver",
    "index",
    "shard",
    "rank",
    "evaluate",
    "report",
    "engines",
    "embed",
    "train",
    "scale",
    "plan",
)

for name in BENCHMARKS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)
