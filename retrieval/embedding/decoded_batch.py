"""Decode images in one process and embed them in another.

A decoded batch is an Arrow table of one row, which processes share without a copy: the pixels of
all images, and as JSON what is known of them and which items failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from retrieval.core import errors
from retrieval.core.errors import LookalikeError
from retrieval.core.records import Transform
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.embed_batch import (
    DecodedImage,
    DecodeResult,
    DecodeSettings,
    load_image,
)
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.photo_reader import PhotoReader

MAX_IMAGES = 256
"""Largest number of images in a batch."""

_MAX_BYTES = 32 << 20  # of the pixels of a batch; Ray Data divides blocks of more than 128 MiB
_ITEM_COLUMNS = ("row", "image_id", "path", "label")  # that rows of parts and ledgers contain


def images_per_batch(transform: Transform) -> int:
    """Return the largest number of images in a batch, by the size of their pixels."""
    return max(1, min(MAX_IMAGES, _MAX_BYTES // (3 * transform.image_size**2)))


def decode_batch(
    items: list[dict[str, Any]],
    transform: Transform,
    decoding: DecodeSettings,
    attempt: Attempt = FIRST_ATTEMPT,
) -> pa.Table:
    """Read and decode the items of a batch (rows of a listing), in one thread."""
    torch.set_num_threads(1)  # it resizes the images
    with ItemReader(decoding.options, decoding.hosts) as reader:
        photos = PhotoReader(reader)
        results = [load_image(item, transform, decoding, photos, attempt) for item in items]
    attempt.note(None)
    images = [result for result in results if isinstance(result, DecodedImage)]
    return _encode(
        b"".join(image.pixels.tobytes() for image in images),
        images=[
            {
                "item": {name: image.item[name] for name in _ITEM_COLUMNS},
                "width": image.width, "height": image.height,
                "sha256": image.sha256, "size": image.size,
            }
            for image in images
        ],
        failures=[result for result in results if not isinstance(result, DecodedImage)],
    )  # fmt: skip


def encode_error(error: LookalikeError) -> pa.Table:
    """Return a batch from which `read_batches` raises an error.

    Ray Data itself would keep only the text of an exception.
    """
    return _encode(b"", error=[type(error).__name__, str(error)])


def _encode(pixels: bytes, **values: Any) -> pa.Table:
    return pa.table({"pixels": [pixels], "values": [json.dumps(values)]})


def read_batches(batches: Iterable[pa.Table], transform: Transform) -> Iterator[DecodeResult]:
    """Yield the images and failures of decoded batches, without a copy of the pixels.

    Raises:
        LookalikeError: If decoding a batch raised it.
    """
    shape = (-1, 3, transform.image_size, transform.image_size)
    for batch in batches:
        for pixels, text in zip(batch["pixels"], batch["values"], strict=True):
            values = json.loads(text.as_py())
            if "error" in values:
                name, message = values["error"]
                raise getattr(errors, name)(message)
            arrays = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(shape)
            for image, array in zip(values["images"], arrays, strict=True):
                yield DecodedImage(pixels=array, **image)
            yield from values["failures"]
