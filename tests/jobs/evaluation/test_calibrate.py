"""Test calibrations from `evaluate --calibrate` to `rank --calibration`, without Ray."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.commands.run import check_calibration
from jobs.config.options import parse_reranking
from jobs.config.settings import EvaluateSettings, ReportSettings, RunSettings
from jobs.evaluation.evaluate import start
from jobs.reporting import report
from retrieval.core.errors import InputError, Mismatch, UsageError
from retrieval.evaluation.calibration import read_calibration
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.jobs.in_process import index_in_process, rank_in_process, small_model
from tests.sample_stores import write_store

ROWS, QUERIES, CLASSES, K = 210, 140, 7, 10


def draw_vectors(rows, seed):
    generator = np.random.default_rng(seed)
    centres = np.eye(CLASSES, 12)[np.arange(rows) % CLASSES]
    return (centres + 0.6 * generator.normal(size=(rows, 12))).astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write an index, its own images ranked against it, and a calibration learned from these."""
    root = tmp_path_factory.mktemp("calibrate")
    write_store(root / "gallery", draw_vectors(ROWS, 0))
    write_store(root / "queries", draw_vectors(QUERIES, 1))
    index_in_process(root / "gallery", root / "index")
    rank(root, "others", queries="gallery", exclude_self=True)
    evaluate(root / "others", calibrate=f"{root}/c.json")
    rank(root, "plain")
    rank(root, "likely", calibration=f"{root}/c.json", min_probability=0.6)
    rank(root, "every", calibration=f"{root}/c.json")
    return root


def rank(root, name, queries="queries", index="index", **options):
    return rank_in_process(root / index, root / queries, root / name, **{"top_k": K, **options})


def evaluate(path, **options):
    return start(EvaluateSettings(matches=str(path), **options))


def rows(path):
    return pq.read_table(path / "matches").to_pylist()


def test_matches_get_probabilities_and_keep_everything_else(root):
    plain, every = rows(root / "plain"), rows(root / "every")
    assert [row | {"probability": None} for row in every] == plain
    assert all(0 < row["probability"] < 1 for row in every)
    assert [verdict.problems for verdict in verify(open_folder(str(root / "every")))] == [()]


def test_less_likely_matches_are_left_out_and_unmatched_queries_recorded(root):
    likely = [row for row in rows(root / "every") if row["probability"] >= 0.6]
    kept = rows(root / "likely")
    assert [row["image_id"] for row in kept] == [row["image_id"] for row in likely]
    matched = {row["query_id"] for row in kept}
    assert 0 < len(matched) < QUERIES
    failures = pq.read_table(root / "likely" / "failures")
    assert set(failures["image_id"].to_pylist()).isdisjoint(matched)
    assert len(failures) == QUERIES - len(matched)
    counts = json.loads((root / "likely" / "manifest.json").read_text())["counts"]
    assert counts["unmatched"] == QUERIES - len(matched)


def test_probabilities_agree_with_labels(root):
    result = evaluate(root / "every")
    reliability = result.values["reliability"]
    assert reliability["matches"] == QUERIES * K
    assert reliability["calibration_error"] < 0.06
    assert reliability["brier"] < reliability["constant_brier"]
    assert any(line == "probabilities, on these matches:" for line in result.lines)


def test_calibrating_prints_the_reliability_of_held_out_folds(root, tmp_path):
    result = evaluate(root / "others", calibrate=f"{tmp_path}/again.json")
    assert (tmp_path / "again.json").read_bytes() == (root / "c.json").read_bytes()
    calibration = read_calibration(f"{root}/c.json")
    assert result.values["held_out"] == calibration.held_out.to_json()
    assert f"calibration: {tmp_path}/again.json, from 2100 matches of 210 queries" in "\n".join(
        result.lines
    )
    assert "held out in 5 folds by query" in "\n".join(result.lines)
    with pytest.raises(InputError, match="7 labelled classes with matches are too few"):
        evaluate(root / "others", calibrate=f"{tmp_path}/q.json", intervals_over="classes")


