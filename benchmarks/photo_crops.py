"""Make real embeddings: random crops of photos, embedded by the code of lookalike itself.

python -m benchmarks.photo_crops [--photos DIR] [--weights FILE] [--rows 80000] [--queries 10000]
                                 [--dimension 256]

Crops allow any number of rows from few photos. Gallery and queries are crops of different photos.
Network and PCA are those of `lookalike embed`: MobileNet-V2, averaged, unit length, and PCA fitted
on the gallery; dimension 1,280 is the output of the network. Vectors are float16, as images are
stored by default. They depend on the photos, the weights, the seed and the counts, not on the
number of processes, and are kept in `bench-output/vectors`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.images.decode import apply_transform, decode_full
from retrieval.models.bundle import Bundle
from retrieval.models.embedder import Embedder, finish_vectors
from retrieval.models.engine_plan import plan_engine
from retrieval.models.pca import StreamingMoments
from retrieval.models.resolve import resolve_bundle
from retrieval.sources.folder import FolderSource

BACKBONE = "mobilenet_v2"
NETWORK_DIMENSION = 1280
IMAGE_SIZE = 160
QUERY_SHARE = 0.1  # share of the photos whose crops are queries
_AREA = 0.2, 1.0  # area of a crop, as a share of the photo
_ASPECT = 3 / 4, 4 / 3  # width / height, before it is limited to the photo
_MAX_PIXELS = 1 << 28
_TASK_PHOTOS = 8  # photos that a process embeds at once


PhotoCrops = tuple[str, str, int]
"""Path and SHA-256 of a photo, and the number of crops."""


class VectorsMissing(Exception):
    """Photos, weights or a file of vectors are absent, so a benchmark of them must be skipped."""


@dataclass(frozen=True)
class CropSettings:
    """What determines the vectors, besides photos and weights."""

    rows: int
    queries: int
    seed: int = 0
    image_size: int = IMAGE_SIZE


def main() -> None:
    """Make the vectors and print the folder that holds them."""
    parser = argparse.ArgumentParser()
    add_crop_options(parser)
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=256)
    arguments = parser.parse_args()
    try:
        print(crop_vectors(arguments))
    except VectorsMissing as error:
        print(f"skipped: {error}", file=sys.stderr)


def add_crop_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which photos and weights are used and where vectors are kept."""
    data = os.environ.get("LOOKALIKE_DATA")
    parser.add_argument("--photos", default=data and f"{data}/images", help="folder, any depth")
    parser.add_argument(
        "--weights",
        default=data and f"{data}/weights/{BACKBONE}.safetensors",
        help=f"file with the weights of {BACKBONE}",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that embed")
    parser.add_argument("--vectors", default="bench-output/vectors", help="folder that keeps them")


def crop_vectors(arguments: argparse.Namespace) -> Path:
    """Return a folder with `rows.npy` and `queries.npy` of the requested dimension, made if absent.

    Raises VectorsMissing if there are no photos or no weights.
    """
    for option, path in (("--photos", arguments.photos), ("--weights", arguments.weights)):
        if not path or not Path(path).exists():
            problem = f"{path} does not exist" if path else "is not given"
            raise VectorsMissing(
                f"{option} {problem}; specify photos and weights, or set LOOKALIKE_DATA to a "
                f"folder with images/ and weights/{BACKBONE}.safetensors"
            )
    settings = CropSettings(arguments.rows, arguments.queries, arguments.seed)
    photos = find_photos(arguments.photos)
    folder = Path(arguments.vectors, _folder_name(photos, Path(arguments.weights), settings))
    network = folder / str(NETWORK_DIMENSION)
    if not is_complete(network):
        bundle = resolve_bundle(
            backbone=BACKBONE, weights=arguments.weights, bundle=None, pooling="avg",
            normalize=True, image_size=settings.image_size, resize="squash", seed=0,
        )  # fmt: skip
        rows, queries = embed_crops(photos, bundle, settings, arguments.processes)
        save_vectors(network, rows, queries)
        description = {**asdict(settings), "photos": len(photos), "backbone": BACKBONE}
        Path(folder, "description.json").write_text(json.dumps(description) + "\n")
    if arguments.dimension == NETWORK_DIMENSION:
        return network
    projected = folder / str(arguments.dimension)
    if not is_complete(projected):
        save_vectors(projected, *_project(network, arguments.dimension))
    return projected


def find_photos(root: str) -> list[tuple[str, str]]:
    """Return path and SHA-256 of the photos below a folder, ordered by name, without copies.

    Of photos with equal bytes the first is kept, so that a query is never a crop of a photo that
    is in the gallery under another name.
    """
    items = sorted(FolderSource(root).items(), key=lambda item: item.image_id)
    paths: dict[str, str] = {}
    for item in items:
        paths.setdefault(hashlib.sha256(Path(item.path).read_bytes()).hexdigest(), item.path)
    if len(paths) < 2:
        raise VectorsMissing(
            f"{root} has {len(paths)} different photos; give a folder with at least two, since "
            "gallery and queries are crops of different photos"
        )
    return [(path, digest) for digest, path in paths.items()]


def split_photos(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the photos of the gallery and of those of the queries."""
    order = np.random.default_rng([seed, 0]).permutation(count)
    queries = max(1, round(QUERY_SHARE * count))
    return order[queries:], order[:queries]


def crop_boxes(
    digest: str, count: int, height: int, width: int, seed: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield random crops of a photo as (top, left, height, width).

    They depend on the photo's digest and the seed, so the same photo has the same first crops
    whatever their number and whatever the other photos are.
    """
    generator = np.random.default_rng([seed, int(digest[:16], 16)])
    for _ in range(count):
        area = height * width * generator.uniform(*_AREA)
        aspect = math.exp(generator.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
        crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
        top = int(generator.integers(height - crop_height + 1))
        left = int(generator.integers(width - crop_width + 1))
        yield top, left, crop_height, crop_width


def embed_crops(
    photos: Sequence[tuple[str, str]], bundle: Bundle, settings: CropSettings, processes: int = 1
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the vectors of the gallery's crops and of the queries', (n, d) float16, shuffled.

    They are shuffled so that any first rows are a sample of all photos.
    """
    tasks = [
        side[first : first + _TASK_PHOTOS]
        for side in assign_crops(photos, settings)
        for first in range(0, len(side), _TASK_PHOTOS)
    ]
    setup = bundle, settings
    if processes == 1:
        _load(*setup)
        vectors = [_embed_photos(task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, _load, setup) as pool:
            vectors = pool.map(_embed_photos, tasks, 1)
    together = np.concatenate(vectors)
    generator = np.random.default_rng([settings.seed, 1])
    rows, queries = together[: settings.rows], together[settings.rows :]
    return rows[generator.permutation(len(rows))], queries[generator.permutation(len(queries))]


def assign_crops(
    photos: Sequence[tuple[str, str]], settings: CropSettings
) -> tuple[list[PhotoCrops], list[PhotoCrops]]:
    """Return the photos of the gallery and of the queries with their numbers of crops.

    No photo is on both sides; the numbers of a side differ by one at most.
    """
    gallery, queries = split_photos(len(photos), settings.seed)
    return (
        _share_crops(photos, gallery, settings.rows),
        _share_crops(photos, queries, settings.queries),
    )


def _share_crops(
    photos: Sequence[tuple[str, str]], positions: NDArray[np.int64], crops: int
) -> list[PhotoCrops]:
    counts = np.full(len(positions), crops // len(positions))
    counts[: crops % len(positions)] += 1
    return [
        (*photos[photo], count)
        for photo, count in zip(positions.tolist(), counts.tolist(), strict=True)
    ]


_loaded: list[tuple[Embedder, CropSettings]] = []


def _load(bundle: Bundle, settings: CropSettings) -> None:
    plan = plan_engine(None, None, "cpu", None, gpus=False)
    _loaded[:] = [(Embedder(bundle, plan), settings)]


def _embed_photos(task: Sequence[PhotoCrops]) -> NDArray[np.float16]:
    """Embed the crops of some photos, in the process that `_load` prepared."""
    ((embedder, settings),) = _loaded
    images: list[torch.Tensor] = []
    for path, digest, count in task:
        pixels = decode_full(Path(path).read_bytes(), max_pixels=_MAX_PIXELS)
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
        for top, left, crop_height, crop_width in crop_boxes(
            digest, count, height, width, settings.seed
        ):
            crop = pixels[:, top : top + crop_height, left : left + crop_width]
            images.append(apply_transform(crop, embedder.bundle.transform))
    size = embedder.batch_size
    vectors = [embedder.embed(images[f : f + size]) for f in range(0, len(images), size)]
    empty = np.empty((0, embedder.bundle.dimension), np.float32)
    return np.concatenate([empty, *vectors]).astype(np.float16)


def _project(network: Path, dimension: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return gallery and queries on the axes of largest variance of the gallery."""
    rows, queries = (np.load(network / f"{name}.npy") for name in ("rows", "queries"))
    moments = StreamingMoments(rows.shape[1])
    moments.add(rows.astype(np.float32))
    projection = moments.fit(dimension)

    def project(vectors: NDArray[np.float16]) -> NDArray[np.float16]:
        projected = finish_vectors(
            vectors.astype(np.float32), normalize=True, projection=projection
        )
        return projected.astype(np.float16)

    return project(rows), project(queries)


def _folder_name(photos: Sequence[tuple[str, str]], weights: Path, settings: CropSettings) -> str:
    """Return a name that changes with everything that determines the vectors."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps([[photo[1] for photo in photos], asdict(settings)]).encode())
    return f"crops-{settings.rows}-{settings.queries}-{digest.hexdigest()[:12]}"


def save_vectors(folder: Path, rows: NDArray[Any], queries: NDArray[Any]) -> None:
    """Write gallery and queries into a folder; the queries come last and mark it complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, vectors in (("rows", rows), ("queries", queries)):
        unfinished = folder / f"{name}.unfinished.npy"
        np.save(unfinished, vectors)
        unfinished.replace(folder / f"{name}.npy")


def is_complete(folder: Path) -> bool:
    """Return whether `save_vectors` has finished in a folder."""
    return Path(folder, "queries.npy").exists()


if __name__ == "__main__":
    main()
