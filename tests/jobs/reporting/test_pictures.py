"""Test pictures of finished matches without Ray: files, notes on omissions, and replacement."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes
from PIL import Image

from jobs.ranking.rank import summary
from jobs.reporting import contact_sheets, pictures
from jobs.reporting.contact_sheets import (
    CHANGED_QUERIES,
    draw_before_after,
    draw_grids,
    most_changed_queries,
)
from jobs.reporting.pictures import draw_charts, draw_pictures, write_pictures
from retrieval.core.errors import Damaged, StorageFailure
from retrieval.core.schemas import GALLERY_LABELS, MATCHES
from retrieval.evaluation.labels import Labels
from retrieval.index import plan
from retrieval.report import gallery_sample as samples
from retrieval.report.gallery_sample import sample_gallery
from retrieval.report.query_outcomes import QueryOutcomes, read_match_rows, read_outcomes
from retrieval.storage import finished_output
from retrieval.storage.checksum import parse_checksummed_json
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import embed_in_process, index_in_process, rank_in_process
from tests.sample_stores import write_store

LABELS = Labels(GALLERY_LABELS.schema.empty_table())  # use the labels in the matches
RANK_OPTIONS = {"nprobe": 2, "top_k": 5}


@pytest.fixture(scope="module")
def photo_ranking(tmp_path_factory):
    """Rank photos of three classes with nprobe=2 of 6 lists."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        embed_in_process(draw_photos(root / "photos", 60), root / "gallery", chunk_rows=16)
        embed_in_process(draw_photos(root / "asked", 5, seed=1), root / "queries")
        index_in_process(root / "gallery", root / "index", index_factory="IVF6,SQfp16")
        rank_in_process(root / "index", root / "queries", root / "matches", **RANK_OPTIONS)
    return root


