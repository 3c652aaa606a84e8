"""Tests that training with Ray tasks gives the same centroids as in one process, byte for byte."""

import numpy as np
import pytest

from jobs.cluster import tasks
from jobs.cluster.resources import Cluster
from jobs.indexing.training_workers import RayWorkers
from retrieval.index import sampling, train
from retrieval.index.sampling import draw_sample
from retrieval.index.train import train_index
from retrieval.index.workers import InProcessWorkers
from retrieval.storage import transaction
from retrieval.storage.local import open_folder
from tests.jobs.light import large_and_small, late
from tests.retrieval.sample_vectors import make_plan, make_store


@pytest.fixture
def spread(ray_here):
    return RayWorkers(Cluster(None, 2))


def test_answers_come_in_the_order_of_the_items(spread):
    kept = spread.broadcast(10)
    assert list(spread.map(late, [(n, kept) for n in range(5)])) == [0, 10, 20, 30, 40]


def test_what_is_held_is_read_by_other_tasks(spread):
    held = spread.map_stored(large_and_small, [(n,) for n in range(4)])
    assert [small for _, small in held] == [0, 1, 2, 3]
    assert list(spread.map(np.sum, [(large,) for large, _ in held])) == [0, 1000, 2000, 3000]


def test_a_task_may_hold_more_than_a_remote_function_may(ray_here):
    large = bytes(100_000_001)
    found = tasks.run_tasks(Cluster(None, 1), lambda number: len(large) + number, [1])
    assert list(found) == [100_000_002]


@pytest.mark.parametrize("count", [1, 100])
def test_a_sample_does_not_depend_on_who_draws_it(spread, tmp_path, monkeypatch, count):
    monkeypatch.setattr(sampling, "_GROUP", 3)
    vectors = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float16)
    store = make_store(tmp_path / "store", vectors, chunk_rows=60)
    for here, there in zip(
        draw_sample(store, count, 1, "curve"),
        draw_sample(store, count, 1, "curve", spread),
        strict=True,
    ):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("flat", [10_000, 3])
def test_centroids_do_not_depend_on_who_computes_them(spread, tmp_path, monkeypatch, flat):
    monkeypatch.setattr(train, "_SLICE", 100)
    monkeypatch.setattr(train, "FLAT_LISTS", flat)
    vectors = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float16)
    store = make_store(tmp_path / "store", vectors, chunk_rows=60)
    trained = []
    for name, workers in (("here", InProcessWorkers()), ("spread", spread)):
        folder = open_folder(str(tmp_path / name))
        transaction.claim_output(folder, "index", {})
        plan = make_plan(600, "float16", 12)
        trained.append(train_index(folder, store, plan, "cosine", 0, workers))
    assert trained[0] == trained[1]
