"""Planning of an index: number of lists, codes and shards for a gallery, with a reason for each."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.core.errors import UsageError
from retrieval.core.records import IndexPlan
from retrieval.core.schemas import Metric
from retrieval.index.index_kind import IndexKind, parse_index_kind

PROBE_ALL_ROWS = 50_000
"""Up to this many rows, of a gallery or left by --filter, every list is read and recall is 1 by
construction: in a batch a product over 50,000 x 512 takes less than a millisecond per query."""

LIST_ROWS = 160
"""Average rows per list. On embeddings of photos a query reads fewer rows of shorter lists, but is
compared with more centroids and reads more lists, each of which costs as much as dozens of rows. Of
78, 96, 156 and 312 rows a list, 156 is the fastest at recall 0.99, and as fast as any at 0.95."""

READ_ALL_LIST_ROWS = 256
"""The same where every query reads all lists: fewer calls of the product, and nothing to skip."""

CENTROID_SHARE = 4
"""All centroids take at most this share of the memory of a task: a quarter."""

MIN_SHARD_ROWS = 256
"""Vectors of which a task must hold twice as many in memory."""

MAX_LISTS = 1 << 16
SAMPLE_ROWS_PER_LIST = 64
"""Between FAISS' warning at 39 and its ceiling of 256 training rows per centroid."""

SMALL_SHARD = 1 << 14
"""Rows of the smallest shard that is worth a task. If memory holds fewer vectors, codes of one byte
per number (SQ8) replace them, and matches are scored by the stored vectors."""

_ROW_BYTES = 8 + 8 + 200  # id, norm, and about 200 bytes of names and checksum


@dataclass(frozen=True)
class Gallery:
    """The size, type and metric of the vectors to index."""

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
    """Choose the number of lists, the codes and the shards of an index; a pure function.

    `memory` is what one task may use, in bytes: half for the shard, the rest for queries, results
    and input. `rows_per_shard` and `factory` override the automatic choice.
    """
    if factory is None:
        code_name, reason = _code_name_for(gallery, memory, rows_per_shard)
        kind = parse_index_kind(f"IVF1,{code_name}")
        fitting = rows_per_shard or _fit(gallery, memory, _vector_bytes(gallery, kind))
        probes_all = probes_all_lists(gallery.rows, kind.lossless_dtype(gallery.dtype))
        list_rows = READ_ALL_LIST_ROWS if probes_all else LIST_ROWS
        centroids = memory // CENTROID_SHARE // (4 * gallery.dimension)
        nlist = max(1, min(gallery.rows // list_rows, MAX_LISTS, centroids))
        kind = parse_index_kind(f"IVF{nlist},{code_name}")
        list_reason = (
            f"{nlist} lists: about {list_rows} of {gallery.rows} rows a list, at most {MAX_LISTS} "
            "lists, and centroids in a quarter of the memory"
        )
    else:
        kind = _requested_kind(factory, gallery.dimension)
        fitting = rows_per_shard or _fit(gallery, memory, _vector_bytes(gallery, kind))
        reason, list_reason = _explain_factory(kind, gallery), f"{kind.nlist} lists: asked for"
        if kind.nlist > gallery.rows:
            list_reason += f"; there are {gallery.rows} vectors, so the others stay empty"
    return _plan(gallery, kind, fitting, (reason, list_reason), memory, rows_per_shard)


def _plan(
    gallery: Gallery, kind: IndexKind, fitting: int, choices: tuple[str, str], memory: int,
    requested_rows: int | None,
) -> IndexPlan:  # fmt: skip
    rows, metric = gallery.rows, gallery.metric
    codes, per_vector = kind.lossless_dtype(gallery.dtype), _vector_bytes(gallery, kind)
    sample = min(rows, SAMPLE_ROWS_PER_LIST * kind.nlist)
    shards = -(-rows // fitting)
    per_shard = requested_rows or -(-rows // shards)
    probe_all = probes_all_lists(rows, codes)
    reasons = (
        *choices,
        f"about {sample} rows train the centroids: {SAMPLE_ROWS_PER_LIST} a list, or all",
        f"{shards} shards of whole lists, about {per_shard} rows each: "
        + ("asked for" if requested_rows else f"half of {memory} bytes at {per_vector} each"),
        f"every list is read ({rows} rows are at most {PROBE_ALL_ROWS}), so recall is 1"
        if probe_all
        else f"lists read by the recall curve ({rows} rows"
        + (f" are more than {PROBE_ALL_ROWS})" if codes else ", and the codes lose something)"),
        f"metric {metric}: lists by the "
        + ("nearest centroid" if metric == "l2" else "largest dot with a centroid of unit length"),
    )
    return IndexPlan(
        kind.factory, kind.nlist, codes, sample, per_shard, per_vector, probe_all, reasons
    )


def shard_capacity(plan: IndexPlan, memory: int) -> int:
    """Return how many rows a shard may have: as many as half of the memory of a task holds."""
    return max(1, memory // 2 // max(1, plan.bytes_per_vector))


def probes_all_lists(rows: int, codes: str | None) -> bool:
    """Return whether every query reads every list, so that recall is 1 by construction."""
    return rows <= PROBE_ALL_ROWS and codes is not None


def _code_name_for(gallery: Gallery, memory: int, rows_per_shard: int | None) -> tuple[str, str]:
    """Return the codes of a planned index, and the reason: the vectors themselves if they fit."""
    exact = "SQfp16" if gallery.dtype == "float16" else "Flat"
    smallest = min(gallery.rows, SMALL_SHARD)
    needed = 2 * smallest * _vector_bytes(gallery, parse_index_kind(f"IVF1,{exact}"))
    if rows_per_shard is None and needed > memory:
        return "SQ8", (
            f"SQ8: a byte a number, since {smallest} {gallery.dtype} vectors need {needed} bytes; "
            "what it loses is made good by scoring the matches by the stored vectors"
        )
    return exact, f"{exact}: the codes are the {gallery.dtype} vectors themselves, nothing is lost"


def _requested_kind(factory: str, dimension: int) -> IndexKind:
    """Return the kind of --index-factory; UsageError where it does not suit the vectors."""
    try:
        kind = parse_index_kind(factory)
    except ValueError as error:
        raise UsageError(f"--index-factory {error}") from error
    if kind.parts is not None and dimension % kind.parts:
        raise UsageError(
            f"--index-factory {factory} divides vectors into {kind.parts} parts of equal length, "
            f"but they have {dimension} dimensions; specify a divisor of {dimension}"
        )
    return kind


def _explain_factory(kind: IndexKind, gallery: Gallery) -> str:
    if kind.lossless_dtype(gallery.dtype):
        return f"{kind.factory}: asked for; the codes are the vectors themselves, nothing is lost"
    return f"{kind.factory}: asked for; what its codes lose is made good by scoring by the vectors"


def _vector_bytes(gallery: Gallery, kind: IndexKind) -> int:
    return kind.code_bytes(gallery.dimension) + _ROW_BYTES


def _fit(gallery: Gallery, memory: int, per_vector: int) -> int:
    """Return how many vectors half of the memory holds; raises UsageError if too few."""
    fitting = memory // 2 // per_vector
    if fitting < min(MIN_SHARD_ROWS, gallery.rows):
        raise UsageError(
            f"--max-index-memory {memory} holds only {fitting} vectors of {gallery.dimension} "
            f"dimensions; give at least {2 * MIN_SHARD_ROWS * per_vector} bytes"
        )
    return fitting
