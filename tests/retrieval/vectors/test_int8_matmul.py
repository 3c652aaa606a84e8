"""Whole numbers propose where they may: exact sums, losses that were measured, a finer way out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.vectors import int8_matmul, matmul
from retrieval.vectors.int8_matmul import Int8, multiplies, search_product, suited
from retrieval.vectors.matmul import SINGLE
from retrieval.vectors.scoring import block
from tests.retrieval.sample_vectors import METRICS, cases, metrics, quick, seeds

needed = pytest.mark.skipif(not multiplies(), reason="no such product is there")


@needed
@quick
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 600), seeds)
def test_sums_are_exact_whatever_the_shape(count, others, dimension, seed):
    generator = np.random.default_rng(seed)
    vectors = [
        generator.choice([-1.0, 1.0, 0.5], (n, dimension)).astype(np.float32)
        for n in (count, others)
    ]
    product = Int8()
    queries, rows = (product.ready(block(one, "ip")) for one in vectors)
    sums = product.keys(queries, rows).sums
    np.testing.assert_array_equal(
        sums, queries.matrix.astype(np.int64) @ rows.matrix.T.astype(np.int64)
    )


@quick
@given(cases(), metrics)
def test_what_a_vector_loses_is_not_more_than_is_said(case, metric):
    vectors = block(case.rows, metric)
    ready = Int8().ready(vectors)
    exact = case.rows.astype(np.float64)
    if metric == "cosine":
        exact /= np.where(vectors.norms > 0, vectors.norms, 1)[:, None]
    stands = ready.matrix[:, : exact.shape[1]] * ready.steps.astype(np.float64)[:, None]
    assert (np.linalg.norm(exact - stands, axis=1) <= ready.lost).all()


@needed
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_single_large_numbers_go_another_way(metric):
    numbers = np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    even, uneven = block(numbers, metric), block(numbers**3, metric)
    product = Int8()
    assert suited(product, product.ready(even)) is product
    assert suited(product, product.ready(uneven)).name in ("bf16", "fp32")
    assert suited(SINGLE, SINGLE.ready(uneven)) is SINGLE


def test_whole_numbers_are_for_rows_that_many_queries_meet(monkeypatch):
    monkeypatch.setattr(int8_matmul, "multiplies", lambda: True)
    monkeypatch.setattr(matmul, "has_bf16", lambda: False)
    assert search_product("cpu", 600, 1_000_000, 512, 1000).name == "int8"
    assert search_product("cpu", 10, 10**8, 512, 1000) is SINGLE  # rounding rows takes longer
    assert search_product("cpu", 600, 1_000_000, 512, 10**6) is SINGLE  # short lists
    assert search_product("cpu", 600, 10_000, 16, 10) is SINGLE  # little work
    assert search_product("cpu", 600, 10_000, 512, 10).name == "int8"
    monkeypatch.delitem(sys.modules, "torch")  # so its import would count
    assert search_product("cpu", 600, 10_000, 512, 10) is SINGLE
    monkeypatch.setattr(int8_matmul, "multiplies", lambda: False)
    assert search_product("cpu", 600, 1_000_000, 512, 1000) is SINGLE


@pytest.mark.parametrize(
    ("flags", "forced", "expected"),
    [("avx512_vnni fma", "", True), ("avx512_vnni", "AVX512_CORE", False), ("avx2", "", False),
     ("avx512_vnni", "avx512_core_vnni", True)],
)  # fmt: skip
def test_a_processor_is_asked_whether_it_saturates(monkeypatch, flags, forced, expected):
    monkeypatch.setattr(int8_matmul, "cpu_flags", lambda: set(flags.split()))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", forced)
    monkeypatch.setattr(int8_matmul, "_exact", lambda: True)
    assert multiplies.__wrapped__() is expected
    monkeypatch.setattr(int8_matmul, "_exact", lambda: False)
    assert not multiplies.__wrapped__()
