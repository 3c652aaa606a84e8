"""The plan of an index is a table of its gallery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import UsageError
from retrieval.index.sizing import LIST_ROWS, PROBE_ALL_ROWS, plan_index
from retrieval.tables import IndexPlan
from tests.retrieval.vectors import dtypes, metrics, quick

GIB = 1 << 30


def plan(rows: int, **changes: object) -> IndexPlan:
    asked = {"images": rows, "dimension": 512, "dtype": "float16", "metric": "cosine"}
    return plan_index(rows=rows, **{**asked, "memory": 4 * GIB, **changes})


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
def test_what_a_gallery_becomes(rows, dimension, dtype, memory, factory, shards, probe_all):
    made = plan(rows, dimension=dimension, dtype=dtype, memory=memory)
    assert made.factory == factory
    assert -(-rows // made.rows_per_shard) == shards
    assert made.probe_all == probe_all


@quick
@given(
    rows=st.integers(1, 2 * 10**9),
    lost=st.integers(0, 10**6),
    dimension=st.integers(1, 4096),
    dtype=dtypes,
    metric=metrics,
    memory=st.integers(1 << 24, 1 << 40),
)
def test_every_plan_fits_and_can_be_trained(rows, lost, dimension, dtype, metric, memory):
    asked = {"dimension": dimension, "dtype": dtype, "metric": metric, "memory": memory}
    made = plan(rows, images=rows + lost, **asked)
    width = {"float16": 2, "float32": 4}[dtype]
    assert made.rows_per_shard * dimension * width <= memory // 2
    assert made.nlist <= made.sample_rows <= rows
    assert made.nlist == 1 or rows // made.nlist >= LIST_ROWS
    assert made.probe_all == (rows <= PROBE_ALL_ROWS)
    assert made == plan(rows, images=rows + lost, **asked)


def test_shards_are_cut_by_images_and_nearly_equal():
    """Rows of images that failed are holes, so that a listing is cut and not its vectors."""
    made = plan(10, images=1000, memory=2 * 300 * (1024 + 216))  # 300 fit: four shards
    assert made.rows_per_shard == 250


@pytest.mark.parametrize(
    ("dimension", "dtype", "least"),
    [(512, "float16", 634_880), (512, "float32", 1_159_168), (2048, "float32", 4_304_896)],
)
def test_too_little_memory_is_refused_naming_what_is_enough(dimension, dtype, least):
    asked = {"dimension": dimension, "dtype": dtype}
    with pytest.raises(UsageError, match=f"--max-index-memory {least - 1} .* at least {least} "):
        plan(10**6, memory=least - 1, **asked)
    assert plan(10**6, memory=least, **asked).rows_per_shard <= 256


def test_rows_a_shard_by_hand_overrule_the_memory():
    made = plan(1000, rows_per_shard=300, memory=1)
    assert made.rows_per_shard == 300
    assert "4 shards of 300 rows: asked for" in made.reasons


def test_the_reasons_name_the_numbers():
    said = "\n".join(plan(1_000_000, memory=GIB, metric="l2").reasons)
    for number in ("3906 lists", "249984 rows train", "3 shards of 333334 rows", "1240 each"):
        assert number in said
    assert "nearest centroid" in said
