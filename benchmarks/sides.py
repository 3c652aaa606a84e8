"""Draw vectors and run the compared programs (sides) in separate processes.

A side is a function of one module. Each run of it is a new process with the threads that it is
given, so that the sides neither share nor inherit anything; the runs of the sides alternate.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HINDERING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""They slow the products of FAISS and numpy: left out for both."""


def run_side(
    module: str, side: str, threads: int, *words: Any, python: str = sys.executable
) -> dict[str, Any]:
    """Call a side in a process of its own, whose libraries use so many threads each."""
    rest = {name: value for name, value in os.environ.items() if name not in _HINDERING}
    rest |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [python, "-m", module, "--side", side, *map(str, words)]
    done = subprocess.run(command, env=rest, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def clustered(rows: int, dimension: int, queries: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw unit vectors in clusters of very different sizes, and queries like them."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2000, dimension)).astype(np.float32)
    weight = generator.pareto(1.5, 2000) + 0.1
    drawn = generator.choice(2000, rows + queries, p=weight / weight.sum())
    values = np.empty((rows + queries, dimension), np.float16)
    for first in range(0, len(values), 1 << 14):
        part = centres[drawn[first : first + (1 << 14)]]
        part = part + 0.7 * generator.normal(size=part.shape).astype(np.float32)
        values[first : first + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return values[:rows], values[rows:]


def recall_of(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Give the mean share of the exact neighbours, (q, k) ids, that were found."""
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    return round(sum(hits) / exact.size, 4)


def spread(values: list[float]) -> list[float]:
    """Give the median, the least and the greatest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]
