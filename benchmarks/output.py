"""Write the result of a benchmark as JSON, together with the machine and its peak rates.

The peaks are measured right after the benchmark, so that a slow machine is recognised in a result.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine


def write_result(benchmark: str, **values: Any) -> None:
    """Print a result as one JSON object and write it to a file.

    The file is `bench-output/BENCHMARK.json`, or the one that LOOKALIKE_BENCH names.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    result = {"benchmark": benchmark, **values, "when": when, "machine": machine()}
    text = json.dumps(result, indent=1)
    path = Path(os.environ.get("LOOKALIKE_BENCH") or f"bench-output/{benchmark}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(text)


def read_result(path: Path) -> Any:
    """Return the JSON that `write_result` wrote."""
    return json.loads(path.read_text())
