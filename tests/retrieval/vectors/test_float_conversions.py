"""Tests that float conversions are exact or rounded once, with and without flushed subnormals."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.vectors.float_conversions import flushes_subnormals, to_float32, to_float64
from retrieval.vectors.scoring import float16_to_float32
from tests.retrieval.sample_vectors import call_with_flushed_subnormals

EVERY_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)


def float32_of_all_magnitudes() -> np.ndarray:
    """Return finite float32 numbers of both signs.

    They have random bits, or are the smallest subnormals, or lie around the smallest normal number.
    """
    random_bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint64)
    smallest = np.arange(1 << 12, dtype=np.uint64)
    around_normal = 0x00800000 + np.arange(-4, 4, dtype=np.int64).astype(np.uint64)
    bits = np.concatenate(
        [random_bits, smallest, around_normal, smallest + 0x80000000, around_normal + 0x80000000]
    )
    values = bits.astype(np.uint32).view(np.float32)
    return values[np.isfinite(values)]


def test_flushed_subnormals_are_detected():
    assert not flushes_subnormals()
    assert call_with_flushed_subnormals(flushes_subnormals)
    assert not flushes_subnormals()


@pytest.mark.parametrize(
    "values", [EVERY_FLOAT16, float32_of_all_magnitudes()], ids=["half", "single"]
)
def test_conversion_to_float64_is_exact(values):
    expected = values.astype(np.float64)
    finite = np.isfinite(expected)
    for result in (to_float64(values), call_with_flushed_subnormals(lambda: to_float64(values))):
        np.testing.assert_array_equal(
            result.view(np.int64)[finite], expected.view(np.int64)[finite]
        )


def test_float16_to_float32_is_exact():
    expected = EVERY_FLOAT16.astype(np.float32).view(np.uint32)
    np.testing.assert_array_equal(
        call_with_flushed_subnormals(lambda: float16_to_float32(EVERY_FLOAT16)).view(np.uint32),
        expected,
    )


def test_float64_is_rounded_to_the_nearest_float32_ties_to_even():
    generator = np.random.default_rng(0)
    random_values = generator.normal(size=5000) * 2.0 ** generator.integers(-170, -100, 5000)
    midpoints = (np.arange(1000) + 0.5) * 2.0**-149
    near_normal = 2.0**-126 * (1 - 2.0 ** -np.arange(1.0, 54))
    values = np.concatenate(
        [random_values, midpoints, -midpoints, near_normal, -near_normal, [0.0, -0.0]]
    )
    expected = values.astype(np.float32).view(np.uint32)
    for result in (to_float32(values), call_with_flushed_subnormals(lambda: to_float32(values))):
        np.testing.assert_array_equal(result.view(np.uint32), expected)
