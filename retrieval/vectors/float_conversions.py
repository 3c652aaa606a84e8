"""Exact conversions between float16, float32 and float64, in whatever mode the processor is.

A thread may have been set to take subnormal numbers for zero: by a library that was compiled with
-ffast-math, by OpenVINO, by torch.set_flush_denormal. There numpy's own casts from and to float32
lose numbers below 2^-126. What decides here must not depend on that, so casts go through these
functions. No number below 2^-1022 comes up in float64: squares of float32 are 2^-298 at least.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 2.0**-520  # its square is a subnormal number of float64
_LEAST_NORMAL = 2.0**-126  # of float32
_LEAST = 2.0**-149  # above zero, of float32
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_FIRST_NORMAL = np.uint32(0x00800000)  # the bits of 2^-126


def flushes_subnormals() -> bool:
    """Return whether this thread takes subnormal numbers, or results, for zero."""
    return _SMALL * _SMALL == 0.0


def to_float64(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Convert float16, float32 or float64 to C-contiguous float64, exactly."""
    wide: NDArray[np.float64] = values.astype(np.float64, order="C")
    if values.dtype == np.float32 and flushes_subnormals():
        bits = np.ascontiguousarray(values).view(np.uint32)
        magnitude = bits & _MAGNITUDE
        small = magnitude < _FIRST_NORMAL
        numbers = magnitude[small] * _LEAST
        wide[small] = np.where(bits[small] > _MAGNITUDE, -numbers, numbers)
    return wide


def to_float32(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Convert float16, float32 or float64 to float32, rounded to the nearest, ties to even."""
    narrow: NDArray[np.float32] = values.astype(np.float32, copy=False)
    if values.dtype == np.float64 and flushes_subnormals():
        small = np.abs(values) < _LEAST_NORMAL
        bits = np.rint(np.abs(values[small]) / _LEAST).astype(np.uint32)
        signs = np.where(np.signbit(values[small]), ~_MAGNITUDE, np.uint32(0))
        narrow.view(np.uint32)[small] = bits | signs
    return narrow
