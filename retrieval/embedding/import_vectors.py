"""Import precomputed vectors into a store: read, check and cast them.

Vectors that cannot be searched for go to the ledger: of another dimension, not finite in the file
or in the stored type, or zero where the metric does not allow it. The rounding error of each vector
is measured.
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
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.outcome import EmbeddedBatch, Failure, WorkerDied, failure_record, part_row
from retrieval.embedding.write_chunk import write_chunk
from retrieval.sources.item_reader import ItemReader
from retrieval.storage.local import Folder

_BATCH = 1 << 10

_SAFE_EXPONENTS = {"float16": (-5, 15), "float32": (-100, 100)}
"""Range of the binary exponent (as of `frexp`) of a vector's largest component within which a
stored type does no more than round: it does not overflow, and components that matter beside it are
not subnormal."""


@dataclass(frozen=True)
class ImportSettings:
    """How vectors are checked and stored."""

    dimension: int
    embedding_dtype: str  # of the stored vectors
    zeros: bool = False  # keep zero vectors: ip and l2 are defined for them
    rescale: bool = False  # allow scaling by a power of two: cosine ignores it


@dataclass(frozen=True)
class _ReadVector:
    item: dict[str, Any]
    vector: NDArray[Any]  # (d,) as in its file
    sha256: str  # of its bytes in the file


def import_chunk(
    chunk: Chunk,
    folder: Folder,
    importing: ImportSettings,
    reader: ItemReader,
    attempt: Attempt = FIRST_ATTEMPT,
) -> ChunkResult:
    """Read and check the vectors of a chunk and write its part; see `write_chunk`."""
    return write_chunk(
        chunk,
        folder,
        lambda items: import_vectors(items, importing, reader, attempt),
        importing.dimension,
        importing.embedding_dtype,
    )


def import_vectors(
    items: list[dict[str, Any]],
    importing: ImportSettings,
    reader: ItemReader,
    attempt: Attempt = FIRST_ATTEMPT,
) -> Iterator[EmbeddedBatch]:
    """Import items (rows of a listing) in their order; each ends as one row or one failure."""
    for first in range(0, len(items), _BATCH):
        results = [
            _read(item, importing, reader, attempt) for item in items[first : first + _BATCH]
        ]
        read = [result for result in results if isinstance(result, _ReadVector)]
        failures = [result for result in results if not isinstance(result, _ReadVector)]
        yield _cast(read, failures, importing)
    attempt.note(None)


def _read(
    item: dict[str, Any], importing: ImportSettings, reader: ItemReader, attempt: Attempt
) -> _ReadVector | Failure:
    if item["path"] in attempt.quarantined_images:
        return failure_record(item, "read", WorkerDied())
    attempt.note(item["path"])
    try:
        vector = reader.vector(item["path"])
    except LookalikeError:
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - broken files raise anything
        return failure_record(item, "read", error)
    if problem := _problem(vector, importing):
        return failure_record(item, "read", ValueError(problem))
    return _ReadVector(item, vector, hashlib.sha256(vector.tobytes()).hexdigest())


def _problem(vector: NDArray[Any], importing: ImportSettings) -> str | None:
    """Return why a vector cannot be imported as it is in its file; None if it can."""
    if len(vector) != importing.dimension:
        return f"the vector has {len(vector)} numbers, not {importing.dimension}"
    if not np.isfinite(vector).all():
        return "the vector is not finite"
    return None if importing.zeros or vector.any() else "the vector has no length"


def _cast(
    read: list[_ReadVector], failures: list[Failure], importing: ImportSettings
) -> EmbeddedBatch:
    """Cast vectors to the stored type, measure the rounding, and reject those out of its range."""
    size = sum(result.vector.nbytes for result in read)
    dtype = importing.embedding_dtype
    exact = np.empty((len(read), importing.dimension))
    for position, result in enumerate(read):
        exact[position] = result.vector
    if importing.rescale:
        narrowed = [not np.can_cast(result.vector.dtype, dtype) for result in read]
        _rescale(exact, np.array(narrowed, bool), dtype)
    with np.errstate(over="ignore", under="ignore"):
        vectors = exact.astype(dtype)
    large = np.asarray(np.any(~np.isfinite(vectors), axis=1))
    small = np.any(exact, axis=1) & ~np.any(vectors, axis=1)
    for position in np.flatnonzero(large | small).tolist():
        adjective = "large" if large[position] else "small"
        remedy = "give --embedding-dtype float32" if dtype == "float16" else "scale the vectors"
        problem = ValueError(f"the vector is too {adjective} for {dtype}; {remedy}")
        failures.append(failure_record(read[position].item, "read", problem))
    usable = ~(large | small)
    rows = [
        part_row(read[position].item, read[position].sha256, None, None)
        for position in np.flatnonzero(usable)
    ]
    return EmbeddedBatch(
        rows, vectors[usable], failures, size, _rounding(exact[usable], vectors[usable])
    )


def _rescale(exact: NDArray[np.float64], narrowed: NDArray[np.bool_], dtype: str) -> None:
    """Scale vectors out of the range of a narrower type by a power of two, in place and exactly.

    Their largest component is then between 1/2 and 1. Scaling to unit length would bring them into
    range as well, but would round components that the stored type can hold.

    Args:
        exact: (n, d) vectors.
        narrowed: (n,) whether the stored type is narrower than that of the file.
        dtype: The stored type.
    """
    _, exponents = np.frexp(np.abs(exact).max(axis=1, initial=0.0))
    low, high = _SAFE_EXPONENTS[dtype]
    is_scaled = narrowed & ((exponents < low) | (exponents > high))
    exact[is_scaled] = np.ldexp(exact[is_scaled], -exponents[is_scaled, None])


def _rounding(exact: NDArray[np.float64], stored: NDArray[Any]) -> Rounding:
    """Measure the rounding error |x - stored x| / |x| of (n, d) vectors; 0 for zero vectors."""
    if not len(exact):
        return Rounding()
    scale = np.abs(exact).max(axis=1, keepdims=True)  # so that squares do not overflow
    scale[scale == 0] = 1
    lengths = np.linalg.norm(exact / scale, axis=1)
    errors = np.linalg.norm((exact - stored) / scale, axis=1) / np.where(lengths > 0, lengths, 1)
    changed = int(np.count_nonzero(errors))
    return Rounding(len(exact), changed, float(errors.max()), float(errors.sum()))
