"""Test calibrations: leads against a plain loop, honest probabilities, and the file."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from retrieval.core.errors import Damaged, InputError, Mismatch
from retrieval.evaluation.calibration import (
    Calibration,
    LabelledMatches,
    Scoring,
    add_probabilities,
    best_keys,
    fit_calibration,
    label_leads,
    read_calibration,
)
from retrieval.evaluation.reliability import expected_calibration_error, measure_reliability
from tests.retrieval.evaluation.tables import matches

SCORING = Scoring("digest", 8, "cosine", 5, None, None)
K = 5


def draw_matches(queries, *, seed=0, classes=30, noise=0.15):
    """Return matches of queries whose label leads more, the likelier it is right."""
    generator = np.random.default_rng(seed)
    skill = generator.random(queries)
    keys = -np.sort(-(0.5 + 0.3 * skill[:, None] + noise * generator.random((queries, K))), axis=1)
    right = generator.random((queries, K)) < skill[:, None]
    labels = np.where(right, 0, 1 + generator.integers(0, 4, (queries, K)))
    return LabelledMatches(
        np.repeat(np.arange(queries), K), np.tile(np.arange(1, K + 1), queries), keys.ravel(),
        labels.ravel(), np.ones(queries * K, bool), right.ravel(), np.full(queries * K, np.nan),
        [f"q{number}" for number in range(queries)],
        [f"class{number % classes}" for number in range(queries)],
    )  # fmt: skip


def plain_leads(keys, queries, labels, temperature):
    leads = []
    for query, label in zip(queries, labels, strict=True):
        rows = np.flatnonzero(queries == query)
        weights = {row: np.exp(keys[row] / temperature) for row in rows}
        same_label = sum(weights[row] for row in rows if labels[row] == label)
        others = sum(weights[row] for row in rows if labels[row] != label) + weights[rows[-1]]
        leads.append(temperature * np.log(same_label / others))
    return leads


@pytest.mark.parametrize("temperature", [0.05, 0.3, 10.0])
def test_leads_equal_a_plain_loop(temperature):
    drawn = draw_matches(40)
    arguments = (drawn.keys, drawn.queries, drawn.labels, temperature)
    np.testing.assert_allclose(label_leads(*arguments), plain_leads(*arguments), atol=1e-9)


def test_leads_at_low_temperature_compare_the_best_match_of_each_label():
    keys, labels = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0, 1, 0, 2])
    leads = label_leads(keys, np.zeros(4, np.int64), labels, 0.01)
    np.testing.assert_allclose(leads[:3], [0.1, -0.1, 0.1], atol=1e-3)
    assert leads[3] < -0.25  # far behind, limited by the smallest weight of a label


def test_matches_of_one_label_have_the_same_probability():
    drawn = draw_matches(40)
    best = best_keys(drawn.keys, drawn.queries, drawn.labels)
    same = (drawn.queries[:, None] == drawn.queries) & (drawn.labels[:, None] == drawn.labels)
    np.testing.assert_array_equal(best, np.where(same, drawn.keys, -np.inf).max(1))
    table = add_probabilities(table_of(drawn), fit_calibration(drawn, SCORING)).to_pylist()
    pairs = {(row["query_id"], row["label"], row["probability"]) for row in table}
    assert len(pairs) == len({pair[:2] for pair in pairs})


def test_leads_are_finite_whatever_the_scores():
    keys = np.array([0.0, -1e300, 5.0, 5.0])
    leads = label_leads(keys, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0]), 1e-3)
    assert np.isfinite(leads).all()


def test_images_without_label_and_distractors_have_a_label_each():
    rows = [("q", "a", 1, "x", None), ("q", "a", 2, "y", None), ("q", "a", 3, "z", "distractor")]
    labelled = [("q", "a", 1, "x", "1"), ("q", "a", 2, "y", "2"), ("q", "a", 3, "z", "3")]
    calibration = fit_calibration(draw_matches(60), SCORING)
    np.testing.assert_array_equal(
        calibration.scores_and_leads(matches(*rows)),
        calibration.scores_and_leads(matches(*labelled)),
    )


@pytest.mark.parametrize("grouped_by", ["queries", "classes"])
def test_probabilities_hold_for_further_queries(grouped_by):
    calibration = fit_calibration(draw_matches(1500), SCORING, grouped_by)
    further = draw_matches(1500, seed=1)
    groups = (further.keys, further.queries, further.labels)
    leads = label_leads(*groups, calibration.temperature)
    probabilities = calibration.probability(best_keys(*groups), leads)
    held_out = calibration.held_out
    assert calibration.lead_weight > 0
    assert expected_calibration_error(probabilities, further.right) < 0.03
    assert held_out.calibration_error < 0.03
    assert np.square(probabilities - further.right).mean() == pytest.approx(
        held_out.brier, abs=0.01
    )
    assert held_out.brier < 0.6 * held_out.constant_brier
    assert held_out.low < held_out.brier < held_out.high
    assert sum(each.matches for each in held_out.bins) == held_out.matches == 1500 * K


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_gives_almost_certain_probabilities(right):
    drawn = dataclasses.replace(draw_matches(40), right=np.full(40 * K, right))
    calibration = fit_calibration(drawn, SCORING)
    expected = (40 * K + 1) / (40 * K + 2) if right else 1 / (40 * K + 2)
    np.testing.assert_allclose(calibration.probabilities, expected)


def test_constant_scores_of_one_class_have_the_share_that_is_right():
    drawn = draw_matches(40)
    ones = np.ones(40 * K)
    drawn = dataclasses.replace(drawn, keys=ones, labels=ones.astype(np.int64))
    calibration = fit_calibration(drawn, SCORING)
    share = (drawn.right.sum() + 1) / (40 * K + 2)
    np.testing.assert_allclose(calibration.probability(ones, ones), share)


def test_ungraded_matches_are_not_learned_from():
    drawn = draw_matches(60)
    graded = drawn.ranks < K
    hidden = dataclasses.replace(drawn, graded=graded)
    inverted = dataclasses.replace(hidden, right=np.where(graded, drawn.right, ~drawn.right))
    assert (
        fit_calibration(hidden, SCORING).to_json() == fit_calibration(inverted, SCORING).to_json()
    )


def test_too_few_queries_or_classes_are_refused():
    with pytest.raises(InputError, match="9 labelled queries with matches are too few"):
        fit_calibration(draw_matches(9), SCORING)
    with pytest.raises(InputError, match="3 labelled classes with matches are too few"):
        fit_calibration(draw_matches(60, classes=3), SCORING, "classes")


# --- matches and the file -------------------------------------------------------------------------


def table_of(drawn):
    rows = zip(drawn.queries, drawn.ranks, drawn.labels, drawn.keys, strict=True)
    return matches(
        *(
            (f"q{query:05d}", "x", rank, f"i{rank}", f"c{label}", key)
            for query, rank, label, key in rows
        )
    )


def test_less_likely_matches_are_left_out_and_the_rest_ranked_anew():
    calibration = fit_calibration(draw_matches(200), SCORING)
    table = table_of(draw_matches(50, seed=2))
    every = add_probabilities(table, calibration)
    assert every.schema.equals(table.schema)
    assert every["probability"].null_count == 0
    kept = add_probabilities(table, calibration, 0.6)
    expected = [row for row in every.to_pylist() if row["probability"] >= 0.6]
    assert 0 < len(kept) < len(every)
    places = {}
    for row in expected:
        row["rank"] = places[row["query_id"]] = places.get(row["query_id"], 0) + 1
    assert kept.to_pylist() == expected
    assert kept.schema.equals(table.schema)
    assert len(add_probabilities(table, calibration, 1.0)) == 0


def test_an_empty_table_gets_an_empty_column():
    calibration = fit_calibration(draw_matches(20), SCORING)
    assert len(add_probabilities(table_of(draw_matches(1)).slice(0, 0), calibration, 0.5)) == 0


def test_probabilities_do_not_depend_on_other_queries_of_the_table():
    calibration = fit_calibration(draw_matches(100), SCORING)
    table = table_of(draw_matches(20))
    parts = [table.slice(first, 2 * K) for first in range(0, len(table), 2 * K)]
    joined = pa.concat_tables([add_probabilities(part, calibration, 0.3) for part in parts])
    assert joined.equals(add_probabilities(table, calibration, 0.3))


def test_l2_scores_are_distances():
    drawn = draw_matches(100)
    squared = dataclasses.replace(SCORING, metric="l2")
    calibration = fit_calibration(drawn, squared)
    leads = np.zeros(2)
    near, far = calibration.probability(np.array([-1.0, 1.0]), leads)
    assert near > far


def test_file_is_read_back_unchanged(tmp_path):
    calibration = fit_calibration(draw_matches(100), SCORING)
    path = tmp_path / "calibration.json"
    path.write_bytes(calibration.to_json())
    read = read_calibration(str(path))
    assert isinstance(read, Calibration)
    assert read.to_json() == calibration.to_json()
    assert read.digest == calibration.digest
    assert read.held_out == calibration.held_out


def test_damaged_missing_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "calibration.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_calibration(str(path))
    data = fit_calibration(draw_matches(100), SCORING).to_json()
    path.write_bytes(data.replace(b"digest", b"digset"))
    with pytest.raises(Damaged, match="is not a calibration or was altered"):
        read_calibration(str(path))


@pytest.mark.parametrize(
    ("field", "value"), [("bundle", "other"), ("metric", "ip"), ("top_k", 9), ("rerank", "x")]
)
def test_other_scoring_is_refused(field, value):
    calibration = fit_calibration(draw_matches(20), SCORING)
    calibration.check_scoring(SCORING, "c.json")
    with pytest.raises(Mismatch, match=rf"^--calibration c.json was made with {field} "):
        calibration.check_scoring(dataclasses.replace(SCORING, **{field: value}), "c.json")


# --- reliability ----------------------------------------------------------------------------------


def test_calibration_error_is_the_mean_gap_of_the_bins():
    probabilities = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    right = np.array([False, True, True, True, False])
    # bins: 2 matches of 0.05 with half right; 3 of mean 2.9 / 3 with two thirds right
    expected = (2 * 0.45 + 3 * (2.9 / 3 - 2 / 3)) / 5
    assert expected_calibration_error(probabilities, right) == pytest.approx(expected)


@pytest.mark.parametrize("copies", [1, 4])
def test_error_by_chance_is_that_of_perfect_probabilities(copies):
    """Copies of a match within a query carry no more information than one."""
    generator, errors, chances = np.random.default_rng(0), [], []
    for _ in range(100):
        probabilities = np.repeat(generator.random(150), copies)
        right = np.repeat(generator.random(150), copies) < probabilities
        query = np.repeat(np.arange(150), copies)
        measured = measure_reliability(probabilities, right, query, np.ones(len(query), np.int64))
        errors.append(measured.calibration_error)
        chances.append(measured.chance_error)
    assert np.mean(chances) == pytest.approx(np.mean(errors), rel=0.1)


def test_few_queries_have_no_interval():
    measured = measure_reliability(
        np.array([0.5, 0.5]), np.array([True, False]), np.array([0, 1]), np.array([1, 1])
    )
    assert measured.low is measured.high is None
    assert measured.brier == measured.first_brier == 0.25
