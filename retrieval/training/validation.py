"""Retrieval quality of validation embeddings: each photo is a query against all others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from retrieval.evaluation.measures import average_precision, success
from retrieval.evaluation.relevance import SCORED_MATCHES, RankingRelevance

MAX_QUERIES = 2000
"""Photos that look, at most: more would say the same more slowly."""

_BLOCK = 256


def evaluate_retrieval(embeddings: Tensor, classes: Tensor, *, seed: int) -> tuple[float, float]:
    """Return top-1 and mAP of (n, d) float32 embeddings by cosine, over the whole ranking.

    A photo that is alone in its class does not look.
    """
    vectors = embeddings.numpy()
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = classes.numpy()
    company = np.bincount(labels)[labels] > 1
    asked = np.flatnonzero(company)
    if len(asked) > MAX_QUERIES:
        asked = np.sort(np.random.default_rng(seed).choice(asked, MAX_QUERIES, replace=False))
    found = [
        _judge_block(vectors, labels, asked[first : first + _BLOCK])
        for first in range(0, len(asked), _BLOCK)
    ]
    if not found:
        return 0.0, 0.0
    tops, precisions = (
        np.concatenate(values)
        for values in ([success(j, 1) for j in found], [average_precision(j) for j in found])
    )
    return float(tops.mean()), float(precisions.mean())


def _judge_block(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], asked: NDArray[np.int64]
) -> RankingRelevance:
    scores = vectors[asked] @ vectors.T
    scores[np.arange(len(asked)), asked] = -np.inf  # itself is the last, and left out
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    grades = (labels[order] == labels[asked][:, None]).astype(np.int16)
    counts = grades.sum(1, dtype=np.int64)[:, None]
    nameless = pa.nulls(len(asked), pa.string())
    return RankingRelevance(
        nameless, nameless, grades, np.full(len(asked), order.shape[1]), np.ones(1, np.int16),
        counts, SCORED_MATCHES.empty_table(), 0, 0,
    )  # fmt: skip
