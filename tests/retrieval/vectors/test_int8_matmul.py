"""Tests of int8 products: exact sums, rounding losses, and the choice of more precise products."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.vectors import int8_matmul, matmul
from retrieval.vectors.int8_matmul import (
    Int8Product,
    choose_search_product,
    has_exact_int8,
    suitable_product,
)
from retrieval.vectors.matmul import FLOAT32_PRODUCT
from retrieval.vectors.scoring import block
from tests.retrieval.sample_vectors import METRICS, cases, metrics, quick, seeds

needs_int8 = pytest.mark.skipif(
    not has_exact_int8(), reason="no exact int8 product on this machine"
)


@needs_int8
@quick
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 600), seeds)
def test_sums_are_exact_for_any_shape(query_count, row_count, dimension, seed):
    generator = np.random.default_rng(seed)
    vectors = [
        generator.choice([-1.0, 1.0, 0.5], (rows, dimension)).astype(np.float32)
        for rows in (query_count, row_count)
    ]
    product = Int8Product()
    queries, rows = (product.prepare(block(values, "ip")) for values in vectors)
    sums = product.keys(queries, rows).sums
    np.testing.assert_array_equal(
        sums, queries.matrix.astype(np.int64) @ rows.matrix.T.astype(np.int64)
    )


@quick
@given(cases(), metrics)
def test_rounding_loss_is_an_upper_bound(case, metric):
    vectors = block(case.rows, metric)
    prepared = Int8Product().prepare(vectors)
    exact = case.rows.astype(np.float64)
    if metric == "cosine":
        exact /= np.where(vectors.norms > 0, vectors.norms, 1)[:, None]
    dequantized = prepared.matrix[:, : exact.shape[1]] * prepared.scales.astype(np.float64)[:, None]
    assert (np.linalg.norm(exact - dequantized, axis=1) <= prepared.rounding_loss).all()


@needs_int8
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_with_few_large_values_use_a_more_precise_product(metric):
    values = np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    even, uneven = block(values, metric), block(values**3, metric)
    product = Int8Product()
    assert suitable_product(product, product.prepare(even)) is product
    assert suitable_product(product, product.prepare(uneven)).name in ("bf16", "fp32")
    assert suitable_product(FLOAT32_PRODUCT, FLOAT32_PRODUCT.prepare(uneven)) is FLOAT32_PRODUCT


def test_int8_is_chosen_for_much_work_on_long_lists(monkeypatch):
    monkeypatch.setattr(int8_matmul, "has_exact_int8", lambda: True)
    monkeypatch.setattr(matmul, "has_bf16", lambda: False)
    assert choose_search_product("cpu", 600, 1_000_000, 512, 1000).name == "int8"
    # few queries per row: rounding the rows takes longer
    assert choose_search_product("cpu", 10, 10**8, 512, 1000) is FLOAT32_PRODUCT
    # short lists
    assert choose_search_product("cpu", 600, 1_000_000, 512, 10**6) is FLOAT32_PRODUCT
    # little work
    assert choose_search_product("cpu", 600, 10_000, 16, 10) is FLOAT32_PRODUCT
    assert choose_search_product("cpu", 600, 10_000, 512, 10).name == "int8"
    monkeypatch.delitem(sys.modules, "torch")  # so that its import counts
    assert choose_search_product("cpu", 600, 10_000, 512, 10) is FLOAT32_PRODUCT
    monkeypatch.setattr(int8_matmul, "has_exact_int8", lambda: False)
    assert choose_search_product("cpu", 600, 1_000_000, 512, 1000) is FLOAT32_PRODUCT


@pytest.mark.parametrize(
    ("flags", "forced", "expected"),
    [("avx512_vnni fma", "", True), ("avx512_vnni", "AVX512_CORE", False), ("avx2", "", False),
     ("avx512_vnni", "avx512_core_vnni", True)],
)  # fmt: skip
def test_int8_is_used_only_without_saturation(monkeypatch, flags, forced, expected):
    monkeypatch.setattr(int8_matmul, "read_cpu_flags", lambda: set(flags.split()))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", forced)
    monkeypatch.setattr(int8_matmul, "_sums_are_exact", lambda: True)
    assert has_exact_int8.__wrapped__() is expected
    monkeypatch.setattr(int8_matmul, "_sums_are_exact", lambda: False)
    assert not has_exact_int8.__wrapped__()
