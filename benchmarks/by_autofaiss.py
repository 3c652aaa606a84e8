"""Baseline of `benchmarks.index`: autofaiss, run by another Python, since it needs other packages.

python -m venv rival; rival/bin/pip install autofaiss 'pyarrow<21'
python -m benchmarks.index --autofaiss rival/bin/python

autofaiss chooses the index type; `max_index_query_time_ms` and other options keep their defaults.
Recall and rate are those of single queries, for which it tunes.
"""

from __future__ import annotations

import argparse
import json
import time

import faiss
import numpy as np
from autofaiss import build_index


def main() -> None:
    """Build an index of all vectors, search it and print rate and recall as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side")
    parser.add_argument("--lists")
    parser.add_argument("--place")
    arguments = parser.parse_args()
    rows, queries = (
        np.load(f"{arguments.place}/{name}.npy").astype(np.float32) for name in ("rows", "queries")
    )
    started = time.perf_counter()
    index, _ = build_index(rows, save_on_disk=False, metric_type="ip", verbose=50)
    built = time.perf_counter() - started
    _, exact = faiss.knn(queries, rows, 10, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    _, neighbours = index.search(queries, 10)
    seconds = time.perf_counter() - started
    hits = [len(set(a) & set(b)) for a, b in zip(neighbours.tolist(), exact.tolist(), strict=True)]
    figures = {"kind": type(faiss.downcast_index(index)).__name__, "rate": len(queries) / seconds}
    print(json.dumps({"train": built, "add": 0.0, "recall": sum(hits) / exact.size, **figures}))


if __name__ == "__main__":
    main()
