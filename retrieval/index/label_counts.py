"""The table of gallery images per label, merged from counts of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from retrieval.core.schemas import GALLERY_LABELS


def build_labels_table(counts: Iterable[dict[str, int]]) -> pa.Table:
    """Return the sum of the label counts of several shards: table GALLERY_LABELS, by label."""
    total: Counter[str] = Counter()
    for shard_counts in counts:
        total.update(shard_counts)
    names = sorted(total, key=str.encode)
    columns = [pa.array(names, pa.string()), pa.array([total[name] for name in names], pa.int64())]
    return pa.table(columns, schema=GALLERY_LABELS.schema)
