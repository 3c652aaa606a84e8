"""Read, decode and embed items in batches.

An image with a permanent error goes to the ledger, and so does one whose host does not respond; a
failing disk or bucket stops the job. At most two batches are in memory. After an attempt in which
the worker crashed, images are processed one at a time, so that the noted image is the current one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import LookalikeError
from retrieval.core.records import Transform
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.outcome import (
    EmbeddedBatch,
    Failure,
    WorkerDied,
    failure_record,
    part_row,
    vector_problem,
)
from retrieval.images.box import split_box
from retrieval.images.decode import resize_decoded
from retrieval.models.embedder import Embedder, Vectors
from retrieval.sources.item_reader import ItemReader
from retrieval.sources.photo_reader import PhotoReader
from retrieval.storage.hosts import HostHealth


@dataclass(frozen=True)
class DecodeSettings:
    """How images are read and decoded, and how embeddings are stored."""

    max_pixels: int
    embedding_dtype: str
    threads: int = 0
    """Threads that decode ahead of the engine, or 0 to decode between its batches. They pay off
    with a GPU; on CPUs each core runs its own worker, which they would only slow down."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    hosts: HostHealth = field(default_factory=HostHealth, compare=False)
    """State of the hosts of URLs, kept from one chunk to the next."""


@dataclass(frozen=True)
class DecodedImage:
    """The preprocessed pixels of an item, and what a part records of it."""

    item: dict[str, Any]  # a row of the listing
    pixels: NDArray[np.uint8]  # (3, side, side)
    width: int  # of the original
    height: int
    sha256: str  # of the bytes of the file, which crops of a photo share
    size: int  # of these bytes


DecodeResult = DecodedImage | Failure
"""The result of reading and decoding one item."""


class NotAnImage(Exception):
    """The source reported already that this item cannot be read."""


def embed_items(
    items: list[dict[str, Any]],
    embedder: Embedder,
    decoding: DecodeSettings,
    attempt: Attempt = FIRST_ATTEMPT,
) -> Iterator[EmbeddedBatch]:
    """Embed items (rows of a listing) in their order; each ends as one row or one failure.

    A vector does not depend on the batch it is in, so later attempts get the same vectors.
    """
    size, ahead = (1, 0) if attempt.one_at_a_time else (embedder.batch_size, embedder.ahead)
    with ItemReader(decoding.options, decoding.hosts) as reader:
        photos = PhotoReader(reader)

        def load(item: dict[str, Any]) -> DecodeResult:
            return load_image(item, embedder.bundle.transform, decoding, photos, attempt)

        threads = 0 if attempt.one_at_a_time else decoding.threads
        decoded = _decode_ahead(load, items, threads, 2 * size) if threads else map(load, items)
        yield from embed_decoded(decoded, embedder, decoding.embedding_dtype, size, ahead)
    attempt.note(None)


def embed_decoded(
    decoded: Iterable[DecodeResult], embedder: Embedder, dtype: str, size: int, ahead: int
) -> Iterator[EmbeddedBatch]:
    """Embed decoded images in batches of `size`, with `ahead` batches in flight."""
    in_flight: deque[tuple[list[DecodedImage], list[Failure], Callable[[], Vectors]]] = deque()
    for images, failures in _batches(decoded, size):
        result = embedder.submit([image.pixels for image in images])
        in_flight.append((images, failures, result))
        if len(in_flight) > ahead:
            yield _collect(*in_flight.popleft(), dtype)
    while in_flight:
        yield _collect(*in_flight.popleft(), dtype)


def _batches(
    decoded: Iterable[DecodeResult], size: int
) -> Iterator[tuple[list[DecodedImage], list[Failure]]]:
    """Yield full batches of images, each with the failures of the items read for it."""
    images: list[DecodedImage] = []
    failures: list[Failure] = []
    for result in decoded:
        if isinstance(result, DecodedImage):
            images.append(result)
        else:
            failures.append(result)
        if len(images) == size:
            yield images, failures
            images, failures = [], []
    if images or failures:
        yield images, failures


def _decode_ahead(
    load: Callable[[dict[str, Any]], DecodeResult],
    items: list[dict[str, Any]],
    threads: int,
    limit: int,
) -> Iterator[DecodeResult]:
    """Decode items on threads, in order, at most `limit` ahead of the consumer."""
    ahead: deque[Future[DecodeResult]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            ahead.append(pool.submit(load, item))
            if len(ahead) > limit:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def load_image(
    item: dict[str, Any],
    transform: Transform,
    decoding: DecodeSettings,
    photos: PhotoReader,
    attempt: Attempt,
) -> DecodeResult:
    """Read and decode one item; a permanent error becomes a failure.

    Raises:
        LookalikeError: If the storage fails.
    """
    if item.get("problem") is not None:
        return failure_record(item, "list", NotAnImage(item["problem"]))
    path = item["path"]
    file, _ = split_box(path)  # all crops of a photo that crashes the worker are quarantined
    if file in attempt.quarantined_images:
        return failure_record(item, "embed", WorkerDied())
    attempt.note(file)
    stage = "read"
    try:
        photo = photos.read(path, item.get("place"), item.get("size"))
        stage = "decode"
        original = photo.decode(path, max_pixels=decoding.max_pixels)
        decoded = resize_decoded(original, transform)
    except LookalikeError:
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return failure_record(item, stage, error)
    pixels = decoded.pixels.numpy()
    return DecodedImage(item, pixels, decoded.width, decoded.height, photo.sha256, len(photo.data))


def _collect(
    images: list[DecodedImage], failures: list[Failure], result: Callable[[], Vectors], dtype: str
) -> EmbeddedBatch:
    size = sum(image.size for image in images)
    with np.errstate(over="ignore"):  # checked below
        vectors = result().astype(dtype)
    problems = [vector_problem(vector) for vector in vectors]
    rows = [_row(i) for i, problem in zip(images, problems, strict=True) if not problem]
    unusable = [
        failure_record(image.item, "embed", ValueError(problem))
        for image, problem in zip(images, problems, strict=True)
        if problem
    ]
    usable = np.array([not problem for problem in problems], bool)
    return EmbeddedBatch(rows, vectors[usable], failures + unusable, size)


def _row(image: DecodedImage) -> dict[str, Any]:
    return part_row(image.item, image.sha256, image.width, image.height)
