"""From the description of a gallery to the plan of its index, with the reason of each number."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.core.errors import UsageError
from retrieval.core.records import IndexPlan
from retrieval.core.schemas import Metric
from retrieval.index.faiss_io import Kind, kind_of

PROBE_ALL_ROWS = 50_000
"""Up to here every list is read: in a batch of queries a product over 50,000 x 512 takes less than
a millisecond a query, which is not worth a loss, and recall is 1 by construction."""

LIST_ROWS = 256
"""Rows a list should have at least, so that its product with many queries is worth the call."""

SHARD_LIST_ROWS = 16
"""Rows of it that one shard should have at least, on average: below that the calls cost more than
the products (`benchmarks/README.md`)."""

MAX_LISTS = 1 << 16
SAMPLE_ROWS_PER_LIST = 64
"""Between FAISS' warning at 39 and its ceiling of 256 training rows a centroid."""

SMALL_SHARD = 1 << 14
"""Rows of the smallest shard that is worth a task. Where the memory holds fewer vectors, codes of a
byte a number (SQ8) stand for them, and matches are scored from the store."""

_ROW_BYTES = 8 + 8 + 200  # id, norm, and about 200 bytes of names and checksum


@dataclass(frozen=True)
class Gallery:
    """What a plan needs to know of the vectors."""

    rows: int
    dimension: int
    dtype: str  # float16 or float32
    metric: Metric


def plan_index(
    gallery: Gallery,
    memory: int,
    *,
    rows_per_shard: int | None = None,
    factory: str | None = None,
) -> IndexPlan:
    """Plan an index; a pure function.

    `memory` is what one task may hold, in bytes: half of it is for the shard, the rest for the
    queries, the answers and what is read. `rows_per_shard` and `factory` by hand overrule that.
    """
    if factory is None:
        name, why = _kind_for(gallery, memory, rows_per_shard)
        per_vector = _vector_bytes(gallery, name)
        fit = rows_per_shard or _fit(gallery, memory, per_vector)
        nlist = max(1, min(int(4 * gallery.rows**0.5), gallery.rows // LIST_ROWS, MAX_LISTS,
                           fit // SHARD_LIST_ROWS))  # fmt: skip
        factory = f"IVF{nlist},{name}"
        kind = kind_of(factory, gallery.dimension, gallery.dtype, gallery.metric)
        lists = (
            f"{nlist} lists: 4 x the root of {gallery.rows} rows, at least {LIST_ROWS} rows a list "
            f"and {SHARD_LIST_ROWS} of them in a shard, at most {MAX_LISTS}"
        )
    else:
        kind = kind_of(factory, gallery.dimension, gallery.dtype, gallery.metric)
        per_vector = kind.code_bytes + _ROW_BYTES
        fit = rows_per_shard or _fit(gallery, memory, per_vector)
        why, lists = _asked(factory, kind), f"{kind.nlist} lists: asked for"
        if kind.nlist > gallery.rows:
            lists += f"; there are {gallery.rows} vectors, so the others stay empty"
    return _plan(gallery, factory, kind, per_vector, fit, (why, lists), memory, rows_per_shard)


def _plan(
    gallery: Gallery, factory: str, kind: Kind, per_vector: int, fit: int, said: tuple[str, str],
    memory: int, by_hand: int | None,
) -> IndexPlan:  # fmt: skip
    rows, metric = gallery.rows, gallery.metric
    sample = min(rows, SAMPLE_ROWS_PER_LIST * kind.nlist)
    shards = -(-rows // fit)
    per_shard = by_hand or -(-rows // shards)
    probe_all = reads_all(rows, kind.codes)
    reasons = (
        *said,
        f"about {sample} rows train the centroids: {SAMPLE_ROWS_PER_LIST} a list, or all",
        f"{shards} shards of {per_shard} rows: "
        + ("asked for" if by_hand else f"half of {memory} bytes at {per_vector} each"),
        f"every list is read ({rows} rows are at most {PROBE_ALL_ROWS}), so recall is 1"
        if probe_all
        else f"lists read by the recall curve ({rows} rows"
        + (
            f" are more than {PROBE_ALL_ROWS})" if kind.codes else ", and the codes lose something)"
        ),
        f"metric {metric}: lists by the "
        + ("nearest centroid" if metric == "l2" else "largest dot with a centroid of unit length"),
    )
    return IndexPlan(
        factory, kind.nlist, kind.codes, sample, per_shard, per_vector, probe_all, reasons
    )


def reads_all(rows: int, codes: str | None) -> bool:
    """Tell whether every query reads every list, and recall is 1 by construction."""
    return rows <= PROBE_ALL_ROWS and codes is not None


def _kind_for(gallery: Gallery, memory: int, rows_per_shard: int | None) -> tuple[str, str]:
    exact = "SQfp16" if gallery.dtype == "float16" else "Flat"
    smallest = min(gallery.rows, SMALL_SHARD)
    needed = 2 * smallest * _vector_bytes(gallery, exact)
    if rows_per_shard is None and needed > memory:
        return "SQ8", (
            f"SQ8: a byte a number, since {smallest} {gallery.dtype} vectors need {needed} bytes; "
            "what it loses is made good by scoring the matches from the store"
        )
    return exact, f"{exact}: the codes are the {gallery.dtype} vectors themselves, nothing is lost"


def _asked(factory: str, kind: Kind) -> str:
    if kind.codes:
        return f"{factory}: asked for; the codes are the vectors themselves, nothing is lost"
    return f"{factory}: asked for; what its codes lose is made good by scoring from the store"


def _vector_bytes(gallery: Gallery, kind: str) -> int:
    width = {"SQ8": 1, "SQfp16": 2, "Flat": 4}[kind]
    return gallery.dimension * width + _ROW_BYTES


def _fit(gallery: Gallery, memory: int, per_vector: int) -> int:
    """Count the vectors that half of the memory holds; too few are refused."""
    fit = memory // 2 // per_vector
    if fit < min(LIST_ROWS, gallery.rows):
        raise UsageError(
            f"--max-index-memory {memory} holds only {fit} vectors of {gallery.dimension} "
            f"dimensions; give at least {2 * LIST_ROWS * per_vector} bytes"
        )
    return fit
