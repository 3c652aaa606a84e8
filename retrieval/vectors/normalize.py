"""Normalisation of vectors to unit length in float64, as clustering, PCA and search need it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.float_conversions import to_float64


def normalize_rows(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return (n, d) vectors as float64 of unit length; zero vectors stay zero."""
    values = to_float64(vectors)
    values /= nonzero_lengths(np.sqrt((values * values).sum(-1, keepdims=True)))
    return values


def nonzero_lengths(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vector lengths as divisors: 1 where a length is 0, so that a zero vector stays so."""
    return np.where(lengths > 0, lengths, 1.0)
