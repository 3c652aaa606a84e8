"""Build small tables of matches from tuples, for the tests of the evaluation."""

import pyarrow as pa

from retrieval.core.schemas import EXCLUSIONS, GALLERY_LABELS, MATCHES


def matches(*rows):
    """Make matches from (query, its label, rank, image, its label[, score])."""
    columns = {
        "query_id": [r[0] for r in rows],
        "rank": [r[2] for r in rows],
        "image_id": [r[3] for r in rows],
        "score": [r[5] if len(r) > 5 else 1 - r[2] / 100 for r in rows],
        "query_path": [""] * len(rows),
        "path": [""] * len(rows),
        "query_label": [r[1] for r in rows],
        "label": [r[4] for r in rows],
    }
    return pa.table(columns, schema=MATCHES.schema)


def gallery(**counts):
    """Make the count of gallery images a class."""
    return pa.table([list(counts), list(counts.values())], schema=GALLERY_LABELS.schema)


def labels(**named):
    """Make a labels file."""
    return pa.table({
        "image_id": pa.array(list(named), pa.string()),
        "label": pa.array(list(named.values()), pa.string()),
    })  # fmt: skip


def queries(**named):
    """Make queries, each with its label."""
    return labels(**named).rename_columns(["query_id", "query_label"])


def excluded_pairs(*rows):
    """Make pairs that are kept apart, from (query, image, the image's label)."""
    return pa.table([list(c) for c in zip(*rows, strict=True)], schema=EXCLUSIONS.schema)
