"""The arithmetic of a plan: hand-worked stages, and what must hold for any figures."""

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
    start=10, listed=1e4, first_pool=5, next_pool=2, chunk=0.5, image=0.01, image_spread=0.1,
    index=2, rank=1, report=3, thumbnail=0.005, multiplied=4e10, compared=5e7,
)  # fmt: skip
PLAN = plan_index(Gallery(100_000, 512, "float16", "cosine"), 1 << 30)
COUNTS = Counts(100_000, 1000, 512, (256, 256), PLAN, 20, pictures=500)
FLEET = WorkerPool(4, 4)
SIZES = Sizes(1e8, 1300, 60, 1200, 15, 1e5, 6e3, 8e8, 2.4e8, 2.5e8, 1.2e9)

rates = st.builds(
    Rates,
    **{field.name: st.floats(1e-3, 1e3) for field in dataclasses.fields(Rates)},
).map(lambda drawn: dataclasses.replace(drawn, image_spread=0.5, beside=0))
workers = st.integers(1, 64)


def counts(gallery, queries, rows_per_shard):
    """Describe a job whose index is cut as asked, whatever its rows."""
    plan = dataclasses.replace(PLAN, rows_per_shard=rows_per_shard)
    shards = -(-gallery // rows_per_shard)
    return dataclasses.replace(COUNTS, gallery=gallery, queries=queries, plan=plan, shards=shards)


@pytest.mark.parametrize(
    ("items", "workers", "seconds"),
    [
        (256, 1, 3.06),  # a chunk: 0.5 + 256 x 0.01
        (300, 2, 3.06),  # two, of which one is short, side by side
        (300, 1, 4.0),  # one after the other: 3.06 + 0.5 + 0.44
        (768, 2, 6.12),  # three full ones for two: as long as four
        (1024, 2, 6.12),
        (44, 8, 0.94),
        (0, 3, 0.0),
    ],
)
def test_the_last_worker_decides(items, workers, seconds):
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
def test_stages_by_hand(stage, seconds, low, high):
    (cost,) = (cost for cost in stage_costs(RATES, COUNTS, FLEET) if cost.stage == stage)
    assert (cost.seconds, cost.low, cost.high) == pytest.approx((seconds, low, high))


def test_index_and_rank_by_hand():
    costs = {cost.stage: cost for cost in stage_costs(RATES, COUNTS, FLEET)}
    rows, lists = 100_000, PLAN.nlist
    read = 2 * rows * 512 * 0.045 / (4096 * 512) / 4
    train = 2 * 512 * PLAN.sample_rows * lists * 10 / 4e10 / min(PLAN.sample_rows // 8192, 4)
    place = 2 * 512 * rows * lists / 4e10 + 2 * 500 * rows / 5e7
    assert costs["index"].seconds == pytest.approx(2 + read + train + place)
    pairs = (1000 * 20 / lists + 500) * rows / 5e7
    lists_chosen = 2 * 512 * 1000 * lists / 4e10
    assert costs["rank"].seconds == pytest.approx(1 + lists_chosen + pairs + 1000 * 10 / 2e5)
    assert costs["evaluate and report"].seconds == pytest.approx(
        3 + 500 * 0.005 / 4 + 1000 * 10 / (10**7 / 16.4)
    )


def test_without_queries_their_stages_are_left_out():
    alone = dataclasses.replace(COUNTS, queries=None)
    assert [cost.stage for cost in stage_costs(RATES, alone, FLEET)] == [
        "start", "list", "embed gallery", "index",
    ]  # fmt: skip
    assert disk_bytes(SIZES, alone).keys() == {"store", "index", "scratch"}
    assert memory_bytes(SIZES, alone).keys() == {"worker", "index_task", "driver"}


def test_a_projection_is_fitted_first_and_starts_the_workers():
    fitted = dataclasses.replace(COUNTS, fitted=8192)
    costs = {cost.stage: cost.seconds for cost in stage_costs(RATES, fitted, FLEET)}
    assert costs["fit projection"] == pytest.approx(5 + 16 * (0.5 + 1.28))
    assert costs["embed gallery"] == pytest.approx(2 + 98 * 3.06 - 0.0, rel=0.01)


@given(rates, st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**5), workers)
def test_more_rows_never_take_less(drawn, gallery, further, shard, count):
    fleet = WorkerPool(count, count)
    few, many = (
        stage_costs(drawn, counts(rows, rows, shard), fleet)
        for rows in (gallery, gallery + further)
    )
    for less, more in zip(few, many, strict=True):
        assert less.seconds <= more.seconds * (1 + 1e-9)
    assert (
        disk_bytes(SIZES, counts(gallery, 10, shard))["store"]
        <= disk_bytes(SIZES, counts(gallery + further, 10, shard))["store"]
    )


@given(rates, st.integers(1, 10**6), st.integers(1, 10**5), workers, workers)
def test_more_workers_are_never_slower(drawn, gallery, shard, count, further):
    job = counts(gallery, 1000, shard)
    few = stage_costs(drawn, job, WorkerPool(count, count))
    many = stage_costs(drawn, job, WorkerPool(count + further, count + further))
    for slower, faster in zip(few, many, strict=True):
        assert faster.seconds <= slower.seconds * (1 + 1e-9)


@given(rates, st.integers(1, 10**6), workers)
@settings(max_examples=50)
def test_sums_agree_and_lie_in_their_range(drawn, gallery, count):
    costs = stage_costs(drawn, counts(gallery, 1000, 10**5), WorkerPool(count, count))
    whole = total_cost(costs)
    assert whole.seconds == pytest.approx(sum(cost.seconds for cost in costs))
    for cost in (*costs, whole):
        assert 0 <= cost.low <= cost.seconds * (1 + 1e-9)
        assert cost.seconds <= cost.high * (1 + 1e-9)


@pytest.mark.parametrize("beside", [2, 16, 64])
def test_a_gpu_with_other_cores_beside_it_is_told_between_two_bounds(beside):
    measured = dataclasses.replace(RATES, beside=16)
    (cost,) = (
        cost
        for cost in stage_costs(measured, COUNTS, WorkerPool(4, 4, beside))
        if cost.stage == "embed gallery"
    )
    work = 98 * 3.06 - 2.24
    assert cost.seconds == pytest.approx(5 + work * 16 / beside, rel=0.01)
    least, most = sorted((work, work * 16 / beside))
    assert cost.low <= least + 5
    assert cost.high >= most + 5


def test_memory_grows_by_a_shard_and_by_chunks():
    found = memory_bytes(SIZES, COUNTS)
    shard, met = COUNTS.shard_rows * PLAN.bytes_per_vector, 8192 * (16 * 512 + 12 * 500)
    assert found["index_task"] == 2.4e8 + shard + met
    assert found["rank_task"] == 2.5e8 + shard
    assert found["worker"] == 8e8 + 256 * 512 * 4
    assert found["driver"] == pytest.approx(1.2e9 + (100_000 / 256 + 1000 / 256) * 640)


@pytest.mark.parametrize("number_bytes", [2, 4])
def test_a_shard_at_hand_takes_what_its_numbers_take(number_bytes):
    alone = dataclasses.replace(COUNTS, queries=None, number_bytes=number_bytes)
    assert disk_bytes(SIZES, alone)["scratch"] == COUNTS.shard_rows * 512 * number_bytes


@pytest.mark.parametrize(
    ("failed", "tried", "share", "low", "high"),
    [(0, 200, 0.0, 0.0, 0.0188), (10, 200, 0.05, 0.0274, 0.0896), (200, 200, 1.0, 0.9812, 1.0)],
)
def test_the_interval_of_a_share_is_wilsons(failed, tried, share, low, high):
    assert failure_interval(failed, tried) == pytest.approx((share, low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("queries", "top_k", "gallery", "pictures"),
    [
        (0, 10, 100, 0),
        (1, 1, 1, 2),
        (10, 10, 10**9, 110),
        (1000, 10, 100, 1100),
        (5000, 1, 1, 1001),
    ],
)
def test_pictures_are_queries_and_different_matches(queries, top_k, gallery, pictures):
    assert expected_thumbnails(queries, 1000, top_k, gallery) == pictures


def test_the_guess_of_lists_is_that_of_the_measured_ones():
    assert [guess_nprobe(lists) for lists in (1, 512, 65_536)] == [1, 23, 256]
