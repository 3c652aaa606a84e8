"""How often 95 % intervals hold the truth, by simulation: ours, and Student's t beside it.

`tests/generated.py` writes the table into docs/measures.md, `test_intervals.py` holds it to bounds.
"""

from functools import cache

import numpy as np

from retrieval.core.confidence import difference_intervals, score_intervals

SIZES = (15, 50, 200)
RUNS = 4000
_T = {15: 2.1448, 50: 2.0096, 200: 1.9720}  # Student's t with n - 1 degrees of freedom, 97.5 %


def _proportion(share):
    return lambda generator, shape: (generator.random(shape) < share).astype(float)


def _early(generator, shape):
    """Average precision of an easy gallery: mostly close to 1, one query of ten anywhere."""
    drawn = generator.random(shape)
    return np.where(drawn < 0.9, 1 - 0.05 * generator.random(shape), generator.random(shape))


def _failing(generator, shape):
    return np.where(generator.random(shape) < 0.05, 0.0, 0.95 + 0.05 * generator.random(shape))


def _normal(generator, shape):
    return np.clip(0.7 + 0.1 * generator.standard_normal(shape), 0, 1)


def _paired(before, change):
    """Draw one ranking's values, and those of another that differs from it."""

    def draw(generator, shape):
        first = before(generator, shape)
        return np.stack([np.clip(first + change(generator, first), 0, 1), first])

    return draw


def _won(generator, first):
    return (generator.random(first.shape) < 0.1).astype(float)


def _swapped(generator, first):
    return np.where(generator.random(first.shape) < 0.1, 1 - 2 * first, 0.0)


def _lost(generator, first):
    noise = 0.01 * generator.standard_normal(first.shape)
    return np.where(generator.random(first.shape) < 0.04, -0.5, noise)


def _slightly(generator, first):
    return 0.02 + 0.05 * generator.standard_normal(first.shape)


def _broad(generator, shape):
    return generator.beta(2, 2, shape)


CASES = {
    "0 or 1, half of them 1": (_proportion(0.5), score_intervals),
    "0 or 1, 90 % of them 1": (_proportion(0.9), score_intervals),
    "0 or 1, 95 % of them 1": (_proportion(0.95), score_intervals),
    "0 or 1, 98 % of them 1": (_proportion(0.98), score_intervals),
    "AP: 90 % above 0.95, the others anywhere": (_early, score_intervals),
    "AP: anywhere, most near 0 or 1 (a beta distribution)": (
        lambda generator, shape: generator.beta(0.8, 0.5, shape), score_intervals,
    ),
    "AP: 95 % above 0.95, the others 0": (_failing, score_intervals),
    "AP: normal about 0.7, deviation 0.1": (_normal, score_intervals),
    "paired, 0 or 1: of the wrong 10 % become right": (
        _paired(_proportion(0.6), _won), difference_intervals,
    ),
    "paired, 0 or 1: 10 % change sides": (
        _paired(_proportion(0.6), _swapped), difference_intervals,
    ),
    "paired AP: 4 % lose 0.5, the others hardly change": (
        _paired(_broad, _lost), difference_intervals,
    ),
    "paired AP: changes normal about 0.02, deviation 0.05": (
        _paired(_broad, _slightly), difference_intervals,
    ),
}  # fmt: skip
"""By what one query's value is: how values (or pairs of them) are drawn, and their interval."""


def student(values):
    """Return the ends of Student's t intervals of the means of the columns of (n, m) values."""
    half = _T[len(values)] * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


@cache
def covered(case, size):
    """Return the share of intervals that hold the true mean: of ours, and of Student's."""
    draw, intervals = CASES[case]
    pairs = intervals is difference_intervals
    truth = draw(np.random.default_rng(1), 400_000)
    mean = float(truth[0].mean() - truth[1].mean() if pairs else truth.mean())
    mean = round(mean, 2) if "0 or 1" in case else mean
    values = draw(np.random.default_rng(0), (size, RUNS))
    shares = []
    for low, high in (
        intervals(*values) if pairs else intervals(values),
        student(values[0] - values[1] if pairs else values),
    ):
        shares.append(float(np.mean((low <= mean + 1e-12) & (mean <= high + 1e-12))))
    return shares
