"""Import precomputed vectors into a store: read, check and cast them in blocks.

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
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.core.errors import LookalikeError
from retrieval.core.records import Chunk, ChunkResult, Rounding
from retrieval.embedding.attempt import FIRST_ATTEMPT, Attempt
from retrieval.embedding.outcome import EmbeddedBatch, WorkerDied, failure_record, part_row
from retrieval.embedding.write_chunk import write_chunk
from retrieval.sources.container_paths import NpyRow, ParquetRow, parse_container_path
from retrieval.sources.item_reader import ItemReader, null_message
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
        lambda lines: import_vectors(lines, importing, reader, attempt),
        importing.dimension,
        importing.embedding_dtype,
    )


def import_vectors(
    lines: pa.Table,
    importing: ImportSettings,
    reader: ItemReader,
    attempt: Attempt = FIRST_ATTEMPT,
) -> Iterator[EmbeddedBatch]:
    """Import lines of a listing in their order; each ends as one row or one failure.

    Lines that are consecutive rows of one container are read at once.
    """
    first = 0
    while first < len(lines):
        block = lines.slice(first, _BATCH)
        count = _count_consecutive(block["path"].to_pylist())
        yield from _import_run(block.slice(0, count), importing, reader, attempt)
        first += count
    attempt.note(None)


def _count_consecutive(paths: list[str]) -> int:
    """Return how many of the first paths name consecutive rows of one container; at least 1."""
    location = parse_container_path(paths[0])
    if not isinstance(location, ParquetRow | NpyRow):
        return 1
    tail = f"::{location.container}"
    head = paths[0].removesuffix(f"{location.row}{tail}")
    for count, path in enumerate(paths):
        if path != f"{head}{location.row + count}{tail}":
            return max(1, count)
    return len(paths)


def _import_run(
    run: pa.Table, importing: ImportSettings, reader: ItemReader, attempt: Attempt
) -> Iterator[EmbeddedBatch]:
    """Import consecutive rows of a container, at once or, where that may fail, one by one."""
    paths = run["path"].to_pylist()
    is_quarantined = not attempt.quarantined_images.isdisjoint(paths)
    one_by_one = len(run) > 1 and (attempt.one_at_a_time or is_quarantined)
    if is_quarantined and not one_by_one:
        yield _failed_batch(run, importing, WorkerDied())
    elif not one_by_one:
        attempt.note(paths[0])
        try:
            yield _check_and_cast(run, reader.vectors(paths[0], len(run)), importing)
        except LookalikeError:
            raise
        except (MemoryError, Exception) as error:  # noqa: BLE001 - broken files raise anything
            one_by_one = len(run) > 1
            if not one_by_one:
                yield _failed_batch(run, importing, error)
    if one_by_one:
        for position in range(len(run)):
            yield from _import_run(run.slice(position, 1), importing, reader, attempt)


def _failed_batch(line: pa.Table, importing: ImportSettings, error: BaseException) -> EmbeddedBatch:
    """Return the batch of one line that could not be imported."""
    (item,) = line.to_pylist()
    no_vectors = np.empty((0, importing.dimension), importing.embedding_dtype)
    return EmbeddedBatch([], no_vectors, [failure_record(item, "read", error)], 0)


def _check_and_cast(
    run: pa.Table, vectors: NDArray[Any] | pa.Array, importing: ImportSettings
) -> EmbeddedBatch:
    """Check vectors, cast them to the stored type and measure the rounding.

    Args:
        run: (n,) lines of the listing.
        vectors: Their n vectors, as `ItemReader.vectors` returns them.
        importing: How vectors are checked and stored.
    """
    positions, values, problems = _to_matrix(run, vectors, importing.dimension)
    is_finite = np.isfinite(values).all(axis=1)
    is_usable = is_finite if importing.zeros else is_finite & values.any(axis=1)
    for position, finite in zip(
        positions[~is_usable].tolist(), is_finite[~is_usable].tolist(), strict=True
    ):
        problems[position] = "the vector has no length" if finite else "the vector is not finite"
    if not is_usable.all():
        positions, values = positions[is_usable], values[is_usable]
    stored, fits, rounding = _cast(values, importing)
    dtype = importing.embedding_dtype
    for position, is_large in zip(
        positions[~fits].tolist(), (~np.isfinite(stored[~fits])).any(axis=1).tolist(), strict=True
    ):
        remedy = "give --embedding-dtype float32" if dtype == "float16" else "scale the vectors"
        adjective = "large" if is_large else "small"
        problems[position] = f"the vector is too {adjective} for {dtype}; {remedy}"
    rows = _part_rows(run.take(pa.array(positions[fits])), values[fits])
    failed = run.take(pa.array(sorted(problems), pa.int64())).to_pylist()
    failures = [
        failure_record(item, "read", ValueError(problems[position]))
        for item, position in zip(failed, sorted(problems), strict=True)
    ]
    return EmbeddedBatch(rows, stored[fits], failures, values.nbytes, rounding)


def _to_matrix(
    run: pa.Table, vectors: NDArray[Any] | pa.Array, dimension: int
) -> tuple[NDArray[np.int64], NDArray[Any], dict[int, str]]:
    """Return the vectors of the right length without nulls, and why the others are left out.

    Returns:
        (m,) positions in the run, (m, d) vectors in the dtype of the file, {position: reason}.
    """
    if isinstance(vectors, np.ndarray):
        positions = np.arange(len(vectors))
        if vectors.shape[1] == dimension:
            return positions, vectors, {}
        reason = f"the vector has {vectors.shape[1]} numbers, not {dimension}"
        none = np.empty((0, dimension), vectors.dtype)
        return positions[:0], none, dict.fromkeys(positions.tolist(), reason)
    lengths = pc.fill_null(pc.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)
    has_length = lengths == dimension
    reasons = {
        position: f"the vector has {lengths[position]} numbers, not {dimension}"
        for position in np.flatnonzero(~has_length).tolist()
    }
    for position in np.flatnonzero(lengths < 0).tolist():
        location = parse_container_path(run["path"][position].as_py())
        assert isinstance(location, ParquetRow)
        reasons[position] = null_message("vector", location.row, location.container)
    lists = vectors if has_length.all() else vectors.filter(pa.array(has_length))
    numbers, positions = lists.flatten(), np.flatnonzero(has_length)
    if numbers.null_count:  # a null counts as not a number
        is_null = (
            numbers.is_null().to_numpy(zero_copy_only=False).reshape(-1, dimension).any(axis=1)
        )
        reasons |= dict.fromkeys(positions[is_null].tolist(), "the vector is not finite")
        numbers, positions = lists.filter(pa.array(~is_null)).flatten(), positions[~is_null]
    values: NDArray[Any] = numbers.to_numpy(zero_copy_only=False)
    return positions, values.reshape(-1, dimension), reasons


def _cast(
    values: NDArray[Any], importing: ImportSettings
) -> tuple[NDArray[Any], NDArray[np.bool_], Rounding]:
    """Cast (n, d) vectors to the stored type.

    Returns:
        (n, d) stored vectors, (n,) whether they fit into the type, and the rounding of those.
    """
    dtype = importing.embedding_dtype
    if np.can_cast(values.dtype, dtype):
        return values.astype(dtype), np.ones(len(values), np.bool_), Rounding(len(values))
    exact = values.astype(np.float64)
    if importing.rescale:
        _rescale(exact, dtype)
    with np.errstate(over="ignore", under="ignore"):
        stored = exact.astype(dtype)
    fits = np.isfinite(stored).all(axis=1) & (stored.any(axis=1) | ~exact.any(axis=1))
    return stored, fits, _measure_rounding(exact[fits], stored[fits])


def _part_rows(lines: pa.Table, values: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the rows of a part for (n,) lines with (n, d) vectors as they are in their file."""
    data = np.ascontiguousarray(values).view(np.uint8)
    digests = [hashlib.sha256(vector).hexdigest() for vector in data]
    columns = (lines["row"].to_pylist(), lines["image_id"].to_pylist(), digests)
    return [
        part_row({"row": row, "image_id": image_id}, sha256, None, None)
        for row, image_id, sha256 in zip(*columns, strict=True)
    ]


