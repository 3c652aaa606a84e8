"""Labelled photos, decoded once, parted in two, and varied anew whenever a batch is drawn.

A network that is trained from scratch sees each photo dozens of times, and decoding would take
longest. So each is decoded once, to uint8 a little larger than the network reads, and kept in
memory (61 KiB at 128 pixels); crops are cut from there. Photos that validate are kept exactly as a
bundle will see them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retrieval.errors import InputError, LookalikeError, UsageError
from retrieval.images.decode import apply, decode_full
from retrieval.images.opening import Opener
from retrieval.records import Item, Transform

MARGIN = 1.125
"""Side of a kept training photo over the side the network reads, so that crops lose little."""

ZOOM = (0.7, 1.1)
"""Side of a crop over that of its photo; beyond 1 the photo shrinks and its edge is mirrored."""

ROTATION = math.radians(20)
"""Most a photo is turned, either way, in radians."""

BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.3, 0.5
"""Most by which these factors differ from 1."""

HUE = 0.3
"""Most a colour is turned on the colour wheel, either way, in radians; half a turn learnt worse."""

_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""NTSC: brightness, and two axes of colour about it on which hue is an angle."""


@dataclass(frozen=True)
class Part:
    """Photos of one part of the split, in no order that means anything."""

    pixels: Tensor  # uint8 (n, 3, side, side)
    classes: Tensor  # int64 (n,), places in Photos.names
    image_ids: tuple[str, ...]


@dataclass(frozen=True)
class Photos:
    """All that is trained from; both parts hold at least one photo of every class."""

    names: tuple[str, ...]  # the classes, sorted
    training: Part
    validation: Part
    failures: tuple[str, ...]  # "image_id: why", of photos that could not be read


def labelled(
    items: Iterable[Item], labels: Mapping[str, str | None] | None, leave_out: Collection[str]
) -> list[Item]:
    """Give the items that have a class to be trained, sorted by image_id.

    `labels` (image_id -> class or None) stands instead of the classes that items bring. Refused:
    no labels at all, fewer than two classes, a class of one photo, a class to leave out that is
    not there.
    """
    found = sorted(items, key=lambda item: item.image_id)
    if labels is not None:
        found = [dataclasses.replace(item, label=labels.get(item.image_id)) for item in found]
    counts = Counter(item.label for item in found if item.label is not None)
    if not counts:
        way = "name them in --labels" if labels is not None else "lay them in a folder a class"
        raise InputError(f"none of the {len(found)} images of --data has a label; {way}")
    for name in sorted(leave_out):
        if name not in counts:
            near = get_close_matches(name, counts, 3, 0.4) or sorted(counts)[:3]
            raise UsageError(
                f"--leave-out {name} is not a class of --data; did you mean {', '.join(near)}?"
            )
    kept = {name: count for name, count in counts.items() if name not in leave_out}
    if len(kept) < 2:
        raise InputError(
            f"training needs two classes or more and --data leaves {len(kept)}; "
            "add a class or leave out fewer"
        )
    if lone := sorted(name for name, count in kept.items() if count < 2):
        raise InputError(
            f"class {lone[0]} of --data has one image and training needs two; "
            "add one or --leave-out the class"
        )
    return [item for item in found if item.label in kept]


def digest(items: Iterable[Item]) -> str:
    """Give the SHA-256 of what is trained from: ids, classes, sizes and times of change."""
    sha = hashlib.sha256()
    for item in items:
        row = (item.image_id, item.label, item.size, item.mtime_ns)
        sha.update(json.dumps(row).encode() + b"\n")
    return sha.hexdigest()


def load(
    items: Iterable[Item],
    transform: Transform,
    *,
    seed: int,
    max_pixels: int,
    options: Mapping[str, Any] | None = None,
) -> Photos:
    """Decode the photos that `labelled` gave and part them, 7 to 3 within each class.

    Photos are parted as they turn out to be readable, so that no class loses its share to broken
    files, and each class by its own seed, so that leaving one out does not part the others anew.
    A class with fewer than two readable photos is refused.
    """
    with Opener(options) as opener:
        return _load(items, opener, transform, seed, max_pixels)


