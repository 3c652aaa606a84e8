"""Training photos, decoded once into memory-mapped arrays.

A network sees each photo dozens of times, and decoding would take longest. So each is decoded once,
in threads, and kept as uint8 twice: as a bundle sees it, and with a margin that crops are cut from
(at 224 pixels 150 and 190 kB a photo). Arrays are mapped, not read: memory does not grow with them.
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

_EXACT, _WIDE, _NOTE = "exact.npy", "wide.npy", "photos.json"


@dataclass(frozen=True)
class PhotoSubset:
    """The photos of one part of the split: places `rows` of `pixels`, which both parts share.

    `pixels` is uint8 (all, 3, side, side), mapped from disk; `classes` int64 (n,), places in
    `names`.
    """

    pixels: Tensor
    rows: NDArray[np.int64]
    classes: Tensor
    names: tuple[str, ...]
    image_ids: tuple[str, ...]

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.rows)

    def take(self, which: Tensor) -> Tensor:
        """Read the pixels of some photos, by their place in this part."""
        return self.pixels[torch.from_numpy(self.rows)[which]]


@dataclass(frozen=True)
class PhotoSplit:
    """Training and validation photos; split by class, the two subsets share no class name."""

    training: PhotoSubset
    plain: PhotoSubset  # those that train, as a bundle sees them
    validation: PhotoSubset
    failures: tuple[str, ...]  # "image_id: why", of photos that could not be read

    @property
    def same_classes(self) -> bool:
        """Return whether what validates is of the classes that train."""
        return self.training.names == self.validation.names


@contextmanager
def decode_photos(
    items: Sequence[Item], transform: Transform, *, max_pixels: int, cache: str | None,
    threads: int, options: Mapping[str, Any] | None = None,
) -> Iterator[DecodedPhotos]:  # fmt: skip
    """Decode photos into a folder below `cache`, or reuse them; without a cache, temporarily."""
    with TemporaryDirectory(prefix="lookalike-photos-") as scratch:
        name = _cache_name(items, transform, max_pixels)
        folder = Path(cache or scratch, f"photos-{name}")
        found = _find_decoded(folder, items)
        if found is None:
            _make_folder(folder)
            with ItemReader(options) as opener:
                found = _decode(items, opener, transform, max_pixels, folder, threads)
        yield found


def _make_folder(folder: Path) -> None:
    """Make the folder of photos, or refuse the `--cache` that it would lie in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _NOTE).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"--cache {folder.parent} cannot be written ({error.strerror}); name a local folder "
            "that can"
        ) from error


@dataclass(frozen=True)
class DecodedPhotos:
    """Photos as arrays; of item n the row n, which is blank where `failures` names the item."""

    folder: Path
    items: tuple[Item, ...]
    exact: Tensor
    wide: Tensor
    failures: Mapping[int, str]  # by place: why

    def parted(self, *, by: SplitBy, share: float, seed: int) -> PhotoSplit:
        """Split the readable photos into training and validation subsets."""
        rows = np.array([n for n in range(len(self.items)) if n not in self.failures], np.int64)
        labels = [str(self.items[row].label) for row in rows]
        held = (
            choose_validation(labels, by=by, share=share, seed=seed)
            if len(rows)
            else np.zeros(0, bool)
        )
        failures = sorted(f"{self.items[n].image_id}: {why}" for n, why in self.failures.items())
        training = self._part(self.wide, rows[~held])
        plain = dataclasses.replace(training, pixels=self.exact)
        return PhotoSplit(training, plain, self._part(self.exact, rows[held]), tuple(failures))

    def _part(self, pixels: Tensor, rows: NDArray[np.int64]) -> PhotoSubset:
        items = [self.items[row] for row in rows]
        names = sorted({str(item.label) for item in items})
        classes = torch.from_numpy(np.searchsorted(names, [str(item.label) for item in items]))
        return PhotoSubset(
            pixels, rows, classes, tuple(names), tuple(item.image_id for item in items)
        )


def _cache_name(items: Sequence[Item], transform: Transform, max_pixels: int) -> str:
    """Name photos by all that shapes their pixels."""
    shape = [
        dataset_digest(items),
        [item.path for item in items],
        transform.to_json(),
        max_pixels,
        MARGIN,
    ]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def open_decoded(folder: Path, items: Sequence[Item]) -> DecodedPhotos:
    """Open photos that another process has decoded into a folder."""
    found = _find_decoded(folder, items)
    if found is None:
        raise InputError(f"{folder} holds no photos; --cache must be seen by all workers")
    return found


def _find_decoded(folder: Path, items: Sequence[Item]) -> DecodedPhotos | None:
    """Find what an earlier run has decoded, if it is whole and unaltered."""
    try:
        note = parse_checksummed_json((folder / _NOTE).read_bytes())
        if note is None or any(
            sha256_of_file(folder / n) != note["files"][n] for n in (_EXACT, _WIDE)
        ):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    exact, wide = (torch.from_numpy(_map_array(folder / name)) for name in (_EXACT, _WIDE))
    return DecodedPhotos(
        folder, tuple(items), exact, wide, {int(n): w for n, w in note["failures"].items()}
    )


def _map_array(path: Path) -> NDArray[np.uint8]:
    """Map an array; for writing, though nobody does, since torch asks for it."""
    found: NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    return found


def _decode(
    items: Sequence[Item], opener: ItemReader, transform: Transform, max_pixels: int, folder: Path,
    threads: int,
) -> DecodedPhotos:  # fmt: skip
    transforms = (transform, _with_margin(transform))
    arrays = [
        _allocate_array(folder / name, (len(items), 3, each.image_size, each.image_size))
        for name, each in zip((_EXACT, _WIDE), transforms, strict=True)
    ]
    failures: dict[int, str] = {}

    def read(place: int) -> None:
        pixels = _read(items[place], opener, transforms, max_pixels)
        if isinstance(pixels, str):
            failures[place] = pixels
            return
        for array, each in zip(arrays, pixels, strict=True):
            array[place] = each.numpy()

    with ThreadPoolExecutor(threads, "decode") as pool:
        list(pool.map(read, range(len(items))))
    note = {"files": {name: sha256_of_file(folder / name) for name in (_EXACT, _WIDE)},
            "failures": {str(place): failures[place] for place in sorted(failures)}}  # fmt: skip
    (folder / _NOTE).write_bytes(checksummed_json(note))
    return open_decoded(folder, items)


def _allocate_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make an array on disk, with all its room: a full disk would end the process later."""
    try:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise StorageFailure(
            f"{path} could not be written ({error.strerror}): make room, or name a larger disk by "
            "--cache, and run the same command again"
        ) from error
    return array


def _with_margin(transform: Transform) -> Transform:
    """Return the transform of a training photo: the same view of it, larger."""
    return dataclasses.replace(
        transform,
        resize_size=round(transform.resize_size * MARGIN),
        image_size=round(transform.image_size * MARGIN),
    )


def _read(
    item: Item, opener: ItemReader, transforms: Sequence[Transform], max_pixels: int
) -> list[Tensor] | str:
    """Return the pixels of a photo by each transform, or why there are none."""
    if item.problem is not None:
        return item.problem
    try:
        data = opener.read(item.path, item.place, item.size)
        whole = decode_full(data, max_pixels=max_pixels)
        return [apply_transform(whole, transform) for transform in transforms]
    except LookalikeError:  # a disk that fails for now is no broken photo
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return " ".join(str(error).split())[:200] or type(error).__name__
