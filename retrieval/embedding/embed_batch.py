"""Items become vectors or lines of the ledger, a batch at a time: read, decode, embed.

Only what would fail again becomes a line of the ledger, and what a host does not answer; a disk or
bucket that fails stops the job (`storage/reading.py`). Memory is a batch or two, however many items
there are. After an attempt that killed its worker it is one image at a time, so that the note of
the image at hand is true.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from retrieval.core.errors import LookalikeError
from retrieval.embedding.attempt import FIRST, Attempt
from retrieval.embedding.outcome import Embedded, Failure, WorkerDied, failure_of, row_of, unfit
from retrieval.images.decode import decode
from retrieval.models.embedder import Embedder, Vectors
from retrieval.sources.item_reader import Opener
from retrieval.storage.hosts import Hosts


@dataclass(frozen=True)
class Decoding:
    """What is needed beside the model."""

    max_pixels: int
    embedding_dtype: str
    threads: int = 0
    """That decode ahead of the engine, or 0: between its batches. They pay beside a GPU; on CPUs
    each core has a worker of its own, and they only disturb it."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    hosts: Hosts = field(default_factory=Hosts, compare=False)
    """What is known of those that URLs name, from one chunk to the next."""


@dataclass(frozen=True)
class _Image:
    item: dict[str, Any]
    pixels: torch.Tensor
    width: int
    height: int
    sha256: str
    size: int  # bytes that were read


class NotAnImage(Exception):
    """A source says already that this cannot be read; the ledger tells why."""


def embed_items(
    items: list[dict[str, Any]],
    embedder: Embedder,
    decoding: Decoding,
    attempt: Attempt = FIRST,
) -> Iterator[Embedded]:
    """Embed items (rows of a listing) in their order; each ends as one row or one failure.

    A vector does not depend on its neighbours, so one at a time they are the same.
    """
    under_way: deque[tuple[list[_Image], list[Failure], Callable[[], Vectors]]] = deque()
    size, ahead = (1, 0) if attempt.singly else (embedder.batch_size, embedder.ahead)
    with Opener(decoding.options, decoding.hosts) as opener:

        def one(item: dict[str, Any]) -> _Image | Failure:
            return _image(item, embedder, decoding, opener, attempt)

        threads = 0 if attempt.singly else decoding.threads
        decoded = _ahead(one, items, threads, 2 * size) if threads else map(one, items)
        for images, failures in _batches(decoded, size):
            answer = embedder.submit([image.pixels for image in images])
            under_way.append((images, failures, answer))
            if len(under_way) > ahead:
                yield _embedded(*under_way.popleft(), decoding.embedding_dtype)
    while under_way:
        yield _embedded(*under_way.popleft(), decoding.embedding_dtype)
    attempt.note(None)


def _batches(
    decoded: Iterable[_Image | Failure], size: int
) -> Iterator[tuple[list[_Image], list[Failure]]]:
    """Gather full batches, each with the failures met on the way."""
    images: list[_Image] = []
    failures: list[Failure] = []
    for one in decoded:
        if isinstance(one, _Image):
            images.append(one)
        else:
            failures.append(one)
        if len(images) == size:
            yield images, failures
            images, failures = [], []
    if images or failures:
        yield images, failures


def _ahead(
    one: Callable[[dict[str, Any]], _Image | Failure],
    items: list[dict[str, Any]],
    threads: int,
    most: int,
) -> Iterator[_Image | Failure]:
    """Decode in the order of the items, on threads, up to `most` ahead of who takes them."""
    ahead: deque[Future[_Image | Failure]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            ahead.append(pool.submit(one, item))
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _image(
    item: dict[str, Any],
    embedder: Embedder,
    decoding: Decoding,
    opener: Opener,
    attempt: Attempt,
) -> _Image | Failure:
    if item.get("problem") is not None:
        return failure_of(item, "list", NotAnImage(item["problem"]))
    if item["path"] in attempt.given_up:
        return failure_of(item, "embed", WorkerDied())
    attempt.note(item["path"])
    stage = "read"
    try:
        data = opener.read(item["path"], item.get("place"), item.get("size"))
        stage = "decode"
        found = decode(data, embedder.bundle.transform, max_pixels=decoding.max_pixels)
    except LookalikeError:
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return failure_of(item, stage, error)
    digest = hashlib.sha256(data).hexdigest()
    return _Image(item, found.pixels, found.width, found.height, digest, len(data))


def _embedded(
    images: list[_Image], failures: list[Failure], answer: Callable[[], Vectors], dtype: str
) -> Embedded:
    size = sum(image.size for image in images)
    with np.errstate(over="ignore"):  # what float16 cannot hold is found below
        vectors = answer().astype(dtype)
    problems = [unfit(vector) for vector in vectors]
    rows = [_row(i) for i, problem in zip(images, problems, strict=True) if not problem]
    lost = [
        failure_of(image.item, "embed", ValueError(problem))
        for image, problem in zip(images, problems, strict=True)
        if problem
    ]
    fit = np.array([not problem for problem in problems], bool)
    return Embedded(rows, vectors[fit], failures + lost, size)


def _row(image: _Image) -> dict[str, Any]:
    return row_of(image.item, image.sha256, image.width, image.height)