def _load(
    items: Iterable[Item], opener: Opener, transform: Transform, seed: int, max_pixels: int
) -> Photos:
    by_class = groupby(sorted(items, key=lambda item: item.label or ""), lambda i: i.label or "")
    names: list[str] = []
    parts: tuple[_Growing, _Growing] = (_Growing(), _Growing())
    failures: list[str] = []
    for number, (name, members) in enumerate(by_class):
        names.append(name)
        seen = 0
        for item in _shuffled(list(members), seed, name):
            validates = _validates(seen)
            chosen = transform if validates else _margined(transform)
            pixels = _read(item, opener, chosen, max_pixels)
            if isinstance(pixels, str):
                failures.append(f"{item.image_id}: {pixels}")
                continue
            parts[validates].add(pixels, number, item.image_id)
            seen += 1
        if seen < 2:
            raise InputError(
                f"of class {name} of --data {seen} image(s) can be read and training needs two "
                f"({failures[-1]}); add some or --leave-out the class"
            )
    return Photos(tuple(names), parts[0].done(), parts[1].done(), tuple(sorted(failures)))


class _Growing:
    """A part that photos are added to."""

    def __init__(self) -> None:
        self._pixels: list[Tensor] = []
        self._classes: list[int] = []
        self._image_ids: list[str] = []

    def add(self, pixels: Tensor, number: int, image_id: str) -> None:
        self._pixels.append(pixels)
        self._classes.append(number)
        self._image_ids.append(image_id)

    def done(self) -> Part:
        return Part(torch.stack(self._pixels), torch.tensor(self._classes), tuple(self._image_ids))


def _shuffled(items: list[Item], seed: int, name: str) -> list[Item]:
    order = np.random.default_rng((seed, *name.encode())).permutation(len(items))
    return [items[place] for place in order]


def _validates(seen: int) -> bool:
    """Tell whether the next photo of a class validates, `seen` of it having been parted.

    Of n photos floor(0.3 n + 0.4) do: the second, the sixth, the ninth and so on.
    """
    return (3 * seen + 7) // 10 > (3 * seen + 4) // 10


def _margined(transform: Transform) -> Transform:
    """Give the transform of a training photo: the same view of it, larger."""
    return dataclasses.replace(
        transform,
        resize_size=round(transform.resize_size * MARGIN),
        image_size=round(transform.image_size * MARGIN),
    )


def _read(item: Item, opener: Opener, transform: Transform, max_pixels: int) -> Tensor | str:
    """Give the pixels of a photo, or why there are none."""
    if item.problem is not None:
        return item.problem
    try:
        data = opener.read(item.path, item.place, item.size)
        return apply(decode_full(data, max_pixels=max_pixels), transform)
    except LookalikeError:  # a disk that fails for now is no broken photo
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return " ".join(str(error).split())[:200] or type(error).__name__


def augment(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Vary a batch: uint8 (n, 3, m, m) -> float32 (n, 3, side, side), values from 0 to 255.

    Each photo is cropped, turned, mirrored and coloured by draws of its own, the whole batch at
    once. What is left alone is what a match is known by: build and markings.
    """
    draw = _Draw(len(pixels), generator)
    return _coloured(_cropped(pixels.float(), side, draw), draw)


class _Draw:
    """Numbers for a batch, one a photo."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count = count
        self._generator = generator

    def between(self, low: float, high: float) -> Tensor:
        """Give (n,) float32, evenly spread."""
        return low + (high - low) * torch.rand(self._count, generator=self._generator)

    def around(self, middle: float, most: float) -> Tensor:
        return self.between(middle - most, middle + most)

    def sign(self) -> Tensor:
        return torch.where(self.between(-1, 1) < 0, -1.0, 1.0)


def _cropped(images: Tensor, side: int, draw: _Draw) -> Tensor:
    """Cut a turned, shifted and maybe mirrored square from each photo."""
    zoom, angle = draw.between(*ZOOM), draw.around(0, ROTATION)
    slack = (1 - zoom).abs()
    x, y = slack * draw.around(0, 1), slack * draw.around(0, 1)
    across, along = zoom * angle.cos(), zoom * angle.sin()
    mirror = draw.sign()
    rows = (mirror * across, -along, x, mirror * along, across, y)
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    grid = functional.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
    cut: Tensor = functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    return cut


def _coloured(images: Tensor, draw: _Draw) -> Tensor:
    """Change brightness, contrast, saturation and hue: one 3 x 3 matrix and one offset a photo."""
    to_yiq = torch.tensor(_YIQ)
    light, contrast = draw.around(1, BRIGHTNESS), draw.around(1, CONTRAST)
    colour, angle = draw.around(1, SATURATION), draw.around(0, HUE)
    turn = torch.zeros(len(images), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = colour * angle.cos()
    turn[:, 2, 1] = colour * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq * (light * contrast).view(-1, 1, 1)
    flat: Tensor = matrix @ images.flatten(2)  # (n, 3, side * side)
    middle = images.mean((1, 2, 3)) * light * (1 - contrast)
    return (flat + middle.view(-1, 1, 1)).clamp(0, 255).view_as(images)
