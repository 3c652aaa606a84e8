"""Tests exact search over a store against a NumPy reference."""

from __future__ import annotations

import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.store.brute_force import exact_top_k
from retrieval.store.reader import embedding_column
from retrieval.vectors.scoring import block
from tests.retrieval.sample_vectors import (
    METRICS,
    brute_force,
    cases,
    exact_keys,
    make_store,
    metrics,
    quick,
    seeds,
    slow,
)


@slow
@given(cases(max_rows=20), metrics, st.integers(1, 12), st.sampled_from([3, 7, 50]), seeds)
def test_exact_search_of_a_store_is_brute_force_by_row(case, metric, k, step, seed):
    count = len(case.rows)
    rows = np.sort(np.random.default_rng(seed).permutation(2 * count)[:count])
    keys, places = brute_force(exact_keys(case.queries, case.rows, metric), rows, k)
    with tempfile.TemporaryDirectory() as root:
        store = make_store(root, case.rows, rows=rows, images=2 * count, chunk_rows=step)
        best = exact_top_k(block(case.queries, metric), store.blocks(), k, metric)
    np.testing.assert_array_equal(best.keys, keys)
    np.testing.assert_array_equal(best.positions, np.where(places < 0, -1, rows[places]))


@quick
@given(cases(), metrics, st.integers(1, 12), st.integers(1, 9), seeds)
def test_tables_may_come_in_any_order_and_be_empty(case, metric, k, cuts, seed):
    shuffled = np.random.default_rng(seed).permutation(len(case.rows))
    table = pa.table({"row": np.arange(len(case.rows)), "embedding": embedding_column(case.rows)})
    tables = [table.take(part) for part in np.array_split(shuffled, cuts)]
    best = exact_top_k(block(case.queries, metric), [*tables, table.slice(0, 0)], k, metric)
    keys, places = brute_force(
        exact_keys(case.queries, case.rows, metric), np.arange(len(case.rows)), k
    )
    np.testing.assert_array_equal(best.keys, keys)
    np.testing.assert_array_equal(best.positions, places)


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_store_answers_nothing(metric):
    queries = block(np.ones((2, 3), np.float32), metric)
    assert exact_top_k(queries, [], 4, metric).positions.tolist() == [[-1] * 4] * 2
