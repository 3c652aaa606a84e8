"""Vectors made elsewhere become rows of a store or lines of the ledger: read, checked, cast.

What cannot be searched for is never stored in silence: numbers that are not finite, in the file or
in the stored type, another length than the others have, and no length at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LookalikeError
from retrieval.images.opening import Opener
from retrieval.model.attempt import FIRST, Attempt
from retrieval.model.outcome import Embedded, Failure, WorkerDied, failure_of, row_of
from retrieval.model.put_chunk import put_chunk
from retrieval.records import Chunk, ChunkResult
from retrieval.storage.files import Folder

_BATCH = 1 << 10


@dataclass(frozen=True)
class Taking:
    """What vectors are taken as."""

    dimension: int
    embedding_dtype: str  # that they are stored in
    zeros: bool = False  # whether those without length are kept: ip and l2 are defined for them


@dataclass(frozen=True)
class _Read:
    item: dict[str, Any]
    vector: NDArray[Any]  # (d,) as its file has it
    sha256: str  # of its bytes there


def take_chunk(
    chunk: Chunk, folder: Folder, taking: Taking, opener: Opener, attempt: Attempt = FIRST
) -> ChunkResult:
    """Read and check the vectors of a chunk and put its part (`put_chunk.py`)."""
    return put_chunk(
        chunk,
        folder,
        lambda items: take_vectors(items, taking, opener, attempt),
        taking.dimension,
        taking.embedding_dtype,
    )


def take_vectors(
    items: list[dict[str, Any]], taking: Taking, opener: Opener, attempt: Attempt = FIRST
) -> Iterator[Embedded]:
    """Take items (rows of a listing) in their order; each ends as one row or one failure."""
    for first in range(0, len(items), _BATCH):
        found = [_read(item, taking, opener, attempt) for item in items[first : first + _BATCH]]
        read = [one for one in found if isinstance(one, _Read)]
        failures = [one for one in found if not isinstance(one, _Read)]
        yield _stored(read, failures, taking)
    attempt.note(None)


def _read(
    item: dict[str, Any], taking: Taking, opener: Opener, attempt: Attempt
) -> _Read | Failure:
    if item["path"] in attempt.given_up:
        return failure_of(item, "read", WorkerDied())
    attempt.note(item["path"])
    try:
        vector = opener.vector(item["path"])
    except LookalikeError:
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - what is broken raises anything
        return failure_of(item, "read", error)
    if problem := _problem(vector, taking):
        return failure_of(item, "read", ValueError(problem))
    return _Read(item, vector, hashlib.sha256(vector.tobytes()).hexdigest())


def _problem(vector: NDArray[Any], taking: Taking) -> str | None:
    """Say why a vector cannot be taken as its file has it, or nothing."""
    if len(vector) != taking.dimension:
        return f"the vector has {len(vector)} numbers, not {taking.dimension}"
    if not np.isfinite(vector).all():
        return "the vector is not finite"
    return None if taking.zeros or vector.any() else "the vector has no length"


def _stored(read: list[_Read], failures: list[Failure], taking: Taking) -> Embedded:
    """Cast vectors, whose numbers may be out of the range of the stored type."""
    size = sum(one.vector.nbytes for one in read)
    vectors = np.empty((len(read), taking.dimension), taking.embedding_dtype)
    with np.errstate(over="ignore", under="ignore"):
        for place, one in enumerate(read):
            vectors[place] = one.vector
    large = np.asarray(np.any(~np.isfinite(vectors), axis=1))
    small = np.array([one.vector.any() for one in read], bool) & ~np.any(vectors, axis=1)
    for place in np.flatnonzero(large | small).tolist():
        what = "large" if large[place] else "small"
        way = "; keep --embedding-dtype float32" if taking.embedding_dtype == "float16" else ""
        problem = ValueError(f"the vector is too {what} for {taking.embedding_dtype}{way}")
        failures.append(failure_of(read[place].item, "read", problem))
    fit = ~(large | small)
    rows = [
        row_of(read[place].item, read[place].sha256, None, None) for place in np.flatnonzero(fit)
    ]
    return Embedded(rows, vectors[fit], failures, size)
