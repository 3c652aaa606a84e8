"""From the description of a gallery to the plan of its index, with the reason of each number."""

from __future__ import annotations

from retrieval.errors import UsageError
from retrieval.tables import IndexPlan, Metric

PROBE_ALL_ROWS = 50_000
"""Up to here every list is read: in a batch of queries a product over 50,000 x 512 takes less than
a millisecond a query, which is not worth a loss, and recall is 1 by construction."""

LIST_ROWS = 256
"""Rows a list should have at least, so that its product with many queries is worth the call."""

MAX_LISTS = 1 << 16
SAMPLE_ROWS_PER_LIST = 64
"""Between FAISS' warning at 39 and its ceiling of 256 training rows a centroid."""

_ROW_BYTES = 8 + 8 + 200  # id, norm, and about 200 bytes of names and checksum


def plan_index(
    *,
    images: int,
    rows: int,
    dimension: int,
    dtype: str,
    metric: Metric,
    memory: int,
    rows_per_shard: int | None = None,
) -> IndexPlan:
    """Plan an index for `rows` vectors among `images` places of a listing; a pure function.

    `memory` is what one task may hold, in bytes; half of it is for the shard, the rest for the
    queries, the answers and what is read. `rows_per_shard` by hand overrules that.
    """
    nlist = max(1, min(int(4 * rows**0.5), rows // LIST_ROWS, MAX_LISTS))
    sample = min(rows, SAMPLE_ROWS_PER_LIST * nlist)
    bytes_per_vector = dimension * (2 if dtype == "float16" else 4) + _ROW_BYTES
    fit = memory // 2 // bytes_per_vector
    if fit < LIST_ROWS and rows_per_shard is None:
        raise UsageError(
            f"--max-index-memory {memory} holds only {fit} vectors of {dimension} dimensions; "
            f"give at least {2 * LIST_ROWS * bytes_per_vector} bytes"
        )
    shards = -(-images // fit) if rows_per_shard is None else -(-images // rows_per_shard)
    per_shard = rows_per_shard or -(-images // shards)
    kind = "SQfp16" if dtype == "float16" else "Flat"
    probe_all = rows <= PROBE_ALL_ROWS
    reasons = (
        f"{kind}: the codes are the {dtype} vectors themselves, so nothing is lost",
        f"{nlist} lists: 4 x the root of {rows} rows, at least {LIST_ROWS} rows a list, "
        f"at most {MAX_LISTS}",
        f"{sample} rows train the centroids: {SAMPLE_ROWS_PER_LIST} a list, or all",
        f"{shards} shards of {per_shard} rows: "
        + ("asked for" if rows_per_shard else f"half of {memory} bytes at {bytes_per_vector} each"),
        f"every list is read ({rows} rows are at most {PROBE_ALL_ROWS}), so recall is 1"
        if probe_all
        else f"lists read by the recall curve ({rows} rows are more than {PROBE_ALL_ROWS})",
        f"metric {metric}: lists by the "
        + ("nearest centroid" if metric == "l2" else "largest dot with a centroid of unit length"),
    )
    return IndexPlan(
        f"IVF{nlist},{kind}", nlist, sample, per_shard, bytes_per_vector, probe_all, reasons
    )
