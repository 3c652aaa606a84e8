"""Tests that PCA equals the SVD of the centred sample, for any block size and thread count."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.errors import UsageError
from retrieval.models import pca
from retrieval.models.pca import Projection, StreamingMoments
from retrieval.vectors.normalize import normalize_rows
from tests.retrieval.sample_vectors import quick, seeds


@dataclass(frozen=True)
class Sample:
    """Unit vectors, (n, d) float32, and the number of axes to fit."""

    rows: NDArray[np.float32]
    dimensions: int

    def centred(self) -> NDArray[np.float64]:
        rows64 = self.rows.astype(np.float64)
        return rows64 - rows64.mean(0)

    def variances(self) -> NDArray[np.float64]:
        """Return the variance along each principal axis, (min(n, d),), in descending order."""
        return np.linalg.svd(self.centred(), compute_uv=False) ** 2 / len(self.rows)


@st.composite
def samples(draw: st.DrawFn, *, full_rank: bool = False) -> Sample:
    """Draw vectors that are spread, positive as after ReLU, close together, or of low rank.

    With `full_rank` all d axes are requested.
    """
    d = draw(st.sampled_from([1, 2, 3, 8, 17, 40]))
    n = draw(st.integers(d + 1 if full_rank else 2, 60))
    generator = np.random.default_rng(draw(seeds))
    values = generator.normal(size=(n, d)) * generator.uniform(0.1, 2, d)
    distribution = draw(st.sampled_from(["spread", "positive", "close", "flat"]))
    if distribution == "positive":
        values = np.maximum(values, 0) + 0.01
    if distribution == "close":
        values = values / 1000 + generator.normal(size=d)
    if distribution == "flat":
        values[:, d // 2 :] = 0.5
    max_dimensions = min(d, n - 1)
    return Sample(
        normalize_rows(values).astype(np.float32),
        d if full_rank else draw(st.integers(1, max_dimensions)),
    )


def make_moments(*blocks: NDArray[np.float32]) -> StreamingMoments:
    moments = StreamingMoments(blocks[0].shape[1])
    for block in blocks:
        moments.add(block)
    return moments


def fit(sample: Sample) -> Projection:
    return make_moments(sample.rows).fit(sample.dimensions)


def random_unit_vectors(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    return normalize_rows(np.random.default_rng(seed).normal(0.3, 1, (n, d))).astype(np.float32)


# --- fitting --------------------------------------------------------------------------------------


@quick
@given(samples())
def test_axes_are_singular_vectors_of_centred_sample(sample):
    projection, variances = fit(sample), sample.variances()
    assert (projection.mean.dtype, projection.axes.dtype) == (np.float32, np.float32)
    assert projection.axes.shape == (sample.dimensions, sample.rows.shape[1])
    np.testing.assert_allclose(projection.mean, sample.rows.astype(np.float64).mean(0), atol=1e-7)
    axes = projection.axes.astype(np.float64)
    actual = ((sample.centred() @ axes.T) ** 2).mean(0)
    tolerance = 1e-9 * variances[0] + 1e-14
    np.testing.assert_allclose(actual, variances[: len(axes)], rtol=1e-5, atol=tolerance)
    next_variance = variances[len(axes) :].max(initial=0)
    gap = variances[len(axes) - 1] - next_variance
    if gap > 1e-3 * variances[0] + 1e-14:  # the subspace is unique
        singular_vectors = np.linalg.svd(sample.centred(), full_matrices=False)[2][: len(axes)]
        np.testing.assert_allclose(axes.T @ axes, singular_vectors.T @ singular_vectors, atol=1e-5)


@quick
@given(samples())
def test_axes_are_orthonormal_and_their_largest_component_is_positive(sample):
    axes = fit(sample).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-6)
    for axis in axes:
        assert axis[np.flatnonzero(abs(axis) == abs(axis).max())[0]] > 0


@quick
@given(samples(full_rank=True))
def test_all_axes_preserve_distances(sample):
    projected = fit(sample).apply(sample.rows)
    rows64 = sample.rows.astype(np.float64)
    for row in range(len(rows64)):
        distances = np.linalg.norm(rows64 - rows64[row], axis=1)
        np.testing.assert_allclose(
            np.linalg.norm(projected - projected[row], axis=1), distances, rtol=1e-5, atol=1e-9
        )


@quick
@given(samples(), st.lists(st.integers(0, 60), max_size=6), st.sampled_from([1, 4, 16, 1024]))
def test_projection_bytes_do_not_depend_on_block_boundaries(sample, cuts, block_rows):
    rows = sample.rows
    with mock.patch.object(pca, "_BLOCK_ROWS", block_rows):
        single = make_moments(rows)
        split = make_moments(*np.split(rows, sorted(min(cut, len(rows)) for cut in cuts)))
        fitted_bytes = [moments.fit(sample.dimensions).to_bytes() for moments in (single, split)]
        mean, covariance = split.mean_and_covariance()
    assert fitted_bytes[0] == fitted_bytes[1]
    assert split.count == len(rows)
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), atol=1e-10)
    expected = sample.centred().T @ sample.centred() / len(rows)
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-10)


def test_moments_of_more_rows_than_one_block():
    rows = random_unit_vectors(2500, 20)
    moments = make_moments(*np.array_split(rows, 7))
    mean, covariance = moments.mean_and_covariance()
    rows64 = rows.astype(np.float64)
    np.testing.assert_allclose(mean, rows64.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows64.T, bias=True), atol=1e-12)


def test_fit_does_not_change_moments():
    rows = random_unit_vectors(2500, 20)
    moments = make_moments(rows[:1500])
    moments.fit(3)
    moments.add(rows[1500:])
    assert moments.fit(5).to_bytes() == make_moments(rows).fit(5).to_bytes()


def test_row_order_changes_axes_by_rounding_only():
    rows = random_unit_vectors(2500, 20)
    projection, reordered = make_moments(rows).fit(4), make_moments(rows[::-1]).fit(4)
    np.testing.assert_allclose(reordered.axes, projection.axes, atol=1e-5)


def test_small_variances_around_large_mean_are_accurate():
    """Sums of uncentred products would cancel catastrophically at these variances."""
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(3000, 16)) * np.linspace(1, 0.05, 16) * 1e-5
    rows = normalize_rows(generator.normal(size=16) + spread).astype(np.float32)
    sample = Sample(rows, 15)
    actual = np.linalg.eigvalsh(make_moments(rows).mean_and_covariance()[1])[::-1]
    np.testing.assert_allclose(actual[:15], sample.variances()[:15], rtol=1e-10)


def test_identical_vectors_have_finite_axes():
    projection = make_moments(np.tile(random_unit_vectors(1, 8), (20, 1))).fit(3)
    assert np.isfinite(projection.axes).all()
    np.testing.assert_array_equal(projection.apply(random_unit_vectors(1, 8)), np.zeros((1, 3)))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_thread_count_changes_no_byte_and_is_restored(threads):
    """With duplicate rows the sample has low rank, and rounding decides the remaining axes."""
    rows, before = np.tile(random_unit_vectors(120, 250), (5, 1)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = make_moments(rows).fit(200).to_bytes()
        torch.set_num_threads(threads)
        assert make_moments(rows).fit(200).to_bytes() == expected
        assert torch.get_num_threads() == threads
        with (
            mock.patch.object(torch.linalg, "eigh", side_effect=RuntimeError("no convergence")),
            pytest.raises(RuntimeError),
        ):
            make_moments(rows).fit(200)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# --- application ----------------------------------------------------------------------------------


@quick
@given(samples(), st.data())
def test_projected_rows_do_not_depend_on_position_or_neighbours(sample, data):
    projection, rows = fit(sample), sample.rows
    order = data.draw(st.permutations(range(len(rows))))
    count = data.draw(st.integers(1, len(rows)))
    projected = projection.apply(rows)
    assert projected.dtype == np.float64
    assert projection.apply(rows[order[:count]]).tobytes() == projected[order[:count]].tobytes()
    assert projection.apply(np.asfortranarray(rows)).tobytes() == projected.tobytes()
    assert projection.apply(rows.astype(np.float64)).tobytes() == projected.tobytes()
    expected = (rows.astype(np.float64) - projection.mean) @ projection.axes.astype(np.float64).T
    np.testing.assert_allclose(projected, expected, atol=1e-12)


def test_apply_to_no_rows():
    projection = make_moments(random_unit_vectors(30, 8)).fit(3)
    assert projection.apply(np.empty((0, 8), np.float32)).shape == (0, 3)


def test_apply_does_not_depend_on_threads_and_needs_no_torch():
    """At 250 x 2048 a BLAS matrix product depends on the number of threads."""
    code = (
        "import sys, hashlib, numpy as np; from retrieval.models.pca import Projection;"
        "draw = np.random.default_rng(0).normal;"
        "projection = Projection(np.zeros(2048, np.float32), draw(size=(250, 2048)).astype('f4'));"
        "print(hashlib.sha256(projection.apply(draw(size=(4, 2048))).tobytes()).hexdigest());"
        "assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parents[3])
    digests = set()
    for threads in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": threads}
        process = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        digests.add(process.stdout)
    assert len(digests) == 1


@quick
@given(samples())
def test_normalize_rows_divides_by_norm_and_keeps_zero_rows(sample):
    rows = np.concatenate([sample.rows * 7, np.zeros((1, sample.rows.shape[1]), np.float32)])
    normalized = normalize_rows(rows)
    np.testing.assert_allclose(np.linalg.norm(normalized[:-1], axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(normalized[:-1], sample.rows, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(normalized[-1], 0)


# --- serialization --------------------------------------------------------------------------------


@quick
@given(samples())
def test_projection_round_trip(sample):
    projection = fit(sample)
    restored = Projection.from_bytes(projection.to_bytes())
    np.testing.assert_array_equal(restored.mean, projection.mean)
    np.testing.assert_array_equal(restored.axes, projection.axes)
    assert restored.to_bytes() == projection.to_bytes()
    assert restored.apply(sample.rows).tobytes() == projection.apply(sample.rows).tobytes()


def test_projection_bytes_do_not_depend_on_memory_layout():
    projection = make_moments(random_unit_vectors(30, 8)).fit(3)
    reordered = Projection(projection.mean.copy(), np.asfortranarray(projection.axes))
    assert reordered.to_bytes() == projection.to_bytes()
    assert (
        reordered.apply(random_unit_vectors(2, 8)).tobytes()
        == projection.apply(random_unit_vectors(2, 8)).tobytes()
    )


# --- invalid requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "width", "requested", "maximum"),
    [(300, 512, 900, 299), (300, 20, 21, 20), (20, 20, 20, 19), (2, 5, 2, 1)],
)
def test_too_many_axes_raise_usage_error(images, width, requested, maximum):
    moments = make_moments(random_unit_vectors(images, width))
    with pytest.raises(UsageError) as error:
        moments.fit(requested)
    assert error.value.exit_code == 2
    assert str(error.value) == (
        f"--pca {requested} is too large: {images} images of dimension {width} "
        f"allow at most {maximum}"
    )
    assert moments.fit(maximum).axes.shape == (maximum, width)


@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images_raise_usage_error(images):
    moments = make_moments(random_unit_vectors(2, 8)[:images])
    with pytest.raises(UsageError, match=f"--pca 3 needs at least two .* there are {images}; add"):
        moments.fit(3)


@pytest.mark.parametrize("requested", [0, -1])
def test_fewer_than_one_axis_raises_usage_error(requested):
    with pytest.raises(UsageError, match=f"--pca {requested} is below 1; write 1 or more"):
        make_moments(random_unit_vectors(20, 8)).fit(requested)
