"""Retrieval quality of validation embeddings: each photo is a query against all others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from retrieval.evaluation.measures import average_precision, success
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance

MAX_QUERIES = 2000
"""Maximum number of query photos; more would hardly change the means."""

_BLOCK = 256


def evaluate_retrieval(embeddings: Tensor, classes: Tensor, *, seed: int) -> tuple[float, float]:
    """Return top-1 and mAP of (n, d) float32 embeddings by cosine, over the whole ranking.

    Photos that are alone in their class are not queries; of more than `MAX_QUERIES` queries a
    sample is drawn with `seed`. Returns (0, 0) without queries.
    """
    vectors = embeddings.numpy()
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = classes.numpy()
    has_relevant = np.bincount(labels)[labels] > 1
    queries = np.flatnonzero(has_relevant)
    if len(queries) > MAX_QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(queries, MAX_QUERIES, replace=False))
    parts = [
        _grade_block(vectors, labels, queries[first : first + _BLOCK])
        for first in range(0, len(queries), _BLOCK)
    ]
    if not parts:
        return 0.0, 0.0
    top1, precisions = (
        np.concatenate(values)
        for values in (
            [success(part, 1) for part in parts],
            [average_precision(part) for part in parts],
        )
    )
    return float(top1.mean()), float(precisions.mean())


def _grade_block(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], queries: NDArray[np.int64]
) -> RankingRelevance:
    """Rank all other photos for each query and grade them by class: 1 for the same, else 0."""
    scores = vectors[queries] @ vectors.T
    scores[np.arange(len(queries)), queries] = -np.inf  # the query itself sorts last and is dropped
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    grades = (labels[order] == labels[queries][:, None]).astype(np.int16)
    counts = grades.sum(1, dtype=np.int64)[:, None]
    no_names = pa.nulls(len(queries), pa.string())
    return RankingRelevance(
        no_names, no_names, grades, np.full(len(queries), order.shape[1]), np.ones(1, np.int16),
        counts, SCORED_MATCHES.empty_table(), 0, 0,
    )  # fmt: skip
