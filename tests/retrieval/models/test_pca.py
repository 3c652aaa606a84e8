"""The projection is the singular vectors of the centred sample, whatever the blocks and cores."""

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
    """Unit vectors, (n, d) float32, with a number of axes that may be asked of them."""

    rows: NDArray[np.float32]
    dimensions: int

    def centred(self) -> NDArray[np.float64]:
        wide = self.rows.astype(np.float64)
        return wide - wide.mean(0)

    def variances(self) -> NDArray[np.float64]:
        """The oracle: variance along each principal axis, (min(n, d),), largest first."""
        return np.linalg.svd(self.centred(), compute_uv=False) ** 2 / len(self.rows)


@st.composite
def samples(draw: st.DrawFn, *, whole: bool = False) -> Sample:
    """Draw vectors spread out, positive as after ReLU, close together, or of few directions."""
    d = draw(st.sampled_from([1, 2, 3, 8, 17, 40]))
    n = draw(st.integers(d + 1 if whole else 2, 60))
    generator = np.random.default_rng(draw(seeds))
    values = generator.normal(size=(n, d)) * generator.uniform(0.1, 2, d)
    kind = draw(st.sampled_from(["spread", "positive", "close", "flat"]))
    if kind == "positive":
        values = np.maximum(values, 0) + 0.01
    if kind == "close":
        values = values / 1000 + generator.normal(size=d)
    if kind == "flat":
        values[:, d // 2 :] = 0.5
    most = min(d, n - 1)
    return Sample(
        normalize_rows(values).astype(np.float32), d if whole else draw(st.integers(1, most))
    )


def moments_of(*blocks: NDArray[np.float32]) -> StreamingMoments:
    moments = StreamingMoments(blocks[0].shape[1])
    for block in blocks:
        moments.add(block)
    return moments


def fitted(sample: Sample) -> Projection:
    return moments_of(sample.rows).fit(sample.dimensions)


def drawn(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    return normalize_rows(np.random.default_rng(seed).normal(0.3, 1, (n, d))).astype(np.float32)


# --- what is fitted -----------------------------------------------------------------------------


@quick
@given(samples())
def test_it_is_the_singular_vectors_of_the_centred_sample(sample):
    made, variances = fitted(sample), sample.variances()
    assert (made.mean.dtype, made.axes.dtype) == (np.float32, np.float32)
    assert made.axes.shape == (sample.dimensions, sample.rows.shape[1])
    np.testing.assert_allclose(made.mean, sample.rows.astype(np.float64).mean(0), atol=1e-7)
    axes = made.axes.astype(np.float64)
    found = ((sample.centred() @ axes.T) ** 2).mean(0)
    tolerance = 1e-9 * variances[0] + 1e-14
    np.testing.assert_allclose(found, variances[: len(axes)], rtol=1e-5, atol=tolerance)
    after = variances[len(axes) :].max(initial=0)
    if variances[len(axes) - 1] - after > 1e-3 * variances[0] + 1e-14:  # the subspace is unique
        right = np.linalg.svd(sample.centred(), full_matrices=False)[2][: len(axes)]
        np.testing.assert_allclose(axes.T @ axes, right.T @ right, atol=1e-5)


@quick
@given(samples())
def test_axes_are_orthonormal_and_their_largest_component_is_positive(sample):
    axes = fitted(sample).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-6)
    for axis in axes:
        assert axis[np.flatnonzero(abs(axis) == abs(axis).max())[0]] > 0


@quick
@given(samples(whole=True))
def test_with_all_axes_distances_stay(sample):
    projected = fitted(sample).apply(sample.rows)
    before = sample.rows.astype(np.float64)
    for place in range(len(before)):
        distances = np.linalg.norm(before - before[place], axis=1)
        np.testing.assert_allclose(
            np.linalg.norm(projected - projected[place], axis=1), distances, rtol=1e-5, atol=1e-9
        )


@quick
@given(samples(), st.lists(st.integers(0, 60), max_size=6), st.sampled_from([1, 4, 16, 1024]))
def test_however_the_rows_are_cut_into_blocks_the_bytes_are_the_same(sample, cuts, together):
    rows = sample.rows
    with mock.patch.object(pca, "_ROWS", together):
        whole = moments_of(rows)
        parted = moments_of(*np.split(rows, sorted(min(cut, len(rows)) for cut in cuts)))
        made = [moments.fit(sample.dimensions).to_bytes() for moments in (whole, parted)]
        mean, covariance = parted.mean_and_covariance()
    assert made[0] == made[1]
    assert parted.count == len(rows)
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), atol=1e-10)
    expected = sample.centred().T @ sample.centred() / len(rows)
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-10)


def test_more_rows_than_are_multiplied_at_once():
    rows = drawn(2500, 20)
    moments = moments_of(*np.array_split(rows, 7))
    mean, covariance = moments.mean_and_covariance()
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(wide.T, bias=True), atol=1e-12)


def test_fitting_takes_nothing_away_from_what_is_added_later():
    rows = drawn(2500, 20)
    moments = moments_of(rows[:1500])
    moments.fit(3)
    moments.add(rows[1500:])
    assert moments.fit(5).to_bytes() == moments_of(rows).fit(5).to_bytes()


def test_another_order_changes_last_bits_only():
    rows = drawn(2500, 20)
    made, turned = moments_of(rows).fit(4), moments_of(rows[::-1]).fit(4)
    np.testing.assert_allclose(turned.axes, made.axes, atol=1e-5)


