"""Baseline of `benchmarks.rank`: brute-force cosine of scikit-learn, as in the original project.

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
    """Search 1,000 of the queries and print rate and recall as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--place")
    arguments, _ = parser.parse_known_args()
    rows, queries = (
        np.load(f"{arguments.place}/{name}.npy").astype(np.float32) for name in ("rows", "queries")
    )
    queries = queries[:1000]
    model = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(rows)
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        neighbours = model.kneighbors(queries, return_distance=False)
        best = min(best, time.perf_counter() - started)
    exact = np.load(f"{arguments.place}/exact.npy")
    hits = [len(set(a) & set(b)) for a, b in zip(neighbours.tolist(), exact.tolist(), strict=True)]
    print(json.dumps({"rate": len(queries) / best, "recall": sum(hits) / exact.size}))


if __name__ == "__main__":
    main()
