"""Test approximate ranking: nprobe from the recall curve, certificate, second pass, exit code 5."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.ranking import rank
from retrieval.core.errors import Mismatch
from retrieval.index import plan, recall_curve, recall_interval
from retrieval.index.probing import Probing
from tests.jobs.in_process import index_in_process, rank_in_process
from tests.sample_stores import write_store

DIMENSION, ROWS = 16, 3000


@pytest.fixture(autouse=True, scope="module")
def small_lists_and_samples():
    """Divide the small gallery into many lists, and draw small samples of queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        patch.setattr(plan, "LIST_ROWS", 24)
        patch.setattr(recall_interval, "LOOK_SIZES", (40, 80, 120))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with a clustered gallery, its index of 100 lists, and random queries."""
    root = tmp_path_factory.mktemp("recall")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(60, DIMENSION))
    rows = centres[generator.integers(0, 60, ROWS)] + 0.3 * generator.normal(size=(ROWS, DIMENSION))
    write_store(root / "gallery", rows.astype(np.float16))
    write_store(root / "queries", generator.normal(size=(200, DIMENSION)).astype(np.float16))
    index_in_process(root / "gallery", root / "index", rows_per_shard=1100)
    return root


@pytest.fixture
def ranking(root, tmp_path):
    """Return a function that ranks the queries, and returns the result and the matches."""

    def run_rank(name, **options):
        output = tmp_path / name
        manifest = rank_in_process(root / "index", root / "queries", output, **options)
        matches = pq.read_table(output / "matches/part-00000.parquet")
        return rank.summary(str(output), manifest), matches

    return run_rank


@pytest.fixture(scope="module")
def exact(root):
    """Return the exact matches of the queries."""
    rank_in_process(root / "index", root / "queries", root / "exact", recall=1.0)
    return pq.read_table(root / "exact/matches/part-00000.parquet")


def matched_images(matches: pa.Table) -> dict[str, set[str]]:
    """Return the set of matched images of each query."""
    sets: dict[str, set[str]] = {}
    pairs = zip(matches["query_id"].to_pylist(), matches["image_id"].to_pylist(), strict=True)
    for query, image in pairs:
        sets.setdefault(query, set()).add(image)
    return sets


def measure_recall(matches: pa.Table, exact: pa.Table) -> float:
    """Return the recall counted on the matches."""
    matched, expected = matched_images(matches), matched_images(exact)
    return float(
        np.mean(
            [len(matched[query] & expected[query]) / len(expected[query]) for query in expected]
        )
    )


def test_target_recall_is_reached(ranking, exact):
    """The interval contains the recall of the matches and is above the target."""
    result, matches = ranking("asked", recall=0.9)
    assert result.exit_code == 0
    assert 1 <= result.values["lists"] < result.values["nlist"]
    assert result.values["lists"] <= result.values["most_lists"] <= result.values["nprobe"]
    assert 0 < result.values["rows_read"] < 1
    assert 0.9 <= result.values["recall_low"] <= measure_recall(matches, exact)
    assert measure_recall(matches, exact) <= result.values["recall_high"]
    assert result.values["recall_sample"] in (40, 80, 120)


def test_undecided_sample_grows_and_gets_exact_matches(ranking, exact, monkeypatch):
    monkeypatch.setattr(recall_curve, "choose_probing", lambda *_: Probing(6))
    _, matches_at_nprobe = ranking("hand", nprobe=6)
    target = measure_recall(matches_at_nprobe, exact)
    result, matches = ranking("close", recall=target)
    assert result.values["recall_sample"] > 40
    expected, actual = matched_images(exact), matched_images(matches)
    assert (
        sum(expected[query] == actual[query] for query in expected)
        >= result.values["recall_sample"]
    )
    assert result.values["recall_low"] >= target
    assert measure_recall(matches, exact) >= target


def test_few_queries_search_all_lists(ranking, exact, monkeypatch):
    """Up to twice the first sample: 200 queries are few for 100 sampled ones, not for 99."""
    monkeypatch.setattr(recall_interval, "LOOK_SIZES", (100, 150, 175))
    result, matches = ranking("few", recall=0.9)
    assert matches == exact
    assert result.values["nprobe"] == result.values["nlist"]
    assert "recall 1.000: all" in result.lines[1]
    monkeypatch.setattr(recall_interval, "LOOK_SIZES", (99, 150, 175))
    result, _ = ranking("more", recall=0.9)
    assert result.values["recall_sample"] >= 99


def test_first_look_alone_is_made_when_it_decides(ranking, exact, monkeypatch):
    """The queries that it samples get exact matches, and no others are searched exactly."""
    monkeypatch.setattr(recall_curve, "choose_probing", lambda *_: Probing(6))
    result, matches = ranking("decided", recall=0.3)
    assert result.values["recall_sample"] == 40
    _, matches_at_nprobe = ranking("hand", nprobe=6)  # its only look is the first one
    assert matches == matches_at_nprobe
    expected, actual = matched_images(exact), matched_images(matches)
    assert 40 <= sum(expected[query] == actual[query] for query in expected) < 200


def test_second_pass_corrects_a_misleading_curve(ranking, monkeypatch):
    monkeypatch.setattr(recall_curve, "choose_probing", lambda *_: Probing(1))
    result, _ = ranking("misled", recall=0.9)
    assert result.values["passes"] == 2
    assert result.values["recall_low"] >= 0.9
    assert result.exit_code == 0


def test_recall_below_the_target_is_exit_code_5_in_every_run(ranking, monkeypatch):
    monkeypatch.setattr(recall_curve, "choose_probing", lambda *_: Probing(1))
    monkeypatch.setattr(recall_curve, "smallest_sufficient_probing", lambda *_: Probing(2))
    for _ in range(2):
        result, matches = ranking("below", recall=0.99)
        assert result.exit_code == 5
        assert 0 < result.values["recall_low"] < 0.99
        assert len(matched_images(matches)) == 200


def test_recall_of_explicit_nprobe_is_measured_without_exit_code_5(ranking, exact):
    result, matches = ranking("hand", nprobe=2)
    assert result.exit_code == 0
    assert result.values["passes"] == 1
    assert result.values["recall_sample"] == 40
    assert (
        result.values["recall_low"]
        <= measure_recall(matches, exact)
        <= result.values["recall_high"]
    )
    recall = result.values["search_recall"]
    assert result.values["recall"] == pytest.approx((40 + 160 * recall) / 200, abs=1e-12)


def test_top_k_above_100_does_not_search_all_lists(ranking):
    _, exact = ranking("exact", recall=1.0, top_k=101)
    result, matches = ranking("deep", recall=0.8, top_k=101)
    assert result.values["lists"] < result.values["nlist"]
    assert measure_recall(matches, exact) >= 0.8
    assert result.values["recall_extrapolated"] == 0


def test_top_k_beyond_the_curve_is_extrapolated_and_reported(ranking, monkeypatch):
    _, exact = ranking("exact", recall=1.0, top_k=1001)
    result, matches = ranking("beyond", recall=0.5, top_k=1001)
    assert result.values["lists"] < result.values["nlist"]
    assert measure_recall(matches, exact) >= 0.5
    assert result.values["recall_extrapolated"] == 1000
    assert "was measured for 1000 matches per query" in result.lines[1]


def test_query_store_of_another_dimension_is_refused(root, tmp_path):
    write_store(tmp_path / "other", np.ones((3, 8), np.float16), model=1)
    with pytest.raises(Mismatch):
        rank_in_process(root / "index", tmp_path / "other", tmp_path / "m")
