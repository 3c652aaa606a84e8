"""Training photos, decoded once into memory-mapped arrays.

Training reads each photo dozens of times, and decoding would take most of the time. So each photo
is decoded once, in threads, and stored as uint8 twice: transformed as for embedding, and with a
margin for random crops (150 and 190 kB per photo at 224 pixels). Arrays are memory-mapped, so
memory does not grow with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.core.errors import InputError, LookalikeError, StorageFailure, UsageError
from retrieval.core.records import Item, Transform
from retrieval.images.decode import apply_transform, decode_full
from retrieval.sources.item_reader import ItemReader
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import sha256_of_file
from retrieval.training.augmentation import MARGIN
from retrieval.training.dataset import dataset_digest
from retrieval.training.split import SplitBy, choose_validation

_EXACT, _WIDE, _RECORD = "exact.npy", "wide.npy", "photos.json"


@dataclass(frozen=True)
class PhotoSubset:
    """The n photos of one part of the split: `rows` (n,) of the array `pixels`.

    `pixels` is uint8 (N, 3, side, side), mapped from disk and shared by both parts. `classes` is
    (n,) int64, indices into `names`.
    """

    pixels: Tensor
    rows: NDArray[np.int64]
    classes: Tensor
    names: tuple[str, ...]
    image_ids: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.rows)

    def take(self, positions: Tensor) -> Tensor:
        """Return the pixels, uint8 (m, 3, side, side), at (m,) positions in this subset."""
        return self.pixels[torch.from_numpy(self.rows)[positions]]


@dataclass(frozen=True)
class PhotoSplit:
    """Training and validation photos; split by class, the two subsets share no class name."""

    training: PhotoSubset
    plain: PhotoSubset  # the training photos, transformed as for embedding
    validation: PhotoSubset
    failures: tuple[str, ...]  # "image_id: reason", of photos that could not be read

    @property
    def same_classes(self) -> bool:
        """Return whether validation and training photos have the same classes."""
        return self.training.names == self.validation.names


@contextmanager
def decode_photos(
    items: Sequence[Item], transform: Transform, *, max_pixels: int, cache: str | None,
    threads: int, options: Mapping[str, Any] | None = None,
) -> Iterator[DecodedPhotos]:  # fmt: skip
    """Yield decoded photos, in a folder below `cache`, where a later run reuses them.

    Without a cache the folder is temporary. Raises UsageError where the cache cannot be written,
    StorageFailure where its disk is full or a source fails temporarily.
    """
    with TemporaryDirectory(prefix="lookalike-photos-") as scratch:
        name = _cache_name(items, transform, max_pixels)
        folder = Path(cache or scratch, f"photos-{name}")
        decoded = _find_decoded(folder, items)
        if decoded is None:
            _make_folder(folder)
            with ItemReader(options) as reader:
                decoded = _decode(items, reader, transform, max_pixels, folder, threads)
        yield decoded


def _make_folder(folder: Path) -> None:
    """Create the folder of photos; raise UsageError if `--cache` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"--cache {folder.parent} cannot be written ({error.strerror}); specify a local folder "
            "that can"
        ) from error


@dataclass(frozen=True)
class DecodedPhotos:
    """Decoded photos, row n for item n; rows of items in `failures` are blank."""

    folder: Path
    items: tuple[Item, ...]
    exact: Tensor
    wide: Tensor
    failures: Mapping[int, str]  # reason by position of the item

    def split(self, *, by: SplitBy, share: float, seed: int) -> PhotoSplit:
        """Split the readable photos into training and validation subsets (`choose_validation`)."""
        rows = np.array([n for n in range(len(self.items)) if n not in self.failures], np.int64)
        labels = [str(self.items[row].label) for row in rows]
        is_validation = (
            choose_validation(labels, by=by, share=share, seed=seed)
            if len(rows)
            else np.zeros(0, bool)
        )
        failures = sorted(
            f"{self.items[n].image_id}: {reason}" for n, reason in self.failures.items()
        )
        training = self._part(self.wide, rows[~is_validation])
        plain = dataclasses.replace(training, pixels=self.exact)
        return PhotoSplit(
            training, plain, self._part(self.exact, rows[is_validation]), tuple(failures)
        )

    def _part(self, pixels: Tensor, rows: NDArray[np.int64]) -> PhotoSubset:
        items = [self.items[row] for row in rows]
        names = sorted({str(item.label) for item in items})
        classes = torch.from_numpy(np.searchsorted(names, [str(item.label) for item in items]))
        return PhotoSubset(
            pixels, rows, classes, tuple(names), tuple(item.image_id for item in items)
        )


