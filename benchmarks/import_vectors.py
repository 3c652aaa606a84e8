"""Measure the import of precomputed vectors from a .npy and a Parquet file into a store.

Seconds of the stage (listing, reading, checking, writing; without Python's start and imports), and
seconds and processor seconds of the whole command.

    python -m benchmarks.import_vectors [--rows 100000] [--dimension 512] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.output import write_result
from benchmarks.startup import LOOKALIKE, timed

_FILES = ("vectors.npy", "vectors.parquet")


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in _FILES}
    with tempfile.TemporaryDirectory() as root:
        _write_files(Path(root), arguments.rows, arguments.dimension)
        for number in range(arguments.runs):
            for name in _FILES:
                runs[name].append(_import(Path(root, name), Path(root, f"{name}-{number}")))
    write_result(
        "import_vectors", rows=arguments.rows, dimension=arguments.dimension,
        files={name: _medians(values) for name, values in runs.items()},
    )  # fmt: skip


def _write_files(root: Path, rows: int, dimension: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
    np.save(root / _FILES[0], vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension)
    names = pa.array([f"image {row}" for row in range(rows)])
    pq.write_table(pa.table({"image_id": names, "embedding": column}), root / _FILES[1])


def _import(source: Path, output: Path) -> dict[str, float]:
    column = ["--embedding-column", "embedding"] if source.suffix == ".parquet" else []
    command = timed(LOOKALIKE, "embed", "--input", str(source), "--output", str(output), *column)
    stage: dict[str, Any] = json.loads((output / "run.json").read_text())
    return {"stage_seconds": stage["seconds"], **command}


def _medians(values: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: round(statistics.median(value[name] for value in values), 2) for name in values[0]
    }


if __name__ == "__main__":
    main()
