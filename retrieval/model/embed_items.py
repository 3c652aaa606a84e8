"""Items become vectors or lines of the ledger, a batch at a time: read, decode, embed.

Only what would fail again becomes a line of the ledger; errors that may pass stop the job
(`storage/reading.py`). Memory is a batch or two, however many items there are. After an attempt
that killed its worker it is one image at a time, so that the note of the image at hand is true.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import LookalikeError
from retrieval.images.decode import decode
from retrieval.images.opening import Opener
from retrieval.model.attempt import FIRST, Attempt
from retrieval.model.embedding import Embedder, Vectors
from retrieval.tables import LISTING

_MESSAGE = 300  # characters of an error kept in the ledger
_OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>")
"""What Pillow calls the bytes it was given; the place in memory differs from run to run."""

Failure = dict[str, Any]  # a line of the ledger


@dataclass(frozen=True)
class Decoding:
    """What is needed beside the model."""

    max_pixels: int
    embedding_dtype: str
    threads: int = 0
    """That decode ahead of the engine, or 0: between its batches. They pay beside a GPU; on CPUs
    each core has a worker of its own, and they only disturb it."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Embedded:
    """A batch that was embedded: rows of a part without their vectors, and these."""

    rows: list[dict[str, Any]]
    vectors: NDArray[Any]  # (n, d) of the stored dtype
    failures: list[Failure]
    size: int  # bytes that were read


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


class WorkerDied(Exception):
    """An image killed its worker each time; the same words in each run, so that bytes are too."""

    def __init__(self) -> None:
        super().__init__("the worker died each time it had this image at hand")


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
    with Opener(decoding.options) as opener:

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
        return _failure(item, "list", NotAnImage(item["problem"]))
    if item["path"] in attempt.given_up:
        return _failure(item, "embed", WorkerDied())
    attempt.note(item["path"])
    stage = "read"
    try:
        data = opener.read(item["path"], item.get("place"), item.get("size"))
        stage = "decode"
        found = decode(data, embedder.bundle.transform, max_pixels=decoding.max_pixels)
    except LookalikeError:
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        return _failure(item, stage, error)
    digest = hashlib.sha256(data).hexdigest()
    return _Image(item, found.pixels, found.width, found.height, digest, len(data))


def _embedded(
    images: list[_Image], failures: list[Failure], answer: Callable[[], Vectors], dtype: str
) -> Embedded:
    size = sum(image.size for image in images)
    with np.errstate(over="ignore"):  # what float16 cannot hold is found below
        vectors = answer().astype(dtype)
    problems = [_unfit(vector) for vector in vectors]
    rows = [_row(i) for i, problem in zip(images, problems, strict=True) if not problem]
    unfit = [
        _failure(image.item, "embed", ValueError(problem))
        for image, problem in zip(images, problems, strict=True)
        if problem
    ]
    fit = np.array([not problem for problem in problems], bool)
    return Embedded(rows, vectors[fit], failures + unfit, size)


def _failure(item: dict[str, Any], stage: str, error: BaseException) -> Failure:
    message = " ".join(_OBJECT.sub("", str(error)).split())[:_MESSAGE] or type(error).__name__
    kept = {key: item[key] for key in ("row", "image_id", "path", "label")}
    return {**kept, "stage": stage, "error": type(error).__name__, "message": message}


def _unfit(vector: NDArray[Any]) -> str | None:
    """Say why a vector cannot be searched for, or nothing."""
    if not np.isfinite(vector).all():
        return "the vector is not finite as stored"
    return None if vector.any() else "the vector has no length"


def _row(image: _Image) -> dict[str, Any]:
    """Give a row of a part without its vector; further columns of the listing go along."""
    own = ("row", "image_id", "path", "label")
    kept = {k: v for k, v in image.item.items() if k in own or k not in LISTING.schema.names}
    return {**kept, "width": image.width, "height": image.height, "sha256": image.sha256}
