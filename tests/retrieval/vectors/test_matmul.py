"""Tests that products stay within their error bounds on every device and decide nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.vectors import matmul
from retrieval.vectors.int8_matmul import Int8Keys, Int8Product, has_exact_int8
from retrieval.vectors.matmul import (
    FLOAT32_PRODUCT,
    FLOAT32_ROUNDOFF,
    HalfPrecisionProduct,
    PreparedVectors,
    Product,
    choose_product,
    compute_pair_keys,
    round_down_to_float32,
)
from retrieval.vectors.scoring import VectorBlock, block, float16_to_float32
from retrieval.vectors.topk import nearest_centroids, top_k, top_k_positions
from tests.retrieval.sample_vectors import METRICS, Case, cases, exact_keys, metrics, quick

KINDS = ["fp32", "bf16", "int8", "cuda"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str) -> Product:
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU is there")
    if kind == "int8":
        if not has_exact_int8():
            pytest.skip("no such product is there")
        return Int8Product()
    return (
        FLOAT32_PRODUCT
        if kind == "fp32"
        else HalfPrecisionProduct("cuda" if kind == "cuda" else "cpu")
    )


def plain_keys(
    product: Product, queries: PreparedVectors, rows: PreparedVectors
) -> NDArray[np.float32]:
    keys = product.keys(queries, rows)
    return keys.keys() if isinstance(keys, Int8Keys) else np.asarray(torch.as_tensor(keys).cpu())


def within_safe(case: Case) -> bool:
    lengths = [np.linalg.norm(v.astype(np.float64), axis=1) for v in (case.queries, case.rows)]
    return max(one.max() for one in lengths) < matmul.SAFE_LENGTH / 2


def worst(product: Product, case: Case, metric: Metric) -> float:
    """Give the largest share of the bound that an error takes up."""
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    left, right = product.prepare(queries), product.prepare(rows)
    keys = plain_keys(product, left, right).astype(np.float64)
    exact = exact_keys(case.queries, case.rows, metric)
    if metric == "l2":
        exact = exact + (queries.norms**2)[:, None]
    slack = product.key_error(left, right)
    return float((np.abs(keys - exact) / slack[:, None]).max())


@every_kind
def test_keys_are_within_their_bound(kind):
    product = made(kind)

    @quick
    @given(cases().filter(within_safe), metrics)
    def check(case, metric):
        share = worst(product, case, metric)
        target(share)
        assert share <= 1

    check()


@every_kind
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1, 1e15])
def test_the_bound_holds_where_every_number_is_rounded_the_same_way(kind, metric, scale):
    """Numbers just above the middle of two of bfloat16, and of float16, so that errors add up."""
    for share in (2.0**-9, 2.0**-12):
        numbers = np.full((1, 512), 1 + share * 1.01) * scale
        signs = np.where(np.arange(512) % 2, 1, -1)
        rows = np.concatenate([numbers, numbers * signs]).astype(np.float32)
        assert worst(made(kind), Case(rows, rows), metric) <= 1


@every_kind
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (100, 33), (33, 600)])
def test_pairs_reaching_a_threshold_are_returned(kind, metric, shape):
    product, generator = made(kind), np.random.default_rng(0)
    queries, rows = (
        block(generator.normal(size=(count, 24)).astype(np.float16), metric) for count in shape
    )
    left, right = product.prepare(queries), product.prepare(rows)
    keys, plain = product.keys(left, right), plain_keys(product, left, right)
    assert plain.shape == shape
    assert plain.dtype == np.float32
    k = min(5, shape[1])
    kth = product.kth_key(keys, k)
    np.testing.assert_array_equal(kth, np.sort(plain, axis=1)[:, -k])
    q, x, values = product.pairs_reaching(keys, kth)
    np.testing.assert_array_equal(values, plain[q, x])
    np.testing.assert_array_equal(np.stack([q, x]), np.nonzero(plain >= kth[:, None]))


@every_kind
@pytest.mark.parametrize("which", [[0], [3, 4, 5], [1, 4, 9, 30], list(range(33))])
def test_some_of_the_queries_have_the_keys_that_they_have_among_all(kind, which):
    product, generator = made(kind), np.random.default_rng(0)
    queries, rows = (
        product.prepare(block(generator.normal(size=(count, 24)).astype(np.float16), "ip"))
        for count in (33, 50)
    )
    whole = plain_keys(product, queries, rows)
    some = product.select(queries, np.array(which))
    np.testing.assert_array_equal(some.norms, queries.norms[which])
    found = plain_keys(product, some, rows)
    np.testing.assert_allclose(found, whole[which], rtol=1e-2, atol=1e-2)


@every_kind
@quick
@given(case=cases().filter(within_safe), metric=metrics)
def test_nearest_centroid_equals_float64(kind, case, metric):
    rows, queries = block(case.rows, metric), block(case.queries, metric)
    found = nearest_centroids(queries, rows, made(kind))
    np.testing.assert_array_equal(found, top_k(queries, rows, 1).positions[:, 0])


@quick
@given(cases(), metrics, st.integers(1, 12))
def test_top_k_positions_equal_float64(case, metric, k):
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    k = min(k, len(rows))
    found = top_k_positions(queries, rows, k)
    expected = top_k(queries, rows, k).positions
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_keys_of_single_pairs_are_those_of_a_product_within_the_bound(metric):
    generator = np.random.default_rng(0)
    queries, rows = (
        block(generator.normal(size=(40, 65)).astype(np.float32), metric) for _ in range(2)
    )
    q, x = np.divmod(generator.permutation(1600)[:300], 40)
    left, right = FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows)
    keys = FLOAT32_PRODUCT.keys(left, right)[q, x]
    slack = FLOAT32_PRODUCT.key_error(left, right)[q]
    assert (np.abs(compute_pair_keys(left, right, q, x) - keys) <= 2 * slack).all()
    assert len(compute_pair_keys(left, right, q[:0], x[:0])) == 0


def test_a_floor_lies_below_what_it_was_made_of():
    values = np.array([1.0, 1 + 2.0**-40, -1 - 2.0**-40, 1e-46, -np.inf, 1e300])
    assert (round_down_to_float32(values).astype(np.float64) < values)[:4].all()
    assert round_down_to_float32(values)[4] == -np.inf
    assert round_down_to_float32(values)[5] > 3e38


def test_half_precision_is_for_much_work_on_processors_that_have_it(monkeypatch):
    monkeypatch.setattr(matmul, "has_bf16", lambda: True)
    assert choose_product("cpu", 1e9) is FLOAT32_PRODUCT
    assert choose_product("cpu", 1e13).name == "bf16"
    monkeypatch.setattr(matmul, "has_bf16", lambda: False)
    assert choose_product("cpu", 1e13) is FLOAT32_PRODUCT


@pytest.mark.parametrize(
    ("flags", "forced", "expected"),
    [("avx2 avx512_bf16 fma", "", True), ("amx_bf16", "", True), ("avx2 avx512f", "", False),
     ("avx512_bf16", "AVX2", False)],
)  # fmt: skip
def test_a_processor_says_whether_it_has_bf16(tmp_path, monkeypatch, flags, forced, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} x\nbugs\t: no\n")
    monkeypatch.setattr(matmul, "_CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", forced)
    assert matmul.has_bf16.__wrapped__() is expected
    monkeypatch.setattr(matmul, "_CPUINFO", str(tmp_path / "none"))
    assert not matmul.has_bf16.__wrapped__()


def test_every_float16_becomes_the_float32_of_the_same_number():
    """NaN and infinity too, which are refused later."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    expected = every.astype(np.float32)
    np.testing.assert_array_equal(
        float16_to_float32(every).view(np.uint32), expected.view(np.uint32)
    )


