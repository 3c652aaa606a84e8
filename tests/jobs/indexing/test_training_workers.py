"""Test that training with Ray tasks gives the same centroids as in one process."""

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
from tests.jobs.cluster.worker_functions import array_and_number, delay_first_item
from tests.retrieval.sample_vectors import make_plan, make_store


@pytest.fixture
def ray_workers(local_ray):
    return RayWorkers(Cluster(None, 2))


def test_map_returns_results_in_order(ray_workers):
    reference = ray_workers.broadcast(10)
    assert list(ray_workers.map(delay_first_item, [(n, reference) for n in range(5)])) == [
        0,
        10,
        20,
        30,
        40,
    ]


def test_stored_results_are_inputs_of_other_tasks(ray_workers):
    stored = ray_workers.map_stored(array_and_number, [(n,) for n in range(4)])
    assert [small for _, small in stored] == [0, 1, 2, 3]
    assert list(ray_workers.map(np.sum, [(large,) for large, _ in stored])) == [0, 1000, 2000, 3000]


def test_task_captures_more_than_the_remote_function_limit(local_ray):
    large = bytes(100_000_001)
    results = tasks.run_tasks(Cluster(None, 1), lambda number: len(large) + number, [1])
    assert list(results) == [100_000_002]


@pytest.mark.parametrize("count", [1, 100])
def test_sample_is_independent_of_workers(ray_workers, tmp_path, monkeypatch, count):
    monkeypatch.setattr(sampling, "_GROUP", 3)
    vectors = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float16)
    store = make_store(tmp_path / "store", vectors, chunk_rows=60)
    for local_array, remote_array in zip(
        draw_sample(store, count, 1, "curve"),
        draw_sample(store, count, 1, "curve", ray_workers),
        strict=True,
    ):
        np.testing.assert_array_equal(local_array, remote_array)


@pytest.mark.parametrize("flat_lists", [10_000, 3])
def test_centroids_are_independent_of_workers(ray_workers, tmp_path, monkeypatch, flat_lists):
    monkeypatch.setattr(train, "_SLICE", 100)
    monkeypatch.setattr(train, "FLAT_LISTS", flat_lists)
    vectors = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float16)
    store = make_store(tmp_path / "store", vectors, chunk_rows=60)
    trained = []
    for name, workers in (("here", InProcessWorkers()), ("spread", ray_workers)):
        folder = open_folder(str(tmp_path / name))
        transaction.claim_output(folder, "index", {})
        plan = make_plan(600, "float16", 12)
        trained.append(train_index(folder, store, plan, "cosine", 0, workers))
    assert trained[0] == trained[1]
