"""Tests of exact search over a store, against a NumPy reference."""

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
def test_exact_search_of_store_equals_brute_force(case, metric, k, chunk_rows, seed):
    count = len(case.rows)
    rows = np.sort(np.random.default_rng(seed).permutation(2 * count)[:count])
    expected_keys, positions = brute_force(exact_keys(case.queries, case.rows, metric), rows, k)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(folder, case.rows, rows=rows, images=2 * count, chunk_rows=chunk_rows)
        result = exact_top_k(block(case.queries, metric), store.blocks(), k, metric)
    np.testing.assert_array_equal(result.keys, expected_keys)
    np.testing.assert_array_equal(result.positions, np.where(positions < 0, -1, rows[positions]))


@quick
@given(cases(), metrics, st.integers(1, 12), st.integers(1, 9), seeds)
def test_exact_search_accepts_tables_in_any_order_and_empty_tables(
    case, metric, k, table_count, seed
):
    shuffled = np.random.default_rng(seed).permutation(len(case.rows))
    table = pa.table({"row": np.arange(len(case.rows)), "embedding": embedding_column(case.rows)})
    tables = [table.take(part) for part in np.array_split(shuffled, table_count)]
    result = exact_top_k(block(case.queries, metric), [*tables, table.slice(0, 0)], k, metric)
    expected_keys, positions = brute_force(
        exact_keys(case.queries, case.rows, metric), np.arange(len(case.rows)), k
    )
    np.testing.assert_array_equal(result.keys, expected_keys)
    np.testing.assert_array_equal(result.positions, positions)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_without_tables_returns_no_matches(metric):
    queries = block(np.ones((2, 3), np.float32), metric)
    assert exact_top_k(queries, [], 4, metric).positions.tolist() == [[-1] * 4] * 2