def test_vectors_that_lie_close_together_keep_their_axes():
    """Sums of the vectors themselves would leave nothing right of variances this small."""
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(3000, 16)) * np.linspace(1, 0.05, 16) * 1e-5
    rows = normalize_rows(generator.normal(size=16) + spread).astype(np.float32)
    sample = Sample(rows, 15)
    found = np.linalg.eigvalsh(moments_of(rows).mean_and_covariance()[1])[::-1]
    np.testing.assert_allclose(found[:15], sample.variances()[:15], rtol=1e-10)


def test_equal_vectors_have_axes_too():
    made = moments_of(np.tile(drawn(1, 8), (20, 1))).fit(3)
    assert np.isfinite(made.axes).all()
    np.testing.assert_array_equal(made.apply(drawn(1, 8)), np.zeros((1, 3)))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_changes_no_byte_and_is_as_before(threads):
    """Where images repeat, last bits decide the axes beyond those that tell images apart."""
    rows, before = np.tile(drawn(120, 250), (5, 1)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = moments_of(rows).fit(200).to_bytes()
        torch.set_num_threads(threads)
        assert moments_of(rows).fit(200).to_bytes() == alone
        assert torch.get_num_threads() == threads
        with (
            mock.patch.object(torch.linalg, "eigh", side_effect=RuntimeError("no convergence")),
            pytest.raises(RuntimeError),
        ):
            moments_of(rows).fit(200)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# --- what it gives ------------------------------------------------------------------------------


@quick
@given(samples(), st.data())
def test_a_row_depends_neither_on_its_place_nor_on_its_neighbours(sample, data):
    made, rows = fitted(sample), sample.rows
    order = data.draw(st.permutations(range(len(rows))))
    some = data.draw(st.integers(1, len(rows)))
    projected = made.apply(rows)
    assert projected.dtype == np.float64
    assert made.apply(rows[order[:some]]).tobytes() == projected[order[:some]].tobytes()
    assert made.apply(np.asfortranarray(rows)).tobytes() == projected.tobytes()
    assert made.apply(rows.astype(np.float64)).tobytes() == projected.tobytes()
    expected = (rows.astype(np.float64) - made.mean) @ made.axes.astype(np.float64).T
    np.testing.assert_allclose(projected, expected, atol=1e-12)


def test_no_rows_give_no_rows():
    made = moments_of(drawn(30, 8)).fit(3)
    assert made.apply(np.empty((0, 8), np.float32)).shape == (0, 3)


def test_applying_is_the_same_for_any_number_of_cores_and_needs_no_torch():
    """At 250 x 2048 the product of BLAS depends on its threads."""
    code = (
        "import sys, hashlib, numpy as np; from retrieval.models.pca import Projection;"
        "draw = np.random.default_rng(0).normal;"
        "made = Projection(np.zeros(2048, np.float32), draw(size=(250, 2048)).astype('f4'));"
        "print(hashlib.sha256(made.apply(draw(size=(4, 2048))).tobytes()).hexdigest());"
        "assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parents[3])
    digests = set()
    for threads in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        digests.add(ran.stdout)
    assert len(digests) == 1


@quick
@given(samples())
def test_unit_divides_by_the_length_and_leaves_nothing_as_it_is(sample):
    rows = np.concatenate([sample.rows * 7, np.zeros((1, sample.rows.shape[1]), np.float32)])
    made = normalize_rows(rows)
    np.testing.assert_allclose(np.linalg.norm(made[:-1], axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(made[:-1], sample.rows, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(made[-1], 0)


# --- on disk ------------------------------------------------------------------------------------


@quick
@given(samples())
def test_it_comes_back_from_its_bytes(sample):
    made = fitted(sample)
    again = Projection.from_bytes(made.to_bytes())
    np.testing.assert_array_equal(again.mean, made.mean)
    np.testing.assert_array_equal(again.axes, made.axes)
    assert again.to_bytes() == made.to_bytes()
    assert again.apply(sample.rows).tobytes() == made.apply(sample.rows).tobytes()


def test_the_same_values_are_the_same_bytes_in_whatever_layout():
    made = moments_of(drawn(30, 8)).fit(3)
    turned = Projection(made.mean.copy(), np.asfortranarray(made.axes))
    assert turned.to_bytes() == made.to_bytes()
    assert turned.apply(drawn(2, 8)).tobytes() == made.apply(drawn(2, 8)).tobytes()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "numbers", "asked", "most"),
    [(300, 512, 900, 299), (300, 20, 21, 20), (20, 20, 20, 19), (2, 5, 2, 1)],
)
def test_more_axes_than_the_sample_has_are_refused(images, numbers, asked, most):
    moments = moments_of(drawn(images, numbers))
    with pytest.raises(UsageError) as caught:
        moments.fit(asked)
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"--pca {asked} is too large: {images} images of dimension {numbers} allow at most {most}"
    )
    assert moments.fit(most).axes.shape == (most, numbers)


@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images_have_no_axes(images):
    moments = moments_of(drawn(2, 8)[:images])
    with pytest.raises(UsageError, match=f"--pca 3 needs at least two .* there are {images}; add"):
        moments.fit(3)


@pytest.mark.parametrize("asked", [0, -1])
def test_no_axes_at_all_are_refused(asked):
    with pytest.raises(UsageError, match=f"--pca {asked} leaves nothing .* write 1 or more"):
        moments_of(drawn(20, 8)).fit(asked)
