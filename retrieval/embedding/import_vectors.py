"""Vectors made elsewhere become rows of a store or lines of the ledger: read, checked, cast.

What cannot be searched for is never stored in silence: numbers that are not finite, in the file or
in the stored type, another length than the others have, and no length at all. What rounding to the
stored type changes is measured, of each vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.errors import LookalikeError
from retrieval.core.records import Chunk, ChunkResult, Rounding
from retrieval.embedding.attempt import FIRST, Attempt
from retrieval.embedding.outcome import Embedded, Failure, WorkerDied, failure_of, row_of
from retrieval.embedding.write_chunk import put_chunk
from retrieval.sources.item_reader import Opener
from retrieval.storage.local import Folder

_BATCH = 1 << 10

_EXPONENTS = {"float16": (-5, 15), "float32": (-100, 100)}
"""Between which exponents (of 2, as `frexp` has them) the largest number of a vector loses nothing
but its rounding in a stored type: neither it overflows, nor do numbers that matter beside it fall
among those of fewer bits."""


@dataclass(frozen=True)
class Taking:
    """What vectors are taken as."""

    dimension: int
    embedding_dtype: str  # that they are stored in
    zeros: bool = False  # whether those without length are kept: ip and l2 are defined for them
    rescale: bool = False  # whether a power of two may scale a vector, which cosine does not see


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
    """Round vectors to the stored type, whose range some may leave; measure what that changes."""
    size = sum(one.vector.nbytes for one in read)
    dtype = taking.embedding_dtype
    exact = np.empty((len(read), taking.dimension))
    for place, one in enumerate(read):
        exact[place] = one.vector
    if taking.rescale:
        narrowed = [not np.can_cast(one.vector.dtype, dtype) for one in read]
        _rescale(exact, np.array(narrowed, bool), dtype)
    with np.errstate(over="ignore", under="ignore"):
        vectors = exact.astype(dtype)
    large = np.asarray(np.any(~np.isfinite(vectors), axis=1))
    small = np.any(exact, axis=1) & ~np.any(vectors, axis=1)
    for place in np.flatnonzero(large | small).tolist():
        what = "large" if large[place] else "small"
        way = "give --embedding-dtype float32" if dtype == "float16" else "scale the vectors"
        problem = ValueError(f"the vector is too {what} for {dtype}; {way}")
        failures.append(failure_of(read[place].item, "read", problem))
    fit = ~(large | small)
    rows = [
        row_of(read[place].item, read[place].sha256, None, None) for place in np.flatnonzero(fit)
    ]
    return Embedded(rows, vectors[fit], failures, size, _rounding(exact[fit], vectors[fit]))


def _rescale(exact: NDArray[np.float64], narrowed: NDArray[np.bool_], dtype: str) -> None:
    """Multiply vectors that a narrower type would cut by a power of two, which rounds nothing.

    Their largest number then lies between 1/2 and 1. Unit length would do for their range as well,
    and would round numbers that the stored type can hold.
    """
    _, exponents = np.frexp(np.abs(exact).max(axis=1, initial=0.0))
    low, high = _EXPONENTS[dtype]
    cut = narrowed & ((exponents < low) | (exponents > high))
    exact[cut] = np.ldexp(exact[cut], -exponents[cut, None])


def _rounding(exact: NDArray[np.float64], stored: NDArray[Any]) -> Rounding:
    """Measure |x - stored x| / |x| of (n, d) vectors; one without length loses nothing."""
    if not len(exact):
        return Rounding()
    scale = np.abs(exact).max(axis=1, keepdims=True)  # so that no square leaves the range
    scale[scale == 0] = 1
    lengths = np.linalg.norm(exact / scale, axis=1)
    lost = np.linalg.norm((exact - stored) / scale, axis=1) / np.where(lengths > 0, lengths, 1)
    changed = int(np.count_nonzero(lost))
    return Rounding(len(exact), changed, float(lost.max()), float(lost.sum()))
