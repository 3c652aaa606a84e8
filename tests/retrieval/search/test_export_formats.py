"""Tests of the export formats: golden files, completeness of matches and failures, TREC order."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.core.errors import UsageError
from retrieval.core.schemas import FAILURES, MATCHES
from retrieval.search import export_formats
from retrieval.search.export_formats import (
    FORMAT_FILES,
    FORMAT_WRITERS,
    FinishedMatches,
    trec_id,
    write_export,
)
from tests.retrieval.sample_vectors import quick

GOLDEN = Path(__file__).parent / "golden"
IMAGE_IDS = [
    'a, "b"/two\nlines.png',
    "cats/50%20 cat.jpg",
    "cats/50%20\u2028cat.jpg",
    "dogs/x.jpg",
    "more dogs/x.jpg",
    "été/猫 🐈.jpg",
    "x.jpg",
    "\u00a0'=1+1\r\n\t",
]
SCORES = [1.0, 0.1 + 0.2, 0.3, 0.3, 1e-17, 0.0, -0.25, -1.0]


def make_matches(matches, failures=(), metric="cosine", cut=2, **options):
    """Return finished matches from {query_id: {image_id: score}}, in tables of `cut` queries each.

    `failures` are ids of failed queries; further arguments go to FinishedMatches.
    """

    def table(queries):
        rows = [
            {
                "query_id": query,
                "rank": rank,
                "image_id": image,
                "score": score,
                "query_path": f"/queries/{query}",
                "path": f"s3://gallery/{image}",
                "query_label": query.partition("/")[0] if "/" in query else None,
                "label": image.partition("/")[0] if "/" in image else None,
                "probability": 0.25 if rank == 1 else None,
            }
            for query in queries
            for rank, (image, score) in enumerate(matches[query].items(), 1)
        ]
        return pa.Table.from_pylist(rows, MATCHES.schema)

    ledger = [
        {
            "row": row_number,
            "image_id": query,
            "path": f"/queries/{query}",
            "stage": "decode",
            "error": "UnidentifiedImageError",
            "message": 'no image, "at all"',
            "label": None,
        }
        for row_number, query in enumerate(failures)
    ]
    queries = list(matches)
    return FinishedMatches(
        lambda: (table(queries[start : start + cut]) for start in range(0, len(queries), cut)),
        lambda: iter([pa.Table.from_pylist(ledger, FAILURES.schema)]),
        metric,
        **options,
    )


def write_format(name, ranking):
    """Return the bytes that a format writes, and assert that the file is left open."""
    file = io.BytesIO()
    write_export(name, ranking, file)
    assert not file.closed
    return file.getvalue()


ALL = make_matches(
    {
        query: dict(zip(IMAGE_IDS[at:] + IMAGE_IDS[:at], SCORES, strict=True))
        for at, query in enumerate(IMAGE_IDS[:-1])
    },
    failures=[IMAGE_IDS[-1], "lost/x.jpg"],
)


@pytest.mark.parametrize("name", FORMAT_WRITERS)
def test_each_format_equals_its_golden_file(name):
    assert write_format(name, ALL) == (GOLDEN / FORMAT_FILES[name]).read_bytes()


@pytest.mark.parametrize("name", FORMAT_WRITERS)
def test_output_does_not_depend_on_table_boundaries(name):
    ranking = {query: {"a": 1.0, "b": 0.5} for query in IMAGE_IDS}
    expected = write_format(name, make_matches(ranking, cut=1))
    assert all(write_format(name, make_matches(ranking, cut=cut)) == expected for cut in (3, 100))


@pytest.mark.parametrize("name", FORMAT_WRITERS)
def test_matches_of_a_query_stay_together_across_batches(name, monkeypatch):
    monkeypatch.setattr(export_formats, "_BATCH", 3)
    assert write_format(name, ALL) == (GOLDEN / FORMAT_FILES[name]).read_bytes()


@pytest.mark.parametrize("name", FORMAT_WRITERS)
def test_empty_ranking_writes_a_valid_file(name):
    assert (
        write_format(name, make_matches({}))
        == {
            "jsonl": b"",
            "csv": ",".join([*MATCHES.schema.names, "error", "message"]).encode() + b"\r\n",
            "trec": b"",
            "submission": b'{"groupname": "lookalike", "images": {\n}}\n',
        }[name]
    )


def test_file_names_are_distinct():
    assert list(FORMAT_FILES) == list(FORMAT_WRITERS)
    assert len(set(FORMAT_FILES.values())) == len(FORMAT_WRITERS)


def test_unknown_format_is_refused():
    with pytest.raises(UsageError, match=r"^--format 'xml': write one of parquet, jsonl, csv"):
        write_export("xml", ALL, io.BytesIO())


# --- round trip -----------------------------------------------------------------------------------


def read_rows(ranking):
    """Return all matches and all failures, each as a list of rows."""
    matches = [row for part in ranking.parts() for row in part.to_pylist()]
    return matches, [row for part in ranking.failures() for row in part.to_pylist()]


def test_jsonl_holds_every_match_and_failure():
    matches, failures = read_rows(ALL)
    result, failed = [], []
    text = write_format("jsonl", ALL).decode()
    assert text.splitlines() == text.split("\n")[:-1]
    for line in map(json.loads, text.splitlines()):
        if "error" in line:
            failed.append(line)
            continue
        shared = {key: line[key] for key in ("query_id", "query_path", "query_label")}
        result += [shared | match for match in line["matches"]]
    assert result == [{key: row[key] for key in result[0]} for row in matches]
    assert failed == [
        {"query_id": row["image_id"], "query_path": row["path"]}
        | {key: row[key] for key in ("error", "message")}
        for row in failures
    ]


def expected_csv_rows():
    matches, failures = read_rows(ALL)
    rows = [row | {"error": None, "message": None} for row in matches]
    for row in failures:
        failed = {"query_id": row["image_id"], "query_path": row["path"], "query_label": None}
        empty = dict.fromkeys(("rank", "image_id", "score", "path", "label", "probability"))
        rows.append(failed | empty | {key: row[key] for key in ("error", "message")})
    return rows


def test_csv_read_by_python_holds_every_match_and_failure():
    text = io.TextIOWrapper(io.BytesIO(write_format("csv", ALL)), encoding="utf-8", newline="")
    result = list(csv.DictReader(text, strict=True))
    expected = expected_csv_rows()
    assert [{key: row[key] or None for key in row} for row in result] == [
        {key: None if row[key] is None else str(row[key]) for key in result[0]} for row in expected
    ]
    assert [float(row["score"]) for row in result if row["score"]] == [
        row["score"] for row in expected if row["rank"]
    ]


def test_csv_read_by_duckdb_holds_every_match_and_failure(tmp_path):
    path = tmp_path / "matches.csv"
    path.write_bytes(write_format("csv", ALL))
    result = duckdb.read_csv(str(path)).to_arrow_table()
    expected = expected_csv_rows()
    assert result.column_names == [*MATCHES.schema.names, "error", "message"]
    assert result.to_pylist() == [
        {key: row[key] for key in result.column_names} for row in expected
    ]


@quick
@given(st.text())
def test_trec_id_has_no_whitespace_and_decodes_to_the_id(image_id):
    encoded = trec_id(image_id)
    assert unquote(encoded) == image_id
    assert len(encoded.split()) == bool(image_id)
    assert not any(character.isspace() or ord(character) < 33 for character in encoded)


scores = st.sampled_from([-2.0, -0.0, 0.0, 1e-300, 0.5, np.nextafter(0.5, 1), 0.7, 1e6, 1e300])


@quick
@given(st.lists(scores | st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.data())
def test_trec_scores_are_strictly_descending_float32(values, data):
    metric = data.draw(st.sampled_from(["cosine", "ip", "l2"]))
    values = sorted(values, reverse=metric != "l2")
    ranking = make_matches(
        {"q": {f"i{rank}": value for rank, value in enumerate(values)}}, metric=metric
    )
    lines = [line.split() for line in write_format("trec", ranking).decode().splitlines()]
    assert [line[2] for line in lines] == [f"i{rank}" for rank in range(len(values))]
    assert [int(line[3]) for line in lines] == list(range(1, len(values) + 1))
    result = np.array([line[4] for line in lines]).astype(np.float32)
    assert (np.diff(result.astype(np.float64)) < 0).all()
    keys = np.clip(-np.array(values) if metric == "l2" else values, -3e38, 3e38)
    tolerance = np.abs(keys) * 2.0**-22 * len(values) + 1e-40
    assert (np.abs(result - keys) <= tolerance).all()


def test_submission_lists_each_query_without_repeated_names():
    result = json.loads(write_format("submission", ALL))["images"]
    names = ["two\nlines.png", "50%20 cat.jpg", "50%20\u2028cat.jpg", "dogs/x.jpg"]
    names += ["more dogs/x.jpg", "猫 🐈.jpg", "x.jpg"]
    assert list(result) == [*names, "\u00a0'=1+1\r\n\t", "lost/x.jpg"]
    last = names.pop()
    assert result["two\nlines.png"] == [*names, last, "\u00a0'=1+1\r\n\t"]
    assert result["lost/x.jpg"] == []


def test_queries_with_equal_file_names_are_named_by_their_id():
    ranking = {"a/x.jpg": {"g/1": 1.0, "h/1": 0.5}, "b/y.jpg": {"g/1": 1.0}, "c/": {"d/": 1.0}}
    text = write_format(
        "submission", make_matches(ranking, failures=["y.jpg"], groupname='the "A" team')
    )
    assert json.loads(text) == {
        "groupname": 'the "A" team',
        "images": {"x.jpg": ["g/1", "h/1"], "b/y.jpg": ["1"], "c/": ["d/"], "y.jpg": []},
    }


# --- measures of a TREC file ----------------------------------------------------------------------


def draw_tied_ranking(metric):
    """Draw a ranking with many equal scores, in the order of lookalike, and its relevant images."""
    rng = np.random.default_rng(3)
    ranking, relevant = {}, {}
    for number in range(20):
        query = f"some queries/{number}%.jpg"
        values = np.sort(rng.integers(0, 4, 12) / 3)
        keys = values if metric == "l2" else values[::-1]
        images = [f"gallery/{number} .jpg" for number in sorted(rng.permutation(40)[:12])]
        ranking[query] = dict(zip(images, keys.tolist(), strict=True))
        relevant[query] = {f"gallery/{number} .jpg" for number in rng.permutation(40)[:10]}
    return ranking, relevant


def compute_measures(images, relevant):
    """Return average precision, reciprocal rank and precision at 5 by their definitions."""
    hits = [image in relevant for image in images]
    ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
    return {
        "AP": sum(count / rank for count, rank in enumerate(ranks, 1)) / len(relevant),
        "RR": 1 / ranks[0] if ranks else 0.0,
        "P@5": sum(hits[:5]) / 5,
    }


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_measures_of_the_trec_file_equal_those_of_the_ranking(metric, tmp_path):
    measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed (.[dev])")
    ranking, relevant = draw_tied_ranking(metric)
    path = tmp_path / FORMAT_FILES["trec"]
    path.write_bytes(write_format("trec", make_matches(ranking, metric=metric)))
    qrels = [
        measures.Qrel(trec_id(query), trec_id(image), 1)
        for query, images in relevant.items()
        for image in images
    ]
    measured = [measures.AP, measures.RR, measures.P @ 5]
    result = defaultdict(dict)
    for measure in measures.iter_calc(measured, qrels, measures.read_trec_run(str(path))):
        result[unquote(measure.query_id)][str(measure.measure)] = measure.value
    assert result.keys() == ranking.keys()
    for query, images in ranking.items():
        assert result[query] == pytest.approx(compute_measures(images, relevant[query]), abs=1e-6)
