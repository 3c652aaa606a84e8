"""Embed labelled photos with every pooling at once, for the benchmarks of recipes and re-ranking.

The vectors are those of `lookalike embed` before projection and normalisation. They are kept in a
folder whose name changes with the photos, the weights and the view.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from retrieval.core.schemas import Resize
from retrieval.images.decode import decode
from retrieval.models.embedder import Embedder, finish_vectors
from retrieval.models.engine_plan import plan_engine
from retrieval.models.pca import Projection, StreamingMoments
from retrieval.models.resolve import resolve_all_poolings
from retrieval.vectors.float_conversions import to_float32
from retrieval.vectors.normalize import normalize_rows
from retrieval.vectors.scoring import Float32

BACKBONES = ("squeezenet1_0", "mobilenet_v2", "timm:tf_efficientnet_lite0")
"""Networks whose weights are measured, as `--backbone` names them."""

_MAX_PIXELS = 1 << 28


@dataclass(frozen=True)
class View:
    """How a photo is shown to the network; `resize` None is the weights' own."""

    resize: Resize | None = None
    image_size: int | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Photos:
    """The n labelled photos of one side, ordered by image_id."""

    paths: tuple[Path, ...]
    ids: pa.Array
    labels: pa.Array


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options --data, --networks and --cache; it shows the first line."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    data = os.environ.get("LOOKALIKE_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None)
    parser.add_argument("--networks", type=lambda text: text.split(","), default=list(BACKBONES))
    parser.add_argument("--cache", type=Path, default=Path("bench-output/recipes"))
    return parser


def read_photos(data: Path, split: str) -> Photos:
    """Return the photos of `gallery` or `queries` below `data/images`, with their labels."""
    with (data / "images/labels.csv").open(newline="") as file:
        rows = sorted(
            (row["image_id"], row["label"]) for row in csv.DictReader(file) if row["split"] == split
        )
    paths = tuple(data / "images" / split / image_id for image_id, _ in rows)
    ids, labels = (pa.array(column, pa.string()) for column in zip(*rows, strict=True))
    return Photos(paths, ids, labels)


def weights_file(data: Path, backbone: str) -> Path:
    """Return the file of the weights of a network below `data/weights`."""
    return data / "weights" / f"{backbone.removeprefix('timm:')}.safetensors"


def embed_photos(
    data: Path, backbone: str, view: View, paths: Sequence[Path], cache: Path
) -> dict[str, Float32]:
    """Return the (n, d) float32 vectors of photos for each pooling, not normalised."""
    bundle, widths = resolve_all_poolings(
        backbone,
        str(weights_file(data, backbone)),
        image_size=view.image_size,
        resize=view.resize,
        seed=0,
    )
    key = [bundle.digest, asdict(view), [(path.name, path.stat().st_size) for path in paths]]
    file = cache / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        embedder = Embedder(bundle, plan_engine(None, None, "cpu", None, gpus=False))
        size, vectors = embedder.batch_size, []
        for first in range(0, len(paths), size):
            images = [_read(path, embedder, view) for path in paths[first : first + size]]
            vectors.append(embedder.embed(images))
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished.npy")
        np.save(unfinished, np.concatenate(vectors))
        unfinished.replace(file)
    stored: NDArray[np.float32] = np.load(file)
    ends = np.cumsum(list(widths.values())).tolist()
    return {
        pooling: np.ascontiguousarray(stored[:, end - width : end])
        for (pooling, width), end in zip(widths.items(), ends, strict=True)
    }


def fit_projection(vectors: Float32, dimensions: int) -> Projection | None:
    """Fit the projection of `embed --pca` on all vectors (n, d); None for 0 dimensions."""
    if not dimensions:
        return None
    moments = StreamingMoments(vectors.shape[1])
    moments.add(to_float32(normalize_rows(vectors)))
    return moments.fit(dimensions)


def finish(vectors: Float32, projection: Projection | None) -> Float32:
    """Return vectors (n, d) normalised and projected, as `embed` stores them."""
    return finish_vectors(vectors, normalize=True, projection=projection)


def _read(path: Path, embedder: Embedder, view: View) -> torch.Tensor:
    """Decode a photo to uint8 (3, side, side), mirrored if the view is."""
    decoded = decode(path.read_bytes(), embedder.bundle.transform, max_pixels=_MAX_PIXELS)
    return decoded.pixels.flip(-1) if view.mirrored else decoded.pixels