def _rescale(exact: NDArray[np.float64], dtype: str) -> None:
    """Scale vectors out of the range of a narrower type by a power of two, in place and exactly.

    Their largest component is then between 1/2 and 1. Scaling to unit length would bring them into
    range as well, but would round components that the stored type can hold.

    Args:
        exact: (n, d) vectors.
        dtype: The stored type.
    """
    _, exponents = np.frexp(np.abs(exact).max(axis=1, initial=0.0))
    low, high = _SAFE_EXPONENTS[dtype]
    is_scaled = (exponents < low) | (exponents > high)
    exact[is_scaled] = np.ldexp(exact[is_scaled], -exponents[is_scaled, None])


def _measure_rounding(exact: NDArray[np.float64], stored: NDArray[Any]) -> Rounding:
    """Measure the rounding error |x - stored x| / |x| of (n, d) vectors; 0 for zero vectors."""
    if not len(exact):
        return Rounding()
    scale = np.abs(exact).max(axis=1, keepdims=True)  # so that squares do not overflow
    scale[scale == 0] = 1
    lengths = np.linalg.norm(exact / scale, axis=1)
    errors = np.linalg.norm((exact - stored) / scale, axis=1) / np.where(lengths > 0, lengths, 1)
    changed = int(np.count_nonzero(errors))
    return Rounding(len(exact), changed, float(errors.max()), float(errors.sum()))
