"""Tests that compiled collection of pairs drops only pairs that cannot be among the k best."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.index.kmeans import assignment_metric
from retrieval.search.candidates import top_candidates
from retrieval.search.ivf_search import QueryBatch, ShardSearcher
from retrieval.vectors import pair_kernels
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import top_k
from tests.retrieval.index.training_cases import train_centroids
from tests.retrieval.sample_vectors import METRICS, brute_force, exact_keys, image_ids, quick, seeds
from tests.retrieval.search.test_ivf_search import make_shard

QUERIES = 5


class Buffers:
    """Buffers of `QUERIES` queries, as `PairCollector` keeps them."""

    def __init__(self, capacity: int, thresholds: np.ndarray) -> None:
        self.thresholds = thresholds.copy()
        self.lows = np.empty((QUERIES, capacity), np.float32)
        self.highs = np.empty((QUERIES, capacity), np.float32)
        self.numbers = np.empty((QUERIES, capacity), np.int32)
        self.counts = np.zeros(QUERIES, np.int64)
        self.scratch = np.empty(max(capacity, 128), np.float32)

    def arguments(self) -> tuple[np.ndarray, ...]:
        return (
            self.thresholds, self.lows, self.highs, self.numbers, self.counts, self.scratch,
        )  # fmt: skip

    def pending(self, q: int) -> list[int]:
        return self.numbers[q, : self.counts[q]].tolist()


@quick
@given(
    seeds, st.integers(1, 70), st.integers(1, 12), st.sampled_from([1, 7, 20, 64]), st.booleans()
)
def test_each_pair_that_may_be_among_the_k_best_is_kept_once(seed, count, k, capacity, single):
    """Lists are added one after the other; true keys lie anywhere within the errors."""
    generator = np.random.default_rng(seed)
    errors = generator.choice([0.0, 1e-7, 0.01, 0.3], (QUERIES, 1)) * [[1.0, 0.5, 0.1]]
    known = np.where(generator.random(QUERIES) < 0.3, generator.normal(size=QUERIES), -np.inf)
    buffers, lists = Buffers(capacity, known), 4
    true = generator.normal(size=(QUERIES, lists * count)).round(generator.choice([0, 1, 9]))
    lengths = generator.choice([0.0, 1.0, 1.0, 50.0], lists * count)
    slack = errors[:, :1] + errors[:, 1:2] * lengths + errors[:, 2:] * lengths**2
    cheap = true + slack * generator.uniform(-1, 1, true.shape)
    cheap = np.clip(cheap.astype(np.float32), *_inside(true - slack, true + slack))
    excluded = generator.random(true.shape) < generator.choice([0, 0.3])
    skipped = generator.random((lists, QUERIES)) < 0.2
    starts, excluded_rows = np.append(0, excluded.sum(1).cumsum()), np.nonzero(excluded)[1].copy()
    absent = np.zeros(true.shape, np.bool_)  # pairs that were reported instead of added
    for number in range(lists):
        part = slice(number * count, (number + 1) * count)
        absent[skipped[number], part] = True
        searching = np.flatnonzero(~skipped[number])
        if single:
            q, x = (axis.ravel() for axis in np.indices((len(searching), count)))
            q = searching[q]
            rejected = np.empty(len(q), np.bool_)
            reported = pair_kernels.add_pairs(
                q, x + part.start, cheap[q, x + part.start].astype(np.float64),
                slack[q, x + part.start], starts, excluded_rows, k,
                *buffers.arguments(), rejected,
            )  # fmt: skip
            absent[q[rejected], x[rejected] + part.start] = True
        else:
            padded = np.full((QUERIES, count + -count % 16), np.nan, np.float32)
            padded[:, :count] = cheap[:, part]
            rejected = np.empty(len(searching), np.bool_)
            reported = pair_kernels.collect(
                padded[searching].ravel(), searching, np.array([[len(searching), 0, count]]),
                part.start, np.empty(0, np.float32), lengths[part], errors, starts, excluded_rows,
                k, *buffers.arguments(), rejected,
            )  # fmt: skip
            absent[searching[rejected], part] = True
        assert reported == rejected.sum()
    assert pair_kernels.raise_thresholds(k, *buffers.arguments()) == buffers.counts.sum()
    eligible = ~excluded
    for q in range(QUERIES):
        keys = np.sort(true[q, eligible[q]])
        kth = keys[-k] if len(keys) >= k else -np.inf
        assert buffers.thresholds[q] <= max(kth, known[q])
        pending = buffers.pending(q)
        assert len(pending) == len(set(pending))
        assert not (excluded | absent)[q, pending].any()
        needed = np.flatnonzero(eligible[q] & ~absent[q] & (true[q] >= max(kth, known[q])))
        assert set(needed.tolist()) <= set(pending)


def _inside(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of float32 numbers within [low, high], or the closest ones."""
    least, most = low.astype(np.float32), high.astype(np.float32)
    least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
    most = np.where(most > high, np.nextafter(most, np.float32(-np.inf)), most)
    return np.minimum(least, most), most


