"""Builders of small Arrow tables for the tests of the evaluation."""

import pyarrow as pa

from retrieval.core.schemas import EXCLUSIONS, GALLERY_LABELS, MATCHES


def matches(*rows):
    """Return matches from tuples (query_id, query_label, rank, image_id, label[, score])."""
    columns = {
        "query_id": [row[0] for row in rows],
        "rank": [row[2] for row in rows],
        "image_id": [row[3] for row in rows],
        "score": [row[5] if len(row) > 5 else 1 - row[2] / 100 for row in rows],
        "query_path": [""] * len(rows),
        "path": [""] * len(rows),
        "query_label": [row[1] for row in rows],
        "label": [row[4] for row in rows],
        "probability": [None] * len(rows),
    }
    return pa.table(columns, schema=MATCHES.schema)


def gallery(**counts):
    """Return a table of the number of gallery images per class."""
    return pa.table([list(counts), list(counts.values())], schema=GALLERY_LABELS.schema)


def labels(**pairs):
    """Return a labels table from image_id=label pairs."""
    return pa.table({
        "image_id": pa.array(list(pairs), pa.string()),
        "label": pa.array(list(pairs.values()), pa.string()),
    })  # fmt: skip


def queries(**pairs):
    """Return a table of queries from query_id=label pairs."""
    return labels(**pairs).rename_columns(["query_id", "query_label"])


def excluded_pairs(*rows):
    """Return excluded pairs from tuples (query_id, image_id, label of the image)."""
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=EXCLUSIONS.schema)
