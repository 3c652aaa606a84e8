"""Project vectors onto their first two principal axes, deterministically."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Vectors

Plane = NDArray[np.float64]
_TIE = 1e-6  # relative; entries this close to the largest count as equal


def principal_plane(vectors: Vectors | Plane) -> tuple[Plane, tuple[float, float]]:
    """Project (n, d) vectors onto their first two principal axes.

    Returns (n, 2) float64 coordinates around the mean, and the share of the variance of each axis
    (0 where there is none). The sign of an axis makes its largest entry (the first of equal ones)
    positive, so that equal vectors give equal coordinates. Axes without variance give 0.
    """
    values = vectors.astype(np.float64)
    values -= values.mean(0)
    count, dimension = values.shape
    plane = np.zeros((count, 2))
    total = float(np.square(values).sum())
    if total == 0:
        return plane, (0.0, 0.0)
    by_rows = count <= dimension  # the smaller of the two products has the same eigenvalues
    lengths, axes = np.linalg.eigh(values @ values.T if by_rows else values.T @ values)
    shares = [0.0, 0.0]
    for number in range(min(2, len(lengths))):
        axis = axes[:, -1 - number]
        axis = values.T @ axis if by_rows else axis
        length = float(np.linalg.norm(axis))
        share = max(float(lengths[-1 - number]), 0.0) / total
        if share < np.finfo(np.float64).eps * max(values.shape) or length == 0:
            continue
        largest = np.flatnonzero(np.abs(axis) >= (1 - _TIE) * np.abs(axis).max())[0]
        plane[:, number] = values @ (axis * (np.sign(axis[largest]) / length))
        shares[number] = share
    return plane, (shares[0], shares[1])


def select_separated(points: Plane, side: float, limit: int) -> list[int]:
    """Return the positions of at most `limit` points, (n, 2), whose squares do not overlap."""
    chosen: list[int] = []
    for number, point in enumerate(points):
        if len(chosen) == limit:
            break
        if (np.abs(points[chosen] - point).max(1, initial=0) >= side).all():
            chosen.append(number)
    return chosen