def _cache_name(items: Sequence[Item], transform: Transform, max_pixels: int) -> str:
    """Return a digest of everything that shapes the pixels, which names the cache folder."""
    shape = [
        dataset_digest(items),
        [item.path for item in items],
        transform.to_json(),
        max_pixels,
        MARGIN,
    ]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def open_decoded(folder: Path, items: Sequence[Item]) -> DecodedPhotos:
    """Open photos that another process decoded; raise InputError if there are none."""
    decoded = _find_decoded(folder, items)
    if decoded is None:
        raise InputError(f"{folder} holds no photos; --cache must be accessible to all workers")
    return decoded


def _find_decoded(folder: Path, items: Sequence[Item]) -> DecodedPhotos | None:
    """Return the photos that an earlier run decoded, or None if incomplete or altered."""
    try:
        record = parse_checksummed_json((folder / _RECORD).read_bytes())
        if record is None or any(
            sha256_of_file(folder / name) != record["files"][name] for name in (_EXACT, _WIDE)
        ):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    exact, wide = (torch.from_numpy(_map_array(folder / name)) for name in (_EXACT, _WIDE))
    return DecodedPhotos(
        folder,
        tuple(items),
        exact,
        wide,
        {int(position): reason for position, reason in record["failures"].items()},
    )


def _map_array(path: Path) -> NDArray[np.uint8]:
    """Memory-map an array, copy-on-write, since torch warns about read-only arrays."""
    array: NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _decode(
    items: Sequence[Item], reader: ItemReader, transform: Transform, max_pixels: int, folder: Path,
    threads: int,
) -> DecodedPhotos:  # fmt: skip
    transforms = (transform, _with_margin(transform))
    arrays = [
        _allocate_array(folder / name, (len(items), 3, target.image_size, target.image_size))
        for name, target in zip((_EXACT, _WIDE), transforms, strict=True)
    ]
    failures: dict[int, str] = {}

    def read(position: int) -> None:
        pixels = _read(items[position], reader, transforms, max_pixels)
        if isinstance(pixels, str):
            failures[position] = pixels
            return
        for array, variant in zip(arrays, pixels, strict=True):
            array[position] = variant.numpy()

    with ThreadPoolExecutor(threads, "decode") as pool:
        list(pool.map(read, range(len(items))))
    record = {
        "files": {name: sha256_of_file(folder / name) for name in (_EXACT, _WIDE)},
        "failures": {str(position): failures[position] for position in sorted(failures)},
    }
    (folder / _RECORD).write_bytes(checksummed_json(record))
    return open_decoded(folder, items)


def _allocate_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Create an array on disk and allocate its space: a full disk would kill the process later."""
    try:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise StorageFailure(
            f"{path} could not be written ({error.strerror}): make room, or specify a larger disk "
            "by --cache, and run the same command again"
        ) from error
    return array


def _with_margin(transform: Transform) -> Transform:
    """Return the transform of a training photo: the same crop, larger by `MARGIN`."""
    return dataclasses.replace(
        transform,
        resize_size=round(transform.resize_size * MARGIN),
        image_size=round(transform.image_size * MARGIN),
    )


def _read(
    item: Item, reader: ItemReader, transforms: Sequence[Transform], max_pixels: int
) -> list[Tensor] | str:
    """Return the pixels of a photo for each transform, or the reason why it cannot be read."""
    if item.problem is not None:
        return item.problem
    try:
        data = reader.read(item.path, item.place, item.size)
        pixels = decode_full(data, max_pixels=max_pixels)
        return [apply_transform(pixels, transform) for transform in transforms]
    except LookalikeError:  # a temporary failure of the disk, not a broken photo
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return " ".join(str(error).split())[:200] or type(error).__name__
