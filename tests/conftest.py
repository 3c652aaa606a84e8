"""Shared fixtures: generated photos, the labelled data set, and one local Ray instance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.retrieval.storage.s3 import proxy, s3  # noqa: F401 - one server for all tests

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

DATA = Path(os.environ.get("LOOKALIKE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of labelled photos, weights and broken files outside the repository."""
    if not (DATA / "README.md").is_file():
        pytest.skip(f"no photos and weights at {DATA} (set LOOKALIKE_DATA)")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """Skip fsync in this process: it protects only from a power loss, and takes a tenth of a run.

    Fault loops inject faults at the calls of fsync all the same (`retrieval/storage/folder.py`).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


_DEFAULT_MAX_PIXELS = Image.MAX_IMAGE_PIXELS


@pytest.fixture(autouse=True)
def reset_pillow_limit() -> None:
    """Restore Pillow's pixel limit, which decoding changes for the whole process."""
    Image.MAX_IMAGE_PIXELS = _DEFAULT_MAX_PIXELS


def draw_photos(root: Path, count: int, *, classes: int = 3, seed: int = 0) -> Path:
    """Write `count` JPEG files of noise around one colour per class, and return `root`."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        label = number % classes
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        colour = np.random.default_rng(label).integers(40, 215, 3)
        pixels = colour + generator.normal(0, 25, (48, 64, 3))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"photo{number:04d}.jpg", quality=90)
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that draws a folder of labelled photos below `tmp_path`."""

    def draw(name: str, count: int = 12, *, classes: int = 3, seed: int = 0) -> Path:
        return draw_photos(tmp_path / name, count, classes=classes, seed=seed)

    return draw


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start one local Ray instance for the whole session, since starting takes seconds."""
    from jobs.cluster.resources import Cluster

    cluster = Cluster("local", None)
    cluster.connect()
    yield
    cluster.close()
