"""Draw vectors and run the compared programs (sides) in separate processes.

A side is a function of a benchmark module. Each run of it is a new process with a given number of
threads, so that sides share no state; benchmarks run the sides alternately.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SLOWING_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Environment variables that slow products of FAISS and numpy; removed for all sides."""

_LONG_SEARCH = 3.0  # seconds


def run_side(
    module: str, side: str, threads: int, *words: Any, python: str = sys.executable
) -> dict[str, Any]:
    """Run a side in a new process with `threads` threads per library; return the JSON it prints."""
    environment = {
        name: value for name, value in os.environ.items() if name not in _SLOWING_VARIABLES
    }
    environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [python, "-m", module, "--side", side, *map(str, words)]
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def clustered(rows: int, dimension: int, queries: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw (rows, d) unit vectors in clusters of very different sizes, and queries, in float16.

    Clusters are isotropic and far apart, unlike those of embeddings: codes and graphs that use the
    structure of vectors do badly on them. Compare search methods on real vectors
    (`benchmarks/search.py`).
    """
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


def recall_of(neighbours: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the share of the exact neighbours, (q, k) ids, that are among `neighbours`."""
    hits = [len(set(a) & set(b)) for a, b in zip(neighbours.tolist(), exact.tolist(), strict=True)]
    return round(sum(hits) / exact.size, 4)


def timed(
    search: Callable[[NDArray[Any]], NDArray[Any]], queries: NDArray[Any], exact: NDArray[Any]
) -> dict[str, float]:
    """Return the rate of a search, and the recall on the first queries, given `exact`.

    A short search is run twice, and the better rate counts; the first run of a long one is as good.
    """
    best, neighbours = float("inf"), exact
    for _ in range(2):
        started = time.perf_counter()
        neighbours = search(queries)
        best = min(best, time.perf_counter() - started)
        if best > _LONG_SEARCH:
            break
    return {"rate": len(queries) / best, "recall": recall_of(neighbours[: len(exact)], exact)}


def spread(values: list[float]) -> list[float]:
    """Return the median, minimum and maximum of values."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]
