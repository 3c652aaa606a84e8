"""Training spread over Ray's workers comes to the centroids of one process, byte for byte."""

import numpy as np
import pytest

from jobs.cluster import Cluster
from jobs.spread import Spread
from retrieval.index import training
from retrieval.index.training import train_index
from retrieval.index.workers import Here
from retrieval.storage import commit
from retrieval.storage.files import open_folder
from tests.jobs.light import large_and_small, late
from tests.retrieval.vectors import make_plan, make_store


@pytest.fixture
def spread(ray_here):
    return Spread(Cluster(None, 2))


def test_answers_come_in_the_order_of_the_items(spread):
    kept = spread.keep(10)
    assert list(spread.map(late, [(n, kept) for n in range(5)])) == [0, 10, 20, 30, 40]


def test_what_is_held_is_read_by_other_tasks(spread):
    held = spread.hold(large_and_small, [(n,) for n in range(4)])
    assert [small for _, small in held] == [0, 1, 2, 3]
    assert list(spread.map(np.sum, [(large,) for large, _ in held])) == [0, 1000, 2000, 3000]


@pytest.mark.parametrize("flat", [10_000, 3])
def test_centroids_do_not_depend_on_who_computes_them(spread, tmp_path, monkeypatch, flat):
    monkeypatch.setattr(training, "_SLICE", 100)
    monkeypatch.setattr(training, "FLAT_LISTS", flat)
    vectors = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float16)
    store = make_store(tmp_path / "store", vectors, chunk_rows=60)
    trained = []
    for name, workers in (("here", Here()), ("spread", spread)):
        folder = open_folder(str(tmp_path / name))
        commit.begin(folder, "index", {})
        plan = make_plan(600, "float16", 12)
        trained.append(train_index(folder, store, plan, "cosine", 0, workers))
    assert trained[0] == trained[1]