@pytest.mark.parametrize("length", [1e-6, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_brought_to_unit_length_whatever_is_known_of_them(length, dtype):
    values = np.random.default_rng(0).normal(size=(50, 12))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True) * length).astype(dtype)
    known = block(values, "cosine")
    fresh = VectorBlock("cosine", values, known.squared_norms)
    for one in (known, fresh):
        expected = values.astype(np.float64) / np.where(known.norms > 0, known.norms, 1)[:, None]
        np.testing.assert_allclose(one.matmul_input, expected, rtol=2.0**-22, atol=0)


# --- tensor cores -------------------------------------------------------------------------------


class TensorCores(HalfPrecisionProduct):
    """A GPU whose sums are cut off, as a model of tensor cores has it, on this processor.

    Of both addends what lies below 2^-22 of the larger one's leading bit is lost.
    """

    def __init__(self) -> None:
        self._torch, self._device, self._gpu, self.name = torch, "cpu", True, "cuda"

    def keys(self, queries: PreparedVectors, rows: PreparedVectors) -> NDArray[np.float32]:
        left, right = (ready.matrix.double().numpy() for ready in (queries, rows))
        total = np.zeros((len(left), len(right)))
        for column, other in zip(left.T, right.T, strict=True):
            addend = column[:, None] * other
            _, exponent = np.frexp(np.maximum(np.abs(total), np.abs(addend)))
            unit = np.ldexp(1.0, exponent - 23)
            total = (np.trunc(total / unit) + np.trunc(addend / unit)) * unit
        keys = total.astype(np.float32)
        return keys if queries.metric != "l2" else 2 * keys - rows.squares.numpy()


@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_of_a_gpu_allows_for_sums_that_are_cut_off(metric):
    """One large number, and many whose products are lost beside its square."""
    rows = np.full((1, 1 << 16), 127 / 128, np.float32)
    rows[0, 0] = 2048
    product = TensorCores()
    assert worst(product, Case(rows, rows), metric) <= 1
    ready = product.prepare(block(rows, metric))
    if metric == "ip":
        (length,) = ready.norms
        assert (
            length**2 - product.keys(ready, ready)[0, 0]
            > 3 * (1 << 16) * FLOAT32_ROUNDOFF * length**2
        )


@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_of_a_gpu_is_that_of_its_sums(metric):
    """d u to first order with u = 2^-22, beside the rounding of the inputs: four times as wide."""
    product = TensorCores()
    ready = product.prepare(block(np.ones((2, 4096), np.float32), metric))
    share = 2.0**-11 if metric == "cosine" else 2.0**-8
    length = 1.0 if metric == "cosine" else 4096.0
    expected = (2 if metric == "l2" else 1) * length * (2 * share + 4096 * 2.0**-22)
    error = product.key_error(ready, ready)
    assert (error >= expected).all()
    assert (error <= 1.2 * expected).all()
