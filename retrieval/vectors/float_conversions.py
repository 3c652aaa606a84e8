"""Exact conversions between float16, float32 and float64, whatever mode the processor is in.

A thread may flush subnormal numbers to zero: set by a library compiled with -ffast-math, by
OpenVINO or by torch.set_flush_denormal. Then numpy's casts from and to float32 lose numbers below
2^-126, so all casts that affect results go through these functions. Float64 needs no such care:
squares of float32 are at least 2^-298.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = 2.0**-520  # its square is a subnormal number of float64
_SMALLEST_NORMAL = 2.0**-126  # of float32
_SMALLEST_SUBNORMAL = 2.0**-149  # above zero, of float32
_MAGNITUDE_MASK = np.uint32(0x7FFFFFFF)
_SMALLEST_NORMAL_BITS = np.uint32(0x00800000)  # the bits of 2^-126


def flushes_subnormals() -> bool:
    """Return whether this thread flushes subnormal numbers (inputs or results) to zero."""
    return _TINY * _TINY == 0.0


def to_float64(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Convert float16, float32 or float64 to a new C-contiguous float64 array, exactly."""
    wide: NDArray[np.float64] = values.astype(np.float64, order="C")
    if values.dtype == np.float32 and flushes_subnormals():
        bits = np.ascontiguousarray(values).view(np.uint32)
        magnitude = bits & _MAGNITUDE_MASK
        is_subnormal = magnitude < _SMALLEST_NORMAL_BITS
        numbers = magnitude[is_subnormal] * _SMALLEST_SUBNORMAL
        wide[is_subnormal] = np.where(bits[is_subnormal] > _MAGNITUDE_MASK, -numbers, numbers)
    return wide


def to_float32(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Convert float16, float32 or float64 to float32, rounded to the nearest, ties to even."""
    narrow: NDArray[np.float32] = values.astype(np.float32, copy=False)
    if values.dtype == np.float64 and flushes_subnormals():
        is_subnormal = np.abs(values) < _SMALLEST_NORMAL
        bits = np.rint(np.abs(values[is_subnormal]) / _SMALLEST_SUBNORMAL).astype(np.uint32)
        signs = np.where(np.signbit(values[is_subnormal]), ~_MAGNITUDE_MASK, np.uint32(0))
        narrow.view(np.uint32)[is_subnormal] = bits | signs
    return narrow
