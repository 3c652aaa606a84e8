"""Tests of the index plan as a function of the gallery and the memory."""

from __future__ import annotations

import faiss
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import UsageError
from retrieval.core.records import IndexPlan
from retrieval.index.plan import (
    LIST_ROWS,
    PROBE_ALL_ROWS,
    READ_ALL_LIST_ROWS,
    Gallery,
    plan_index,
)
from tests.retrieval.sample_vectors import dtypes, metrics, quick

GIB = 1 << 30


def plan(rows: int, memory: int = 4 * GIB, **changes: object) -> IndexPlan:
    overrides = {name: changes.pop(name, None) for name in ("rows_per_shard", "factory")}
    gallery = {"dimension": 512, "dtype": "float16", "metric": "cosine", **changes}
    return plan_index(Gallery(rows, **gallery), memory, **overrides)


@pytest.mark.parametrize(
    ("rows", "dimension", "dtype", "memory", "factory", "shards", "probe_all"),
    [
        (1, 512, "float16", 4 * GIB, "IVF1,SQfp16", 1, True),
        (511, 512, "float16", 4 * GIB, "IVF1,SQfp16", 1, True),
        (512, 512, "float16", 4 * GIB, "IVF2,SQfp16", 1, True),
        (1_372, 512, "float32", 4 * GIB, "IVF5,Flat", 1, True),
        (50_000, 512, "float16", 4 * GIB, "IVF195,SQfp16", 1, True),
        (50_001, 512, "float16", 4 * GIB, "IVF520,SQfp16", 1, False),
        (1_000_000, 512, "float16", 4 * GIB, "IVF10416,SQfp16", 1, False),
        (1_000_000, 512, "float16", GIB, "IVF10416,SQfp16", 3, False),  # 432,960 rows fit
        (1_000_000, 512, "float32", GIB, "IVF10416,Flat", 5, False),  # 237,124 rows fit
        (1_000_000, 2048, "float16", GIB, "IVF10416,SQfp16", 9, False),  # 124,507 rows fit
        (100_000_000, 512, "float16", 16 * GIB, "IVF65536,SQfp16", 15, False),
        (1_000_000_000, 256, "float16", 64 * GIB, "IVF65536,SQfp16", 22, False),
    ],
)
def test_planned_lists_codes_and_shards(rows, dimension, dtype, memory, factory, shards, probe_all):
    result = plan(rows, dimension=dimension, dtype=dtype, memory=memory)
    assert result.factory == factory
    assert -(-rows // result.rows_per_shard) == shards
    assert result.probe_all == probe_all


@quick
@given(
    rows=st.integers(1, 2 * 10**9),
    dimension=st.integers(1, 4096),
    dtype=dtypes,
    metric=metrics,
    memory=st.integers(1 << 24, 1 << 40),
)
def test_plan_fits_memory_and_sample_covers_lists(rows, dimension, dtype, metric, memory):
    arguments = {"dimension": dimension, "dtype": dtype, "metric": metric, "memory": memory}
    result = plan(rows, **arguments)
    code_bytes = {"float16": 2, "float32": 4, None: 1}[result.codes]
    assert result.rows_per_shard * dimension * code_bytes <= memory // 2
    assert result.nlist <= result.sample_rows <= rows
    list_rows = READ_ALL_LIST_ROWS if result.probe_all else LIST_ROWS
    assert result.nlist == 1 or rows // result.nlist >= list_rows
    assert result.nlist == 1 or 4 * dimension * result.nlist <= memory // 4
    assert result.probe_all == (rows <= PROBE_ALL_ROWS and result.codes is not None)
    assert result == plan(rows, **arguments)


def test_shards_are_nearly_equal():
    result = plan(10**6, memory=2 * 300_000 * (1024 + 216))  # 300,000 fit: four shards
    assert result.rows_per_shard == 250_000


@pytest.mark.parametrize(
    ("dimension", "dtype", "memory", "factory"),
    [
        (2048, "float32", 256 << 20, "IVF8192,SQ8"),  # 15,962 of the vectors fit
        (2048, "float32", 264 << 20, "IVF8448,Flat"),  # 16,460
        (2048, "float16", 64 << 20, "IVF2048,SQ8"),
        (4096, "float32", 4 << 20, "IVF64,SQ8"),
    ],
)
def test_insufficient_memory_for_vectors_selects_sq8_codes(dimension, dtype, memory, factory):
    result = plan(10**7, memory=memory, dimension=dimension, dtype=dtype)
    assert result.factory == factory
    assert result.codes == (None if "SQ8" in factory else dtype)
    assert not result.probe_all
    assert ("by the stored vectors" in result.reasons[0]) == ("SQ8" in factory)


@pytest.mark.parametrize(
    ("factory", "dtype", "codes"),
    [
        ("IVF16,Flat", "float32", "float32"),
        ("IVF16,Flat", "float16", "float32"),
        ("IVF16,SQfp16", "float16", "float16"),
        ("IVF16,SQfp16", "float32", None),  # rounded
        ("IVF16,SQ8", "float16", None),
        ("IVF16,PQ16x4fs", "float32", None),
    ],
)
def test_requested_factory_is_used(factory, dtype, codes):
    result = plan(10**6, dtype=dtype, factory=factory)
    assert (result.factory, result.nlist, result.codes) == (factory, 16, codes)
    assert result.reasons[0].startswith(f"{factory}: asked for")


@pytest.mark.parametrize(
    ("factory", "code_bytes"),
    [("IVF4,Flat", 2048), ("IVF4,SQfp16", 1024), ("IVF4,SQ8", 512), ("IVF4,PQ64x4fs", 32)],
)
def test_bytes_per_vector_are_those_of_faiss(factory, code_bytes):
    assert faiss.index_factory(512, factory).code_size == code_bytes
    assert plan(10**6, factory=factory).bytes_per_vector == code_bytes + 216


@pytest.mark.parametrize(
    "factory",
    [
        "HNSW32", "Flat", "IVF16,PQ16", "IVF16,RaBitQfs", "IVF16,PQ16x4fs,Refine(SQfp16)",
        "PCAR32,IVF16,Flat", "IVF16_HNSW32,Flat", "IVF0,Flat", "IVF16,FlatDedup", "ivf16,Flat", "",
    ],
)  # fmt: skip
def test_other_factory_is_refused_with_the_supported_ones(factory):
    with pytest.raises(UsageError) as refused:
        plan(10**6, factory=factory)
    assert f"--index-factory {factory!r} is not supported; specify IVFn,Flat or" in str(
        refused.value
    )


def test_parts_that_do_not_divide_the_dimension_are_refused():
    with pytest.raises(UsageError, match=r"17 parts .* 512 dimensions; specify a divisor of 512"):
        plan(10**6, factory="IVF16,PQ17x4fs")


@pytest.mark.parametrize(
    ("dimension", "dtype", "minimum"),
    [(512, "float16", 372_736), (512, "float32", 372_736), (2048, "float32", 1_159_168)],
)
def test_insufficient_memory_error_names_the_minimum(dimension, dtype, minimum):
    gallery = {"dimension": dimension, "dtype": dtype}
    with pytest.raises(
        UsageError, match=f"--max-index-memory {minimum - 1} .* at least {minimum} "
    ):
        plan(10**6, memory=minimum - 1, **gallery)
    assert plan(10**6, memory=minimum, **gallery).rows_per_shard <= 256


def test_rows_per_shard_overrides_the_memory_limit():
    result = plan(1000, rows_per_shard=300, memory=1)
    assert result.rows_per_shard == 300
    assert "4 shards of whole lists, about 300 rows each: asked for" in result.reasons


def test_plan_reasons_contain_the_numbers():
    reasons = "\n".join(plan(1_000_000, memory=GIB, metric="l2").reasons)
    for number in (
        "10416 lists",
        "666624 rows train",
        "3 shards of whole lists, about 333334 rows each",
        "1240 each",
    ):
        assert number in reasons
    assert "nearest centroid" in reasons
