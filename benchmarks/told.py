"""How a benchmark tells what it found: one JSON object, printed and put into a file.

The machine's peaks stand beside it, measured right after, so that a figure of a slow hour is known
as one. `bench-output/BENCHMARK.json` keeps the last; LOOKALIKE_BENCH names another file.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine


def tell(benchmark: str, **found: Any) -> None:
    """Print what was found, with the machine, as one JSON object; keep it in a file."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps(
        {"benchmark": benchmark, **found, "when": when, "machine": machine()}, indent=1
    )
    path = Path(os.environ.get("LOOKALIKE_BENCH") or f"bench-output/{benchmark}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(text)


def kept(path: Path) -> Any:
    """Read what a benchmark told."""
    return json.loads(path.read_text())
