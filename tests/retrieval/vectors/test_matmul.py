"""Tests that products stay within their error bounds, on CPUs, GPUs and a model of tensor cores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric
from retrieval.vectors import matmul
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

KINDS = ["fp32", "bf16", "cuda"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_product(kind: str) -> Product:
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    return (
        FLOAT32_PRODUCT
        if kind == "fp32"
        else HalfPrecisionProduct("cuda" if kind == "cuda" else "cpu")
    )


def float32_keys(
    product: Product, queries: PreparedVectors, rows: PreparedVectors
) -> NDArray[np.float32]:
    return np.asarray(torch.as_tensor(product.keys(queries, rows)).cpu())


def fits_float32(case: Case) -> bool:
    lengths = [
        np.linalg.norm(values.astype(np.float64), axis=1) for values in (case.queries, case.rows)
    ]
    return max(norms.max() for norms in lengths) < matmul.SAFE_LENGTH / 2


def worst_relative_error(product: Product, case: Case, metric: Metric) -> float:
    """Return the largest error of a key, relative to its bound."""
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    left, right = product.prepare(queries), product.prepare(rows)
    keys = float32_keys(product, left, right).astype(np.float64)
    exact = exact_keys(case.queries, case.rows, metric)
    if metric == "l2":
        exact = exact + (queries.norms**2)[:, None]
    bound = product.key_error(left, right)
    return float((np.abs(keys - exact) / bound[:, None]).max())


@every_kind
def test_keys_are_within_their_error_bound(kind):
    product = make_product(kind)

    @quick
    @given(cases().filter(fits_float32), metrics)
    def check(case, metric):
        error = worst_relative_error(product, case, metric)
        target(error)
        assert error <= 1

    check()


@every_kind
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1, 1e15])
def test_bound_holds_where_all_rounding_errors_add_up(kind, metric, scale):
    """The values lie just above midpoints of bfloat16 and float16, so that their errors add up."""
    for offset in (2.0**-9, 2.0**-12):
        values = np.full((1, 512), 1 + offset * 1.01) * scale
        signs = np.where(np.arange(512) % 2, 1, -1)
        rows = np.concatenate([values, values * signs]).astype(np.float32)
        assert worst_relative_error(make_product(kind), Case(rows, rows), metric) <= 1


@every_kind
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (100, 33), (33, 600)])
def test_pairs_reaching_a_threshold_are_returned(kind, metric, shape):
    product, generator = make_product(kind), np.random.default_rng(0)
    queries, rows = (
        block(generator.normal(size=(count, 24)).astype(np.float16), metric) for count in shape
    )
    left, right = product.prepare(queries), product.prepare(rows)
    keys, expected = product.keys(left, right), float32_keys(product, left, right)
    assert expected.shape == shape
    assert expected.dtype == np.float32
    k = min(5, shape[1])
    kth = product.kth_key(keys, k)
    np.testing.assert_array_equal(kth, np.sort(expected, axis=1)[:, -k])
    q, x, values = product.pairs_reaching(keys, kth)
    np.testing.assert_array_equal(values, expected[q, x])
    np.testing.assert_array_equal(np.stack([q, x]), np.nonzero(expected >= kth[:, None]))


@every_kind
@pytest.mark.parametrize("positions", [[0], [3, 4, 5], [1, 4, 9, 30], list(range(33))])
def test_keys_of_selected_queries_equal_those_of_all_queries(kind, positions):
    product, generator = make_product(kind), np.random.default_rng(0)
    queries, rows = (
        product.prepare(block(generator.normal(size=(count, 24)).astype(np.float16), "ip"))
        for count in (33, 50)
    )
    expected = float32_keys(product, queries, rows)
    selected = product.select(queries, np.array(positions))
    np.testing.assert_array_equal(selected.norms, queries.norms[positions])
    result = float32_keys(product, selected, rows)
    np.testing.assert_allclose(result, expected[positions], rtol=1e-2, atol=1e-2)


@every_kind
@quick
@given(case=cases().filter(fits_float32), metric=metrics)
def test_nearest_centroid_equals_float64(kind, case, metric):
    rows, queries = block(case.rows, metric), block(case.queries, metric)
    result = nearest_centroids(queries, rows, make_product(kind))
    np.testing.assert_array_equal(result, top_k(queries, rows, 1).positions[:, 0])


@quick
@given(cases(), metrics, st.integers(1, 12))
def test_top_k_positions_equal_float64(case, metric, k):
    queries, rows = block(case.queries, metric), block(case.rows, metric)
    k = min(k, len(rows))
    result = top_k_positions(queries, rows, k)
    expected = top_k(queries, rows, k).positions
    np.testing.assert_array_equal(np.sort(result, axis=1), np.sort(expected, axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_pair_keys_are_close_to_keys_of_the_product(metric):
    generator = np.random.default_rng(0)
    queries, rows = (
        block(generator.normal(size=(40, 65)).astype(np.float32), metric) for _ in range(2)
    )
    q, x = np.divmod(generator.permutation(1600)[:300], 40)
    left, right = FLOAT32_PRODUCT.prepare(queries), FLOAT32_PRODUCT.prepare(rows)
    keys = FLOAT32_PRODUCT.keys(left, right)[q, x]
    bound = FLOAT32_PRODUCT.key_error(left, right)[q]
    assert (np.abs(compute_pair_keys(left, right, q, x) - keys) <= 2 * bound).all()
    assert len(compute_pair_keys(left, right, q[:0], x[:0])) == 0


def test_round_down_to_float32_is_below_the_value():
    values = np.array([1.0, 1 + 2.0**-40, -1 - 2.0**-40, 1e-46, -np.inf, 1e300])
    assert (round_down_to_float32(values).astype(np.float64) < values)[:4].all()
    assert round_down_to_float32(values)[4] == -np.inf
    assert round_down_to_float32(values)[5] > 3e38


def test_bf16_is_chosen_for_much_work_if_supported(monkeypatch):
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
def test_bf16_support_is_read_from_cpu_flags(tmp_path, monkeypatch, flags, forced, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} x\nbugs\t: no\n")
    monkeypatch.setattr(matmul, "_CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", forced)
    assert matmul.has_bf16.__wrapped__() is expected
    monkeypatch.setattr(matmul, "_CPUINFO", str(tmp_path / "none"))
    assert not matmul.has_bf16.__wrapped__()


def test_every_float16_is_converted_exactly():
    """This includes NaN and infinity, which are refused later."""
    every_float16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    expected = every_float16.astype(np.float32)
    np.testing.assert_array_equal(
        float16_to_float32(every_float16).view(np.uint32), expected.view(np.uint32)
    )


@pytest.mark.parametrize("length", [1e-6, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cosine_matmul_input_has_unit_length(length, dtype):
    values = np.random.default_rng(0).normal(size=(50, 12))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True) * length).astype(dtype)
    with_norms = block(values, "cosine")
    with_squared_norms = VectorBlock("cosine", values, with_norms.squared_norms)
    for vectors in (with_norms, with_squared_norms):
        expected = (
            values.astype(np.float64) / np.where(with_norms.norms > 0, with_norms.norms, 1)[:, None]
        )
        np.testing.assert_allclose(vectors.matmul_input, expected, rtol=2.0**-22, atol=0)


# --- tensor cores ---------------------------------------------------------------------------------


class TensorCores(HalfPrecisionProduct):
    """Product on the CPU whose sums are truncated as in a model of tensor cores.

    Of both addends the bits below 2^-22 of the leading bit of the larger one are dropped.
    """

    def __init__(self) -> None:
        self._torch, self._device, self._gpu, self.name = torch, "cpu", True, "cuda"

    def keys(self, queries: PreparedVectors, rows: PreparedVectors) -> NDArray[np.float32]:
        left, right = (prepared.matrix.double().numpy() for prepared in (queries, rows))
        total = np.zeros((len(left), len(right)))
        for query_column, row_column in zip(left.T, right.T, strict=True):
            addend = query_column[:, None] * row_column
            _, exponent = np.frexp(np.maximum(np.abs(total), np.abs(addend)))
            last_bit = np.ldexp(1.0, exponent - 23)
            total = (np.trunc(total / last_bit) + np.trunc(addend / last_bit)) * last_bit
        keys = total.astype(np.float32)
        return keys if queries.metric != "l2" else 2 * keys - rows.squares.numpy()


@pytest.mark.parametrize("metric", METRICS)
def test_gpu_bound_covers_truncated_sums(metric):
    """One value is large; the products of all others are truncated beside its square."""
    rows = np.full((1, 1 << 16), 127 / 128, np.float32)
    rows[0, 0] = 2048
    product = TensorCores()
    assert worst_relative_error(product, Case(rows, rows), metric) <= 1
    prepared = product.prepare(block(rows, metric))
    if metric == "ip":
        (length,) = prepared.norms
        assert (
            length**2 - product.keys(prepared, prepared)[0, 0]
            > 3 * (1 << 16) * FLOAT32_ROUNDOFF * length**2
        )


@pytest.mark.parametrize("metric", METRICS)
def test_gpu_bound_is_close_to_first_order_error(metric):
    """To first order the bound is d u with u = 2^-22, plus the rounding of the inputs."""
    product = TensorCores()
    prepared = product.prepare(block(np.ones((2, 4096), np.float32), metric))
    roundoff = 2.0**-11 if metric == "cosine" else 2.0**-8
    length = 1.0 if metric == "cosine" else 4096.0
    expected = (2 if metric == "l2" else 1) * length * (2 * roundoff + 4096 * 2.0**-22)
    error = product.key_error(prepared, prepared)
    assert (error >= expected).all()
    assert (error <= 1.2 * expected).all()