@quick
@given(seeds, st.integers(1, 300), st.booleans())
def test_kth_largest_equals_that_of_a_sort(seed, size, few):
    """All other pairs are dropped, since the bounds are exact."""
    generator = np.random.default_rng(seed)
    k = int(generator.integers(1, size + 1))
    values = generator.normal(size=size)
    values = (values.round() if few else values).astype(np.float32)
    buffers = Buffers(size, np.full(QUERIES, -np.inf))
    buffers.lows[0] = buffers.highs[0] = values
    buffers.numbers[0], buffers.counts[0] = np.arange(size), size
    pair_kernels.raise_thresholds(k, *buffers.arguments())
    kth = np.sort(values)[-k]
    assert buffers.thresholds[0] == kth
    assert buffers.pending(0) == np.flatnonzero(values >= kth).tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("k", [3, 10, 150])
@pytest.mark.parametrize("undecided", [1 << 22, 600])
def test_many_lists_equal_brute_force(metric, dtype, k, undecided):
    """Rows hold copies, near copies, outliers and subnormal numbers; some are filtered out.

    k = 150 is more than a list holds. A least key, known keys and excluded pairs apply as well.
    """
    generator = np.random.default_rng(k)
    centres = generator.normal(size=(20, 24))
    rows = centres[generator.integers(0, 20, 900)] + 0.3 * generator.normal(size=(900, 24))
    rows[100:220] = rows[100]  # more copies than a buffer holds
    rows[220:300] = rows[100] * (1 + 1e-7 * generator.normal(size=(80, 24)))
    rows[300:303] *= 1e4 if dtype == "float16" else 1e17
    rows[303:306] *= 1e-7 if dtype == "float16" else 1e-42
    rows, limit = rows.astype(np.float64), float(np.finfo(dtype).max)
    rows = np.clip(rows, -limit, limit).astype(dtype)
    queries = np.concatenate([rows[95:105], rows[300:306], rows[500:540]])
    allowed = generator.random(900) < 0.9
    excluded = generator.random((len(queries), 900)) < 0.05
    centroids = train_centroids(rows, 12, metric, seed=0)
    order = generator.permutation(900)  # of the image_ids
    ids = [image_ids(900)[position] for position in order]
    shard = make_shard(rows, np.arange(900), ids, centroids, metric)
    shard = dataclasses.replace(shard, allowed=allowed)
    keys = np.where(excluded | ~allowed, -np.inf, exact_keys(queries, rows, metric))
    least = float(np.quantile(keys[keys > -np.inf], 0.6))
    for min_key in (-np.inf, least):
        expected, result = brute_force(np.where(keys >= min_key, keys, -np.inf), order, k)
        batch = QueryBatch(
            block(queries, metric), np.arange(len(queries)), None, np.nonzero(excluded), min_key
        )
        for nprobe in (None, 12):
            probes = None
            if nprobe:
                measure = assignment_metric(metric)
                probes = top_k(block(queries, measure), block(centroids, measure), nprobe).positions
            table = ShardSearcher(shard, max_pending=undecided).search(batch, probes, k)
            merged, ranks = top_candidates([table], k)
            query, rank = np.nonzero(result >= 0)
            assert merged["query"].to_pylist() == query.tolist()
            assert merged["row"].to_pylist() == result[query, rank].tolist()
            assert merged["key"].to_pylist() == expected[query, rank].tolist()  # to the last bit
            assert ranks.tolist() == rank.tolist()
