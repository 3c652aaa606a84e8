"""Load real vectors for the benchmarks: crops of photos, or a file of ann-benchmarks or VIBE.

Such files are HDF5 with the gallery in `train` and the queries in `test`; h5py reads them
(`pip install -e '.[bench]'`). Vectors compared by angle are normalised, those compared by inner
product are taken as they are. All vectors are written once to a folder, as float16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.photo_crops import (
    VectorsMissing,
    add_crop_options,
    crop_vectors,
    is_complete,
    save_vectors,
)
from benchmarks.rivals import exact_neighbours

_ANGULAR = {"angular", "cosine", "normalized"}
_INNER_PRODUCT = {"ip", "dot", "inner_product"}


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where real vectors come from."""
    add_crop_options(parser)
    parser.add_argument("--hdf5", help="file of ann-benchmarks or VIBE, in place of photos")


def prepare_vectors(arguments: argparse.Namespace) -> Path:
    """Return a folder with rows.npy, queries.npy and exact.npy, the exact neighbours.

    `arguments` has `rows`, `queries` and `dimension` besides the options of `add_source_options`;
    a file keeps its dimension, and crops have that of the network (1,280) or a PCA of it.

    Raises VectorsMissing if the photos, the weights, the file or h5py are absent.
    """
    folder = _read_hdf5(arguments) if arguments.hdf5 else crop_vectors(arguments)
    if not Path(folder, "exact.npy").exists():
        rows, queries = (
            np.load(folder / f"{name}.npy").astype(np.float32) for name in ("rows", "queries")
        )
        unfinished = folder / "exact.unfinished.npy"
        np.save(unfinished, exact_neighbours(rows, queries))
        unfinished.replace(folder / "exact.npy")
    return folder


def describe_vectors(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what a result says about its vectors."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy", mmap_mode="r")
    source = Path(arguments.hdf5).name if arguments.hdf5 else "crops of photos"
    sizes = {"rows": len(rows), "queries": len(queries), "dimension": rows.shape[1]}
    path = folder.parent / "description.json"
    crops = {} if arguments.hdf5 else {"crops": json.loads(path.read_text())}
    return {"source": source, **sizes, **crops}


def _read_hdf5(arguments: argparse.Namespace) -> Path:
    path = Path(arguments.hdf5)
    if not path.exists():
        raise VectorsMissing(
            f"--hdf5 {path} does not exist; give a file of ann-benchmarks or VIBE, or photos"
        )
    try:
        import h5py
    except ImportError:
        raise VectorsMissing(
            f"--hdf5 {path} is read by h5py, which is not installed; pip install h5py"
        ) from None
    key = [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    name = f"{path.stem}-{arguments.rows}-{arguments.queries}-{digest}"
    folder = Path(arguments.vectors, name)
    if not is_complete(folder):
        with h5py.File(path) as file:
            sides = gallery_and_queries(file, str(path), arguments.rows, arguments.queries)
        save_vectors(folder, *sides)
    return folder


def gallery_and_queries(
    file: Any, path: str, rows: int, queries: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the first vectors of `train` and of `test` of an open file, (n, d) float16.

    Raises VectorsMissing if the file is for another distance, or float16 does not hold its numbers.
    """
    distance = file.attrs.get("distance", "")
    distance = distance.decode() if isinstance(distance, bytes) else str(distance)
    if distance not in _ANGULAR | _INNER_PRODUCT:
        raise VectorsMissing(
            f"--hdf5 {path} is for the distance {distance or '(none given)'}; give a file for one "
            f"of {', '.join(sorted(_ANGULAR | _INNER_PRODUCT))}"
        )
    sides = []
    for key, count in (("train", rows), ("test", queries)):
        vectors = np.asarray(file[key][:count], np.float32)
        if distance in _ANGULAR:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        largest = float(np.abs(vectors).max())
        if largest > float(np.finfo(np.float16).max):
            raise VectorsMissing(
                f"--hdf5 {path} has numbers up to {largest:g}, which float16 does not hold; give "
                "another file"
            )
        sides.append(vectors.astype(np.float16))
    return sides[0], sides[1]
