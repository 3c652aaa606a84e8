"""Tests of the drift of appended vectors from the centroids of an index.

A new index has no drift, whatever its size; vectors of another distribution have.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.indexing.index import RETRAIN_THRESHOLD
from retrieval.core.records import Spread
from retrieval.index.build_shard import write_shard
from retrieval.index.drift import load_initial_spread, measure_drift, measure_spread, merge_spreads
from retrieval.index.generations import claim_generations
from retrieval.index.plan import Gallery, plan_index
from retrieval.index.runs import ShardBuildContext
from retrieval.index.train import train_index
from retrieval.index.workers import InProcessWorkers
from retrieval.storage import transaction
from retrieval.storage.local import open_folder
from tests.retrieval.sample_vectors import METRICS, make_store, plan_all_shards, quick, seeds


def index_and_measure_drift(root, first, vectors, metric, factory=None, rows_per_shard=None):
    """Index `first`, then `vectors` around the same centroids, and return the drift of `vectors`.

    The result has the keys drift and drift_low, as in the manifest.
    """
    folder = open_folder(str(root / "index"))
    transaction.claim_output(folder, "index", {})
    store = make_store(root / "first", first, chunk_rows=100)
    gallery = Gallery(store.rows, store.dimension, store.dtype, metric)
    plan = plan_index(gallery, 1 << 30, factory=factory, rows_per_shard=rows_per_shard)
    trained = train_index(folder, store, plan, metric, 0, InProcessWorkers())
    spreads = []
    for number, values in enumerate((first, vectors)):
        store = make_store(root / f"store{number}", values, chunk_rows=100)
        shards = open_folder(str(root / f"shards{number}"))
        context = ShardBuildContext(shards, store, metric, trained.faiss, trained.plan.codes)
        work = plan_all_shards(context, claim_generations(shards, store), plan, 1 << 30)
        built = [write_shard(context, planned) for planned in work]
        spread = merge_spreads([(len(shard.shard.rows), shard.spread) for shard in built])
        spreads.append(measure_drift(load_initial_spread(folder, spread), spread, metric))
    assert spreads[0]["drift"] == 1
    assert spreads[0]["drift_low"] <= 1
    return spreads[1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "dimension"), [(1, 1), (2, 2), (40, 2), (300, 2), (700, 64)])
def test_same_distribution_has_no_drift(tmp_path, metric, rows, dimension):
    """A new index has no drift either, whatever its size.

    Regression: of 40 vectors one was sampled and compared with all of them, so that a new index
    was reported as drifted, and so was its replacement built with `--overwrite`.
    """
    generator = np.random.default_rng(0)
    first, appended = generator.normal(size=(2, rows, dimension)).astype(np.float32)
    assert (
        index_and_measure_drift(tmp_path, first, appended, metric)["drift_low"] <= RETRAIN_THRESHOLD
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["same", "nearly the same", "far from the origin", "single far"])
def test_same_degenerate_distribution_has_no_drift(tmp_path, metric, kind):
    """Nearly all vectors lie on their centroids, or a few lie very far from them."""
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(600, 6))
    if kind == "same":
        vectors[:] = vectors[0] * 1e4
    elif kind == "nearly the same":
        vectors = vectors[0] + 1e-7 * vectors
    elif kind == "far from the origin":
        vectors += 1e4
    else:
        vectors[:, 0] += 20
        vectors[300::100] *= -1e6
    stored = vectors.astype(np.float32)
    result = index_and_measure_drift(tmp_path, stored[:300], stored, metric, rows_per_shard=200)
    assert result["drift_low"] <= RETRAIN_THRESHOLD


@pytest.mark.parametrize("metric", METRICS)
def test_other_distribution_has_drift(tmp_path, metric):
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(8, 16))
    first = centres[generator.integers(8, size=600)] + 0.2 * generator.normal(size=(600, 16))
    appended = np.concatenate([first, generator.normal(size=(600, 16)) * 1.5])
    vectors = first.astype(np.float32), appended.astype(np.float32)
    result = index_and_measure_drift(
        tmp_path, *vectors, metric, factory="IVF8,Flat", rows_per_shard=500
    )
    assert RETRAIN_THRESHOLD < result["drift_low"] < result["drift"]


def test_first_spread_of_zero_has_the_maximum_drift():
    first, current = Spread(0.0, 0.0, 500), measure_spread([np.full(500, 0.3)])
    for metric in METRICS:
        assert measure_drift(first, first, metric) == {"drift": 1, "drift_low": 1}
        assert measure_drift(first, current, metric) == {"drift": 1e6, "drift_low": 1e6}
    empty = merge_spreads([(0, measure_spread([])), (0, measure_spread([]))])
    assert measure_drift(empty, empty, "l2") == {"drift": 1, "drift_low": 0}


@quick
@given(seeds, st.sampled_from(["normal", "lognormal", "pareto", "rare"]), st.integers(1, 4))
def test_samples_of_one_population_rarely_have_significant_drift(seed, kind, shards):
    """The smaller sample may miss all of the few values that are very large."""
    generator = np.random.default_rng(seed)

    def draw(count):
        if kind == "rare":
            return np.where(generator.random(count) < 0.01, 1e6, generator.random(count))
        if kind == "normal":
            return np.abs(generator.normal(size=count))
        return generator.lognormal(0, 2, count) if kind == "lognormal" else (
            generator.pareto(1.2, count)
        )  # fmt: skip

    first = measure_spread([draw(generator.integers(1, 300))])
    parts = [(1000, measure_spread([draw(generator.integers(1, 1000))])) for _ in range(shards)]
    assert measure_drift(first, merge_spreads(parts), "l2")["drift_low"] <= RETRAIN_THRESHOLD


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.5, 3.0])
def test_drift_of_large_samples_equals_the_ratio_of_means(factor):
    generator = np.random.default_rng(3)
    first = measure_spread([generator.random(20_000)])
    shards = [(rows, measure_spread([factor * generator.random(20_000)])) for rows in (10, 30)]
    result = measure_drift(first, merge_spreads(shards), "cosine")
    assert result["drift"] == pytest.approx(factor, rel=0.02)
    assert factor * 0.95 < result["drift_low"] < result["drift"]