def test_report_shows_probabilities_and_their_reliability(root, tmp_path):
    page = tmp_path / "report.html"
    report.start(ReportSettings(matches=str(root / "every"), output=str(page)))
    html = page.read_text()
    assert "Reliability of the probabilities" in html
    assert "these matches: expected calibration error" in html
    assert 'title="probability of being right"' in html
    report.start(ReportSettings(matches=str(root / "plain"), output=str(page)))
    assert 'title="probability of being right"' not in page.read_text()


def test_unknown_queries_are_judged_by_open_set_measures(root, tmp_path):
    """The labels of two classes of queries are replaced by classes that the gallery lacks."""
    labels = tmp_path / "labels.csv"
    gallery = [f"a{number:05d}.jpg,class{number % CLASSES},gallery" for number in range(ROWS)]
    lines = ["image_id,label,split", *gallery]
    for number in range(QUERIES):
        name = number % CLASSES
        lines.append(f"a{number:05d}.jpg,{'new' if name < 2 else 'class'}{name},queries")
    labels.write_text("\n".join(lines) + "\n")
    for name in ("plain", "every", "likely"):
        result = evaluate(root / name, labels=str(labels))
        assert (result.values["known"], result.values["unknown"]) == (100, 40)
        assert 0.3 < result.values["AUROC"] < 0.8  # the images of new classes are in the gallery
        assert result.values["DIR@0.1_low"] <= result.values["DIR@0.1"]
        assert "open set: 100 known queries, 40 unknown" in "\n".join(result.lines)
    assert "AUROC" not in evaluate(root / "plain").values


def test_calibration_of_another_network_or_ranking_is_refused(root, tmp_path):
    write_store(tmp_path / "gallery", draw_vectors(ROWS, 0), model=1)
    write_store(tmp_path / "queries", draw_vectors(QUERIES, 1), model=1)
    index_in_process(tmp_path / "gallery", tmp_path / "index")
    calibration = f"{root}/c.json"
    with pytest.raises(Mismatch, match="was made with bundle") as refused:
        rank(tmp_path, "m", calibration=calibration)
    assert refused.value.exit_code == 6
    with pytest.raises(Mismatch, match="was made with top_k 10, not 5"):
        rank(root, "m", calibration=calibration, top_k=5)
    with pytest.raises(Mismatch, match="was made with rerank None"):
        rank(root, "m", calibration=calibration, rerank="expand:3")
    assert not (root / "m").exists()


def test_run_compares_the_network_before_it_embeds_unless_a_projection_follows(root):
    calibration = read_calibration(f"{root}/c.json")
    settings = RunSettings(gallery="g", queries="q", output="o", top_k=K, calibration="c.json")
    check_calibration(settings, small_model(), None, calibration)  # the default recipe projects
    plain = dataclasses.replace(settings, recipe="plain")
    with pytest.raises(Mismatch, match="was made with bundle"):
        check_calibration(plain, small_model(), None, calibration)
    with pytest.raises(Mismatch, match="was made with rerank None"):
        check_calibration(settings, small_model(), parse_reranking("augment"), calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_probability": 0.5}, "--min-probability needs --calibration"),
        ({"calibration": "c.json", "min_score": 0.1}, "mutually exclusive"),
    ],
)
def test_options_that_do_not_go_together_are_refused(root, options, message):
    if "calibration" in options:
        options = options | {"calibration": f"{root}/c.json"}
    with pytest.raises(UsageError, match=message):
        rank(root, "m", **options)


def test_calibration_needs_all_matches_and_a_json_file(root, tmp_path):
    with pytest.raises(UsageError, match="was made with --min-probability"):
        evaluate(root / "likely", calibrate=f"{tmp_path}/c.json")
    with pytest.raises(UsageError, match=r"ends with \.json"):
        evaluate(root / "plain", calibrate=f"{tmp_path}/c.csv")
