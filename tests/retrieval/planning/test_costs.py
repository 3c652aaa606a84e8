"""Tests of cost estimates: hand-computed stages, and properties that hold for any rates."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.index.plan import Gallery, plan_index
from retrieval.planning.costs import (
    Counts,
    Rates,
    Sizes,
    WorkerPool,
    disk_bytes,
    expected_thumbnails,
    failure_interval,
    guess_nprobe,
    makespan,
    memory_bytes,
    stage_costs,
    total_cost,
)

RATES = Rates(
    start=10, listing_rate=1e4, first_pool_start=5, later_pool_start=2, chunk=0.5, image=0.01,
    image_spread=0.1, index=2, rank=1, report=3, thumbnail=0.005,
    multiply_rate=4e10, compare_rate=5e7,
)  # fmt: skip
PLAN = plan_index(Gallery(100_000, 512, "float16", "cosine"), 1 << 30)
COUNTS = Counts(
    gallery=100_000, queries=1000, dimension=512, chunk_rows=(256, 256), plan=PLAN, nprobe=20,
    thumbnails=500,
)  # fmt: skip
WORKERS = WorkerPool(embedders=4, cores=4)
SIZES = Sizes(
    model=1e8, row=1300, line=60, shard_row=1200, match=15, page=1e5, picture=6e3, worker=8e8,
    index_task=2.4e8, rank_task=2.5e8, driver=1.2e9,
)  # fmt: skip

random_rates = st.builds(
    Rates,
    **{field.name: st.floats(1e-3, 1e3) for field in dataclasses.fields(Rates)},
).map(lambda rates: dataclasses.replace(rates, image_spread=0.5, decoder_cores=0))
workers = st.integers(1, 64)


def make_counts(gallery, queries, rows_per_shard):
    """Return the counts of a job whose index has the requested rows per shard."""
    plan = dataclasses.replace(PLAN, rows_per_shard=rows_per_shard)
    shards = -(-gallery // rows_per_shard)
    return dataclasses.replace(COUNTS, gallery=gallery, queries=queries, plan=plan, shards=shards)


@pytest.mark.parametrize(
    ("items", "workers", "seconds"),
    [
        (256, 1, 3.06),  # one chunk: 0.5 + 256 x 0.01
        (300, 2, 3.06),  # two chunks in parallel, the last one short
        (300, 1, 4.0),  # two chunks in sequence: 3.06 + 0.5 + 0.44
        (768, 2, 6.12),  # three full chunks on two workers take as long as four
        (1024, 2, 6.12),
        (44, 8, 0.94),
        (0, 3, 0.0),
    ],
)
def test_makespan_is_time_of_last_worker(items, workers, seconds):
    assert makespan(items, 256, workers, 0.01, 0.5) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("stage", "seconds", "low", "high"),
    [
        ("start", 10.0, 7.5, 12.5),
        ("list", 10.1, 7.575, 12.625),
        ("embed gallery", 304.88, 3.75 + 269.892, 6.25 + 329.868),  # 98 chunks of 3.06 s each
        ("embed queries", 5.06, 1.5 + 2.754, 2.5 + 3.366),  # four chunks, the last one short
    ],
)
def test_stage_costs_equal_hand_computed_values(stage, seconds, low, high):
    (cost,) = (cost for cost in stage_costs(RATES, COUNTS, WORKERS) if cost.stage == stage)
    assert (cost.seconds, cost.low, cost.high) == pytest.approx((seconds, low, high))


def test_index_rank_and_report_costs_equal_formula():
    costs = {cost.stage: cost for cost in stage_costs(RATES, COUNTS, WORKERS)}
    rows, lists = 100_000, PLAN.nlist
    read = 5 * rows * 512 * 0.045 / (4096 * 512) / 4
    train = 2 * 512 * PLAN.sample_rows * lists * 10 / 4e10 / min(PLAN.sample_rows // 8192, 4)
    run_seconds = 2 * 512 * lists / 4e10 * 16384
    assign = 2 * run_seconds  # six full runs and a shorter one on four workers
    recall = 2 * 500 * rows / 5e7
    assert costs["index"].seconds == pytest.approx(2 + read + train + assign + recall)
    score = (1000 * 20 / lists + 500) * rows / 5e7
    probe = 2 * 512 * 1000 * lists / 4e10
    assert costs["rank"].seconds == pytest.approx(1 + probe + score + 1000 * 10 / 2e5)
    assert costs["evaluate and report"].seconds == pytest.approx(
        3 + 500 * 0.005 / 4 + 1000 * 10 / (10**7 / 16.4)
    )


def test_job_without_queries_has_no_query_stages():
    gallery_only = dataclasses.replace(COUNTS, queries=None)
    assert [cost.stage for cost in stage_costs(RATES, gallery_only, WORKERS)] == [
        "start", "list", "embed gallery", "index",
    ]  # fmt: skip
    assert disk_bytes(SIZES, gallery_only).keys() == {"store", "index", "scratch"}
    assert memory_bytes(SIZES, gallery_only).keys() == {"worker", "index_task", "driver"}


def test_pca_stage_includes_first_pool_start():
    with_pca = dataclasses.replace(COUNTS, pca_sample=8192)
    costs = {cost.stage: cost.seconds for cost in stage_costs(RATES, with_pca, WORKERS)}
    assert costs["fit projection"] == pytest.approx(5 + 16 * (0.5 + 1.28))
    assert costs["embed gallery"] == pytest.approx(2 + 98 * 3.06 - 0.0, rel=0.01)


@given(random_rates, st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**5), workers)
def test_costs_do_not_decrease_with_gallery_size(rates, gallery, additional, rows_per_shard, count):
    pool = WorkerPool(count, count)
    smaller, larger = (
        stage_costs(rates, make_counts(rows, rows, rows_per_shard), pool)
        for rows in (gallery, gallery + additional)
    )
    for smaller_cost, larger_cost in zip(smaller, larger, strict=True):
        assert smaller_cost.seconds <= larger_cost.seconds * (1 + 1e-9)
    assert (
        disk_bytes(SIZES, make_counts(gallery, 10, rows_per_shard))["store"]
        <= disk_bytes(SIZES, make_counts(gallery + additional, 10, rows_per_shard))["store"]
    )


@given(random_rates, st.integers(1, 10**6), st.integers(1, 10**5), workers, workers)
def test_costs_do_not_increase_with_workers(rates, gallery, rows_per_shard, count, additional):
    job = make_counts(gallery, 1000, rows_per_shard)
    slower_costs = stage_costs(rates, job, WorkerPool(count, count))
    faster_costs = stage_costs(rates, job, WorkerPool(count + additional, count + additional))
    for slower, faster in zip(slower_costs, faster_costs, strict=True):
        assert faster.seconds <= slower.seconds * (1 + 1e-9)


@given(random_rates, st.integers(1, 10**6), workers)
@settings(max_examples=50)
def test_total_cost_is_sum_within_interval(rates, gallery, count):
    costs = stage_costs(rates, make_counts(gallery, 1000, 10**5), WorkerPool(count, count))
    total = total_cost(costs)
    assert total.seconds == pytest.approx(sum(cost.seconds for cost in costs))
    for cost in (*costs, total):
        assert 0 <= cost.low <= cost.seconds * (1 + 1e-9)
        assert cost.seconds <= cost.high * (1 + 1e-9)


@pytest.mark.parametrize("cores", [2, 16, 64])
def test_gpu_cost_interval_covers_measured_and_available_decoder_cores(cores):
    measured = dataclasses.replace(RATES, decoder_cores=16)
    (cost,) = (
        cost
        for cost in stage_costs(measured, COUNTS, WorkerPool(4, 4, cores))
        if cost.stage == "embed gallery"
    )
    work = 98 * 3.06 - 2.24
    assert cost.seconds == pytest.approx(5 + work * 16 / cores, rel=0.01)
    lower, upper = sorted((work, work * 16 / cores))
    assert cost.low <= lower + 5
    assert cost.high >= upper + 5


def test_memory_includes_shards_and_chunks():
    actual = memory_bytes(SIZES, COUNTS)
    shard_bytes, block_bytes = (
        COUNTS.shard_rows * PLAN.bytes_per_vector,
        8192 * (16 * 512 + 12 * 500),
    )
    assert actual["index_task"] == 2.4e8 + shard_bytes + block_bytes
    assert actual["rank_task"] == 2.5e8 + shard_bytes
    assert actual["worker"] == 8e8 + 256 * 512 * 4
    assert actual["driver"] == pytest.approx(1.2e9 + (100_000 / 256 + 1000 / 256) * 640)


def test_intermediate_files_are_as_large_as_the_parts():
    gallery_only = dataclasses.replace(COUNTS, queries=None)
    assert disk_bytes(SIZES, gallery_only)["scratch"] == COUNTS.gallery * SIZES.row


@pytest.mark.parametrize(
    ("failed", "tried", "share", "low", "high"),
    [(0, 200, 0.0, 0.0, 0.0188), (10, 200, 0.05, 0.0274, 0.0896), (200, 200, 1.0, 0.9812, 1.0)],
)
def test_failure_interval_is_wilson_interval(failed, tried, share, low, high):
    assert failure_interval(failed, tried) == pytest.approx((share, low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("queries", "top_k", "gallery", "thumbnails"),
    [
        (0, 10, 100, 0),
        (1, 1, 1, 2),
        (10, 10, 10**9, 110),
        (1000, 10, 100, 1100),
        (5000, 1, 1, 1001),
    ],
)
def test_expected_thumbnails_are_queries_and_distinct_matches(queries, top_k, gallery, thumbnails):
    assert expected_thumbnails(queries, 1000, top_k, gallery) == thumbnails


def test_guessed_nprobe():
    assert [guess_nprobe(lists) for lists in (1, 512, 65_536)] == [1, 23, 256]
