"""Tests of the index plan as a function of the gallery and the memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import UsageError
from retrieval.core.records import IndexPlan
from retrieval.index.plan import LIST_ROWS, PROBE_ALL_ROWS, Gallery, plan_index
from tests.retrieval.sample_vectors import dtypes, metrics, quick

GIB = 1 << 30


def plan(rows: int, memory: int = 4 * GIB, **changes: object) -> IndexPlan:
    by_hand = {name: changes.pop(name, None) for name in ("rows_per_shard", "factory")}
    asked = {"dimension": 512, "dtype": "float16", "metric": "cosine", **changes}
    return plan_index(Gallery(rows, **asked), memory, **by_hand)


@pytest.mark.parametrize(
    ("rows", "dimension", "dtype", "memory", "factory", "shards", "probe_all"),
    [
        (1, 512, "float16", 4 * GIB, "IVF1,SQfp16", 1, True),
        (511, 512, "float16", 4 * GIB, "IVF1,SQfp16", 1, True),
        (512, 512, "float16", 4 * GIB, "IVF2,SQfp16", 1, True),
        (1_372, 512, "float32", 4 * GIB, "IVF5,Flat", 1, True),
        (50_000, 512, "float16", 4 * GIB, "IVF195,SQfp16", 1, True),
        (50_001, 512, "float16", 4 * GIB, "IVF195,SQfp16", 1, False),
        (1_000_000, 512, "float16", 4 * GIB, "IVF3906,SQfp16", 1, False),
        (1_000_000, 512, "float16", GIB, "IVF3906,SQfp16", 3, False),  # 432,960 rows fit
        (1_000_000, 512, "float32", GIB, "IVF3906,Flat", 5, False),  # 237,124 rows fit
        (1_000_000, 2048, "float16", GIB, "IVF3906,SQfp16", 9, False),  # 124,507 rows fit
        (100_000_000, 512, "float16", 16 * GIB, "IVF40000,SQfp16", 15, False),
        (1_000_000_000, 256, "float16", 64 * GIB, "IVF65536,SQfp16", 22, False),
    ],
)
def test_plan_of_a_gallery(rows, dimension, dtype, memory, factory, shards, probe_all):
    made = plan(rows, dimension=dimension, dtype=dtype, memory=memory)
    assert made.factory == factory
    assert -(-rows // made.rows_per_shard) == shards
    assert made.probe_all == probe_all


@quick
@given(
    rows=st.integers(1, 2 * 10**9),
    dimension=st.integers(1, 4096),
    dtype=dtypes,
    metric=metrics,
    memory=st.integers(1 << 24, 1 << 40),
)
def test_every_plan_fits_and_can_be_trained(rows, dimension, dtype, metric, memory):
    asked = {"dimension": dimension, "dtype": dtype, "metric": metric, "memory": memory}
    made = plan(rows, **asked)
    width = {"float16": 2, "float32": 4, None: 1}[made.codes]
    assert made.rows_per_shard * dimension * width <= memory // 2
    assert made.nlist <= made.sample_rows <= rows
    assert made.nlist == 1 or rows // made.nlist >= LIST_ROWS
    assert made.probe_all == (rows <= PROBE_ALL_ROWS and made.codes is not None)
    assert made == plan(rows, **asked)


def test_shards_are_nearly_equal():
    made = plan(10**6, memory=2 * 300_000 * (1024 + 216))  # 300,000 fit: four shards
    assert made.rows_per_shard == 250_000


@pytest.mark.parametrize(
    ("dimension", "dtype", "memory", "factory"),
    [
        (2048, "float32", 256 << 20, "IVF3705,SQ8"),  # 15,962 of the vectors fit
        (2048, "float32", 264 << 20, "IVF1028,Flat"),  # 16,460
        (2048, "float16", 64 << 20, "IVF926,SQ8"),
        (4096, "float32", 4 << 20, "IVF30,SQ8"),
    ],
)
def test_little_memory_selects_sq8_codes(dimension, dtype, memory, factory):
    made = plan(10**7, memory=memory, dimension=dimension, dtype=dtype)
    assert made.factory == factory
    assert made.codes == (None if "SQ8" in factory else dtype)
    assert not made.probe_all
    assert ("from the store" in made.reasons[0]) == ("SQ8" in factory)


@pytest.mark.parametrize(
    ("factory", "dtype", "codes"),
    [
        ("IVF16,Flat", "float32", "float32"),
        ("IVF16,Flat", "float16", "float32"),
        ("IVF16,SQfp16", "float16", "float16"),
        ("IVF16,SQfp16", "float32", None),  # rounded
        ("IVF16,PQ16x4fs", "float16", None),
        ("IVF16,RaBitQfs,Refine(SQfp16)", "float16", None),
        ("PCAR32,IVF16,Flat", "float16", None),
        ("IVF16_HNSW32,Flat", "float32", None),
    ],
)
def test_any_ivf_factory_can_be_requested(factory, dtype, codes):
    made = plan(10**6, dtype=dtype, factory=factory)
    assert (made.factory, made.nlist, made.codes) == (factory, 16, codes)
    assert made.reasons[0].startswith(f"{factory}: asked for")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("HNSW32", "makes an IndexHNSWFlat, which has no inverted lists to shard"),
        ("Flat", "makes an IndexFlat"),
        ("IVF16,PQ17", "cannot be made for 512 dimensions .*multiple of the number"),
        ("IVF16,Rubbish", "cannot be made for 512 dimensions"),
    ],
)
def test_other_factories_are_refused_with_the_reason(factory, said):
    with pytest.raises(UsageError, match=f"--index-factory {factory} {said}"):
        plan(10**6, factory=factory)


@pytest.mark.parametrize(
    ("dimension", "dtype", "least"),
    [(512, "float16", 372_736), (512, "float32", 372_736), (2048, "float32", 1_159_168)],
)
def test_too_little_memory_is_refused_naming_what_is_enough(dimension, dtype, least):
    asked = {"dimension": dimension, "dtype": dtype}
    with pytest.raises(UsageError, match=f"--max-index-memory {least - 1} .* at least {least} "):
        plan(10**6, memory=least - 1, **asked)
    assert plan(10**6, memory=least, **asked).rows_per_shard <= 256


def test_rows_per_shard_overrides_the_memory():
    made = plan(1000, rows_per_shard=300, memory=1)
    assert made.rows_per_shard == 300
    assert "4 shards of 300 rows: asked for" in made.reasons


def test_the_reasons_name_the_numbers():
    said = "\n".join(plan(1_000_000, memory=GIB, metric="l2").reasons)
    for number in ("3906 lists", "249984 rows train", "3 shards of 333334 rows", "1240 each"):
        assert number in said
    assert "nearest centroid" in said
