"""Tests of the lists chosen by gap against a choice by float64 keys of all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.index import probing as probing_module
from retrieval.index.probing import Probing, choose_lists
from retrieval.vectors.scoring import block
from tests.retrieval.sample_vectors import cases, exact_keys, quick

LIST_METRICS: tuple[Metric, ...] = ("ip", "l2")
every_metric = pytest.mark.parametrize("metric", LIST_METRICS)


def naive_gaps(queries: Vectors, centroids: Vectors, metric: Metric) -> NDArray[np.float64]:
    """Return the gap of every list for every query, (q, nlist)."""
    keys = exact_keys(queries, centroids, metric)
    if metric == "l2":
        return np.sqrt(-keys) - np.sqrt(-keys.max(1, keepdims=True))
    lengths = np.sqrt((queries.astype(np.float64) ** 2).sum(1))
    return (keys.max(1, keepdims=True) - keys) / np.where(lengths > 0, lengths, 1)[:, None]


def naive_lists(
    queries: Vectors, centroids: Vectors, metric: Metric, probing: Probing
) -> list[set[int]]:
    """Return the lists that each query reads."""
    keys, gaps = exact_keys(queries, centroids, metric), naive_gaps(queries, centroids, metric)
    orders = [np.lexsort((np.arange(len(centroids)), -key)) for key in keys]
    return [
        set(order[gap[order] <= probing.gap][: probing.nprobe].tolist())
        for order, gap in zip(orders, gaps, strict=True)
    ]


def chosen_lists(
    queries: Vectors, centroids: Vectors, metric: Metric, probing: Probing
) -> list[set[int]]:
    lists = choose_lists(block(queries, metric), block(centroids, metric), probing)
    for row in lists.tolist():
        count = sum(number >= 0 for number in row)
        assert row[count:] == [-1] * (len(row) - count)  # padding is at the end
        assert len(set(row[:count])) == count > 0
    return [set(row) - {-1} for row in lists.tolist()]


@quick
@given(cases(), st.sampled_from(LIST_METRICS), st.integers(1, 41), st.data())
def test_chosen_lists_equal_those_by_exact_keys(case, metric, nprobe, data):
    """Gaps are those of lists, so that lists tie at the cut, or slightly smaller or larger."""
    gaps = naive_gaps(case.queries, case.rows, metric)
    gap = data.draw(st.sampled_from(sorted(set(gaps.ravel().tolist()))))
    gap = max(0.0, gap * data.draw(st.sampled_from([1, 1 - 1e-15, 1 + 1e-15, 1 - 1e-7, 1 + 1e-7])))
    probing = Probing(nprobe, gap)
    expected = naive_lists(case.queries, case.rows, metric, probing)
    assert chosen_lists(case.queries, case.rows, metric, probing) == expected
    one_by_one = [
        chosen_lists(case.queries[[query]], case.rows, metric, probing)[0]
        for query in range(len(case.queries))
    ]
    assert one_by_one == expected


@every_metric
def test_lists_do_not_depend_on_blocks(metric, monkeypatch):
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (300, 4)).astype(np.float32)
    centroids = generator.integers(-2, 3, (60, 4)).astype(np.float32)
    monkeypatch.setattr(probing_module, "_MIN_QUERIES", 1)
    for nprobe, gap in itertools.product((5, 60), (0.0, 0.5, 1.0)):
        probing = Probing(nprobe, gap)
        expected = naive_lists(queries, centroids, metric, probing)
        for elements in (1, 60 * 7, 1 << 20):
            monkeypatch.setattr(probing_module, "_PRODUCT_ELEMENTS", elements)
            assert chosen_lists(queries, centroids, metric, probing) == expected


@every_metric
def test_gap_of_a_small_example(metric):
    """Gaps of the second query are those of the first: the dot product is divided by its length."""
    centroids = np.array([[1, 0], [0.5, 0], [0, 1]], np.float32)
    queries = np.array([[1, 0], [4, 0]], np.float32)
    gaps = {"ip": [0.5, 1.0], "l2": [0.5, 2**0.5]}[metric]
    assert naive_gaps(queries, centroids, metric)[0].tolist() == [0, *gaps]
    for gap, count in ((0.0, 1), (0.49, 1), (0.5, 2), (gaps[1], 3)):
        lists = chosen_lists(queries, centroids, metric, Probing(3, gap))
        assert lists[0] == set(range(count))
        if metric == "ip":
            assert lists[1] == lists[0]


def test_equal_lists_at_the_limit_are_chosen_by_number():
    centroids = np.ones((6, 2), np.float32)
    assert chosen_lists(np.ones((1, 2), np.float32), centroids, "ip", Probing(4, 0.0)) == [
        {0, 1, 2, 3}
    ]


def test_zero_vector_reads_lists_up_to_the_limit():
    centroids = np.eye(5, dtype=np.float32)
    lists = chosen_lists(np.zeros((2, 5), np.float32), centroids, "ip", Probing(3, 0.0))
    assert lists == [{0, 1, 2}] * 2


@every_metric
def test_lists_are_closest_first(metric):
    generator = np.random.default_rng(1)
    queries = generator.normal(size=(20, 8)).astype(np.float32)
    centroids = generator.normal(size=(50, 8)).astype(np.float32)
    lists = choose_lists(block(queries, metric), block(centroids, metric), Probing(50, 1.5))
    keys = exact_keys(queries, centroids, metric)
    for row, row_keys in zip(lists, keys, strict=True):
        read = row_keys[row[row >= 0]]
        assert len(read) > 1
        assert (np.diff(read) <= 1e-5).all()


def test_block_without_queries_has_no_lists():
    none = block(np.empty((0, 3), np.float32), "ip")
    assert choose_lists(none, block(np.eye(3, dtype=np.float32), "ip"), Probing(2, 0.1)).size == 0


def test_probings_have_different_names():
    probings = [Probing(n, gap) for n in (1, 12) for gap in (0.0, 0.1, np.nextafter(0.1, 1), 1e9)]
    names = [probing.name for probing in [*probings, Probing(1), Probing(12)]]
    assert len(set(names)) == len(names)
    assert Probing(12).name == "0000012"
    assert Probing(12, 0.1).name == "0000012-3fb999999999999a"


def test_only_an_infinite_gap_reads_all_lists():
    assert Probing(9).reads_all(9)
    assert not Probing(8).reads_all(9)
    assert not Probing(9, 2.0).reads_all(9)