@pytest.fixture(scope="module")
def vector_ranking(tmp_path_factory):
    """Rank vectors whose images do not exist."""
    root = tmp_path_factory.mktemp("vectors")
    drawn_vectors = np.random.default_rng(0).normal(size=(430, 8)).astype(np.float16)
    write_store(root / "gallery", drawn_vectors[:400], chunk_rows=64)
    write_store(root / "queries", drawn_vectors[400:], chunk_rows=25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        index_in_process(root / "gallery", root / "index", index_factory="IVF12,SQfp16")
        rank_in_process(root / "index", root / "queries", root / "matches", **RANK_OPTIONS)
    return root


def open_matches(path):
    folder = open_folder(str(path))
    return folder, finished_output.read_manifest(folder, kind="matches")


def read_matches(path):
    return pq.read_table(path / "matches" / "matches", schema=MATCHES.schema)


# --- drawn pictures ------------------------------------------------------------------------------


@pytest.fixture
def four_queries(monkeypatch):
    """Limit contact sheets to four queries."""
    monkeypatch.setattr(contact_sheets, "MAX_QUERIES", 4)
    monkeypatch.setattr(contact_sheets, "WORST_QUERIES", 4)


def test_grids_and_charts_are_drawn_deterministically(photo_ranking, four_queries):
    notes = []
    result = draw_pictures(*open_matches(photo_ranking / "matches"), LABELS, note=notes.append)
    grids = [name for name in result if name.startswith("grid-")]
    outcomes = read_outcomes(*open_matches(photo_ranking / "matches"), LABELS)
    assert grids == [f"grid-{number:05d}.png" for number in range(1, len(grids) + 1)]
    # two grids for five queries, one for the worst
    assert len(grids) == 2 + bool(outcomes.worst(1))
    assert set(result) - set(grids) == {"recall.png", "scores.png", "map.png"}
    assert notes == []
    second_result = draw_pictures(
        *open_matches(photo_ranking / "matches"), LABELS, note=notes.append
    )
    assert second_result == result
    for data in result.values():
        assert Image.open(io.BytesIO(data)).format == "PNG"


def test_charts_of_the_page_describe_the_matches(photo_ranking):
    notes = []
    charts = draw_charts(*open_matches(photo_ranking / "matches"), LABELS, note=notes.append)
    assert [chart.name for chart in charts] == ["recall", "scores", "map"]
    table = read_matches(photo_ranking)
    correct = sum(a == b for a, b in zip(table["query_label"], table["label"], strict=True))
    assert f"{correct} right" in charts[1].alt
    assert charts[2].title == "Map of 60 images"
    assert notes == []


def test_grid_shows_distance_and_correctness_of_each_match(
    photo_ranking, four_queries, monkeypatch
):
    texts = []
    draw_text = Axes.text
    monkeypatch.setattr(Axes, "text", lambda *a, **k: texts.append(a[3]) or draw_text(*a, **k))
    matches = open_matches(photo_ranking / "matches")
    grids = draw_grids(*matches, read_outcomes(*matches, LABELS), LABELS, print, 0)
    assert next(iter(grids)) == "grid-00001.png"
    assert "Queries 1 to 4 of 5" in texts
    assert "Query 5 of 5" in texts
    rows = [
        row
        for row in read_matches(photo_ranking).to_pylist()
        if row["query_id"] == "class0/photo0000.jpg"
    ]
    position = texts.index("photo0000.jpg")
    assert texts[position - 1] == "class0"
    expected = [
        text for row in rows
        for text in (
            ("✓ " if row["label"] == "class0" else "✗ ") + row["label"],
            f"{max(0, 1 - row['score']):.3f}",
        )
    ]  # fmt: skip
    assert texts[position + 1 : position + 1 + len(expected)] == expected


def test_no_recall_curve_if_all_lists_are_searched(photo_ranking, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheets, "_photos", lambda lists: {})
    rank_in_process(
        photo_ranking / "index", photo_ranking / "queries", tmp_path / "m", nprobe=6, top_k=3
    )
    notes = []
    result = draw_pictures(*open_matches(tmp_path / "m"), None, note=notes.append)
    assert set(result) == {"scores.png", "map.png"}
    assert len(notes) == 1  # on unreadable images


def test_unreadable_images_give_no_grid(vector_ranking):
    notes = []
    result = draw_pictures(*open_matches(vector_ranking / "matches"), None, note=notes.append)
    assert set(result) == {"recall.png", "scores.png", "map.png"}
    assert notes == [
        "no picture grid: the images of queries and matches are not readable"
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["index", "gallery"])
def test_pictures_of_moved_inputs_are_omitted_with_a_note(vector_ranking, tmp_path, missing):
    (tmp_path / "kept").mkdir()
    shutil.move(vector_ranking / missing, tmp_path / "kept" / missing)
    try:
        notes = []
        charts = draw_charts(*open_matches(vector_ranking / "matches"), None, note=notes.append)
    finally:
        shutil.move(tmp_path / "kept" / missing, vector_ranking / missing)
    expected = {"index": ["scores"], "gallery": ["recall", "scores"]}[missing]
    assert [chart.name for chart in charts] == expected
    assert len(notes) == 3 - len(expected)
    assert all(
        note.startswith("no picture ") and str(vector_ranking / missing) in note for note in notes
    )


def test_pictures_of_a_changed_index_are_omitted(vector_ranking, monkeypatch):
    read_settings = finished_output.read_settings
    monkeypatch.setattr(
        pictures.finished_output,
        "read_settings",
        lambda folder: {**read_settings(folder), "index_sha256": "0"},
    )
    notes = []
    charts = draw_charts(*open_matches(vector_ranking / "matches"), None, note=notes.append)
    assert [chart.name for chart in charts] == ["scores"]
    assert all("has changed since" in note for note in notes)


def test_storage_failure_is_raised(vector_ranking, monkeypatch):
    def fail(*_, **__):
        raise StorageFailure("the disk is away")

    monkeypatch.setattr(pictures, "open_store", fail)
    with pytest.raises(StorageFailure):
        draw_charts(*open_matches(vector_ranking / "matches"), None, note=print)


# --- reading matches -----------------------------------------------------------------------------


def test_outcomes_hold_all_matches_and_rows_are_read_by_query(vector_ranking):
    folder, manifest = open_matches(vector_ranking / "matches")
    table = read_matches(vector_ranking)
    outcomes = read_outcomes(folder, manifest, LABELS)
    assert outcomes.query_ids == table["query_id"].unique().to_pylist()
    assert outcomes.scores.tolist() == table["score"].to_pylist()
    assert outcomes.grades.tolist() == LABELS.grades(table).tolist()
    requested = [outcomes.query_ids[-1], outcomes.query_ids[0]]
    result = read_match_rows(folder, manifest, outcomes, requested, LABELS)
    expected = [row for row in table.to_pylist() if row["query_id"] in requested]
    assert [
        {name: row[name] for name in MATCHES.schema.names}
        for query in reversed(requested) for row in result[query]
    ] == expected  # fmt: skip
    assert not read_outcomes(folder, manifest, None).has_grade.any()


def test_gallery_sample_is_independent_of_parts(vector_ranking, tmp_path, monkeypatch):
    drawn_vectors = np.random.default_rng(0).normal(size=(430, 8)).astype(np.float16)
    write_store(tmp_path / "other", drawn_vectors[:400], chunk_rows=400)
    chunked, unchunked = (open_store(open_folder(str(p / n))) for p, n in
                  ((vector_ranking, "gallery"), (tmp_path, "other")))  # fmt: skip
    assert sample_gallery(chunked, 50, 0).equals(sample_gallery(unchunked, 50, 0))
    assert not sample_gallery(chunked, 50, 0).equals(sample_gallery(chunked, 50, 1))
    assert len(sample_gallery(chunked, 1000, 0)) == 400
    monkeypatch.setattr(samples, "_CHUNKS", 2)
    assert len(sample_gallery(chunked, 1000, 0)) <= 128


# --- comparison of two rankings ------------------------------------------------------------------


def make_outcomes(ids, first, precision):
    return QueryOutcomes(
        list(ids), np.empty(0), np.empty(0, np.int16), np.array(first, np.int32),
        np.array(precision, np.float64), np.zeros(len(ids), np.int32),
    )  # fmt: skip


def test_most_changed_queries_of_both_rankings():
    before = make_outcomes("abcde", [1, 2, 1, 1, 1], [0.5, 0.5, 0.5, np.nan, 1])
    after = make_outcomes("xdcba", [9, 1, 1, 1, 1], [0, 0.5, 0.9, 0.5, 0.5])
    assert most_changed_queries(before, after) == (["b", "c"], 2)
    unchanged = make_outcomes("ab", [1, 1], [1, 1])
    assert most_changed_queries(unchanged, unchanged) == (["a", "b"], 0)
    assert most_changed_queries(unchanged, make_outcomes("c", [1], [1])) == ([], 0)
    query_ids = [f"q{number}" for number in range(99)]
    changes = most_changed_queries(
        make_outcomes(query_ids, [1] * 99, [1] * 99), make_outcomes(query_ids, [2] * 99, [0.5] * 99)
    )
    assert changes == (query_ids[:CHANGED_QUERIES], 99)


def test_before_after_pictures(photo_ranking, four_queries, tmp_path, monkeypatch):
    texts = []
    draw_text = Axes.text
    monkeypatch.setattr(Axes, "text", lambda *a, **k: texts.append(a[3]) or draw_text(*a, **k))
    rank_in_process(
        photo_ranking / "index", photo_ranking / "queries", tmp_path / "m", nprobe=1, top_k=2
    )
    notes = []
    rankings = (*open_matches(tmp_path / "m"), *open_matches(photo_ranking / "matches"))
    result = draw_before_after(*rankings, LABELS, ("one list", "two lists"), note=notes.append)
    assert next(iter(result)) == "before-after-00001.png"
    assert {"one list", "two lists"} <= set(texts)
    assert notes == []
    assert result == draw_before_after(
        *rankings, LABELS, ("one list", "two lists"), note=notes.append
    )


def test_rankings_without_common_queries_give_no_picture(photo_ranking, vector_ranking):
    notes = []
    rankings = (*open_matches(photo_ranking / "matches"), *open_matches(vector_ranking / "matches"))
    assert draw_before_after(*rankings, LABELS, ("a", "b"), note=notes.append) == {}
    assert notes == ["no picture before-after: the rankings have no query in common"]


# --- writing pictures ----------------------------------------------------------------------------


@pytest.fixture
def constant_pictures(monkeypatch):
    """Replace drawing by two constant pictures; return the number of queries of each drawing."""
    query_counts = []

    def draw(folder, manifest, ground_truth, *, note):
        query_counts.append(len(list(read_outcomes(folder, manifest, ground_truth).query_ids)))
        return {"scores.png": b"scores", "map.png": b"map"}

    monkeypatch.setattr(pictures, "draw_pictures", draw)
    return query_counts


def rank_again(vector_ranking, output, **options):
    return rank_in_process(
        vector_ranking / "index", vector_ranking / "queries", output, **RANK_OPTIONS, **options
    )


def test_pictures_requested_later_are_added_once_with_checksums(
    vector_ranking, tmp_path, constant_pictures
):
    shutil.copytree(vector_ranking / "matches", tmp_path / "m")
    before = finished_output.read_manifest(open_folder(str(tmp_path / "m"))).files
    after = rank_again(vector_ranking, tmp_path / "m", format="png").files
    assert after.keys() - before.keys() == {
        "png.sum.json", "pictures/scores.png", "pictures/map.png",
    }  # fmt: skip
    checksums = json.loads((tmp_path / "m/png.sum.json").read_text())["files"]
    assert checksums == {
        path: after[path].sha256 for path in ("pictures/scores.png", "pictures/map.png")
    }
    rank_again(vector_ranking, tmp_path / "m", format="png")
    assert constant_pictures == [30]
    assert [verdict.state for verdict in verify(open_folder(str(tmp_path / "m")))] == ["finished"]
    lines = summary(str(tmp_path / "m"), open_matches(tmp_path / "m")[1]).lines
    assert "2 pictures: pictures/" in lines


def test_altered_picture_is_detected(vector_ranking, tmp_path, constant_pictures):
    shutil.copytree(vector_ranking / "matches", tmp_path / "m")
    rank_again(vector_ranking, tmp_path / "m", format="png")
    (tmp_path / "m/pictures/map.png").write_bytes(b"mop")
    for _ in range(2):
        (verdict,) = verify(open_folder(str(tmp_path / "m")))
        assert verdict.state == "damaged"
        assert "map.png was altered" in verdict.problems[0]
        (tmp_path / "m/manifest.json").unlink(missing_ok=True)
    with pytest.raises(Damaged, match=r"map\.png was altered"):
        rank_again(vector_ranking, tmp_path / "m", format="png")


def test_writing_pictures_killed_at_any_write_resumes(
    vector_ranking, tmp_path, constant_pictures, monkeypatch
):
    shutil.copytree(vector_ranking / "matches", tmp_path / "whole")
    folder = type(open_folder(str(tmp_path)))
    write_and_move = folder._write_and_move
    writes = []
    monkeypatch.setattr(
        folder, "_write_and_move", lambda *a: writes.append(a[1]) or write_and_move(*a)
    )
    rank_again(vector_ranking, tmp_path / "whole", format="png")
    expected = read_tree(tmp_path / "whole")
    assert "pictures/map.png" in writes
    for number in range(len(writes)):
        remaining = [number]

        def die(*arguments, remaining=remaining):
            remaining[0] -= 1
            if remaining[0] < 0:
                raise KeyboardInterrupt
            return write_and_move(*arguments)

        output = tmp_path / f"m{number}"
        shutil.copytree(vector_ranking / "matches", output)
        with monkeypatch.context() as patch:
            patch.setattr(folder, "_write_and_move", die)
            with pytest.raises(KeyboardInterrupt):
                rank_again(vector_ranking, output, format="png")
        if (output / "pictures/scores.png").exists() and not (output / "png.sum.json").exists():
            (output / "pictures/scores.png").write_bytes(b"of another version")
        rank_again(vector_ranking, output, format="png")
        assert read_tree(output) == expected


def test_pictures_of_a_page_replace_previous_pictures_only(tmp_path):
    target = open_folder(str(tmp_path / "pictures"))
    write_pictures(target, {"grid-00001.png": b"1", "grid-00002.png": b"2", "map.png": b"m"})
    target.put("mine.png", b"of a person")
    write_pictures(target, {"grid-00001.png": b"3", "before-after-00001.png": b"b"})
    files = read_tree(tmp_path / "pictures")
    report_record = parse_checksummed_json(files.pop("report.json"))
    assert report_record == {"pictures": ["before-after-00001.png", "grid-00001.png"]}
    assert files == {
        "grid-00001.png": b"3", "before-after-00001.png": b"b", "mine.png": b"of a person",
    }  # fmt: skip
