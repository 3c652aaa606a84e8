"""A side of `benchmarks.index` for an interpreter of its own: autofaiss cannot share ours.

python -m venv rival; rival/bin/pip install autofaiss 'pyarrow<21'
python -m benchmarks.index --autofaiss rival/bin/python

It chooses a kind itself; `max_index_query_time_ms` and the rest stay as they are. Its recall and
rate are those of single queries, as it tunes for.
"""

from __future__ import annotations

import argparse
import json
import time

import faiss
import numpy as np
from autofaiss import build_index


def main() -> None:
    """Build an index of all vectors, and search it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side")
    parser.add_argument("--lists")
    parser.add_argument("--vectors")
    asked = parser.parse_args()
    rows, queries = (
        np.load(f"{asked.vectors}/{name}.npy").astype(np.float32) for name in ("rows", "asked")
    )
    started = time.perf_counter()
    index, _ = build_index(rows, save_on_disk=False, metric_type="ip", verbose=50)
    built = time.perf_counter() - started
    _, exact = faiss.knn(queries, rows, 10, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    _, found = index.search(queries, 10)
    seconds = time.perf_counter() - started
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    told = {"kind": type(faiss.downcast_index(index)).__name__, "rate": len(queries) / seconds}
    print(json.dumps({"train": built, "add": 0.0, "recall": sum(hits) / exact.size, **told}))


if __name__ == "__main__":
    main()
