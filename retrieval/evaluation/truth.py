"""What is relevant to a query: the gallery images of its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.errors import InputError

DISTRACTOR = "distractor"
"""A label that matches nothing, as an empty one does."""


@dataclass(frozen=True)
class Judged:
    """The rankings of q judged queries.

    `hits` is (q, k) bool: whether the match at rank 1 … k is relevant; False where there is none.
    `relevant` is (q,) int64: relevant images in the gallery. `left_out` counts queries without a
    label, which say nothing.
    """

    query_ids: tuple[str, ...]
    hits: NDArray[np.bool_]
    relevant: NDArray[np.int64]
    left_out: int


def judge(
    matches: pa.Table,
    failed: pa.Table,
    gallery_labels: Mapping[str, int],
    query_labels: Mapping[str, str | None] | None,
    image_labels: Mapping[str, str | None] | None,
    only: frozenset[str] | None = None,
) -> Judged:
    """Judge the matches of all queries; those that failed or have no match count as all wrong.

    `query_labels` and `image_labels` replace the labels that stand in the matches; with `only`,
    queries of other labels are left out.
    """
    labels: dict[str, str | None] = {}
    found: dict[str, list[tuple[int, str | None]]] = {}
    columns = ("query_id", "rank", "image_id", "query_label", "label")
    for row in matches.select(columns).to_pylist():
        name = row["query_id"]
        labels[name] = row["query_label"] if query_labels is None else query_labels.get(name)
        label = row["label"] if image_labels is None else image_labels.get(row["image_id"])
        found.setdefault(name, []).append((row["rank"], label))
    for row in failed.select(("image_id", "label")).to_pylist():
        name = row["image_id"]
        labels[name] = row["label"] if query_labels is None else query_labels.get(name)
        found.setdefault(name, [])
    judged = sorted(
        name
        for name, label in labels.items()
        if label not in (None, "", DISTRACTOR) and (only is None or label in only)
    )
    if not judged:
        raise InputError(
            "no query has a label, so nothing can be evaluated; name a file with --labels"
        )
    width = max((rank for ranks in found.values() for rank, _ in ranks), default=1)
    hits = np.zeros((len(judged), width), bool)
    for place, name in enumerate(judged):
        for rank, label in found[name]:
            hits[place, rank - 1] = label == labels[name]
    relevant = np.array([gallery_labels.get(str(labels[name]), 0) for name in judged], np.int64)
    return Judged(tuple(judged), hits, relevant, len(labels) - len(judged))
