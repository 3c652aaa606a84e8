"""A side of `benchmarks.rank` as the original project searched: scikit-learn's brute-force cosine.

python -m venv rival; rival/bin/pip install scikit-learn
python -m benchmarks.rank --sklearn rival/bin/python
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from sklearn.neighbors import NearestNeighbors


def main() -> None:
    """Search some of the queries."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--place")
    asked, _ = parser.parse_known_args()
    rows, queries = (
        np.load(f"{asked.place}/{name}.npy").astype(np.float32) for name in ("rows", "asked")
    )
    queries = queries[:1000]
    neighbours = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(rows)
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        found = neighbours.kneighbors(queries, return_distance=False)
        best = min(best, time.perf_counter() - started)
    exact = np.load(f"{asked.place}/exact.npy")
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    print(json.dumps({"rate": len(queries) / best, "recall": sum(hits) / exact.size}))


if __name__ == "__main__":
    main()
