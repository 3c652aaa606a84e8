"""Test pictures of finished matches: files, omissions with notes, and replacement.

Without Ray.
"""

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
from tests.jobs.here import embed_here, index_here, rank_here
from tests.stores import write_store
from tests.trees import tree

LABELS = Labels(GALLERY_LABELS.schema.empty_table())  # those in the matches
ASKED = {"nprobe": 2, "top_k": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos of three classes, ranked where few lists are read."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        embed_here(draw_photos(root / "photos", 60), root / "gallery", chunk_rows=16)
        embed_here(draw_photos(root / "asked", 5, seed=1), root / "queries")
        index_here(root / "gallery", root / "index", index_factory="IVF6,SQfp16")
        rank_here(root / "index", root / "queries", root / "matches", **ASKED)
    return root


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """The same of vectors whose images are nowhere."""
    root = tmp_path_factory.mktemp("vectors")
    drawn = np.random.default_rng(0).normal(size=(430, 8)).astype(np.float16)
    write_store(root / "gallery", drawn[:400], chunk_rows=64)
    write_store(root / "queries", drawn[400:], chunk_rows=25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_ALL_ROWS", 0)
        index_here(root / "gallery", root / "index", index_factory="IVF12,SQfp16")
        rank_here(root / "index", root / "queries", root / "matches", **ASKED)
    return root


def opened(path):
    folder = open_folder(str(path))
    return folder, finished_output.read_manifest(folder, kind="matches")


def table_of(path):
    return pq.read_table(path / "matches" / "matches", schema=MATCHES.schema)


# --- which there are -----------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Four queries a picture instead of a dozen."""
    monkeypatch.setattr(contact_sheets, "MAX_QUERIES", 4)
    monkeypatch.setattr(contact_sheets, "WORST_QUERIES", 4)


def test_there_are_grids_and_charts_and_they_are_the_same_each_time(made, few):
    notes = []
    found = draw_pictures(*opened(made / "matches"), LABELS, note=notes.append)
    draw_grids = [name for name in found if name.startswith("grid-")]
    standings = read_outcomes(*opened(made / "matches"), LABELS)
    assert draw_grids == [f"grid-{number:05d}.png" for number in range(1, len(draw_grids) + 1)]
    assert len(draw_grids) == 2 + bool(standings.worst(1))  # five queries, and the worst
    assert set(found) - set(draw_grids) == {"recall.png", "scores.png", "map.png"}
    assert notes == []
    again = draw_pictures(*opened(made / "matches"), LABELS, note=notes.append)
    assert again == found
    for data in found.values():
        assert Image.open(io.BytesIO(data)).format == "PNG"


def test_the_charts_of_the_page_say_what_the_matches_hold(made):
    notes = []
    charts = draw_charts(*opened(made / "matches"), LABELS, note=notes.append)
    assert [chart.name for chart in charts] == ["recall", "scores", "map"]
    table = table_of(made)
    right = sum(a == b for a, b in zip(table["query_label"], table["label"], strict=True))
    assert f"{right} right" in charts[1].alt
    assert charts[2].title == "Map of 60 images"
    assert notes == []


def test_a_grid_shows_each_match_with_its_distance_and_sign(made, few, monkeypatch):
    said = []
    write = Axes.text
    monkeypatch.setattr(Axes, "text", lambda *a, **k: said.append(a[3]) or write(*a, **k))
    matches = opened(made / "matches")
    drawn = draw_grids(*matches, read_outcomes(*matches, LABELS), LABELS, print, 0)
    assert next(iter(drawn)) == "grid-00001.png"
    assert "Queries 1 to 4 of 5" in said
    assert "Query 5 of 5" in said
    rows = [row for row in table_of(made).to_pylist() if row["query_id"] == "class0/photo0000.jpg"]
    at = said.index("photo0000.jpg")
    assert said[at - 1] == "class0"
    expected = [
        text for row in rows
        for text in (
            ("✓ " if row["label"] == "class0" else "✗ ") + row["label"],
            f"{max(0, 1 - row['score']):.3f}",
        )
    ]  # fmt: skip
    assert said[at + 1 : at + 1 + len(expected)] == expected


def test_all_lists_read_is_no_curve(made, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheets, "_photos", lambda lists: {})
    rank_here(made / "index", made / "queries", tmp_path / "m", nprobe=6, top_k=3)
    notes = []
    found = draw_pictures(*opened(tmp_path / "m"), None, note=notes.append)
    assert set(found) == {"scores.png", "map.png"}
    assert len(notes) == 1  # the images


def test_without_images_there_is_no_grid_and_a_map_of_dots(vectors):
    notes = []
    found = draw_pictures(*opened(vectors / "matches"), None, note=notes.append)
    assert set(found) == {"recall.png", "scores.png", "map.png"}
    assert notes == [
        "no picture grid: the images of queries and matches are not readable"
    ]  # fmt: skip


@pytest.mark.parametrize("gone", ["index", "gallery"])
def test_what_has_moved_is_left_out_and_said(vectors, tmp_path, gone):
    (tmp_path / "kept").mkdir()
    shutil.move(vectors / gone, tmp_path / "kept" / gone)
    try:
        notes = []
        charts = draw_charts(*opened(vectors / "matches"), None, note=notes.append)
    finally:
        shutil.move(tmp_path / "kept" / gone, vectors / gone)
    left = {"index": ["scores"], "gallery": ["recall", "scores"]}[gone]
    assert [chart.name for chart in charts] == left
    assert len(notes) == 3 - len(left)
    assert all(note.startswith("no picture ") and str(vectors / gone) in note for note in notes)


def test_an_index_that_has_changed_since_is_not_that_of_the_matches(vectors, monkeypatch):
    read = finished_output.read_settings
    monkeypatch.setattr(
        pictures.finished_output,
        "read_settings",
        lambda folder: {**read(folder), "index_sha256": "0"},
    )
    notes = []
    charts = draw_charts(*opened(vectors / "matches"), None, note=notes.append)
    assert [chart.name for chart in charts] == ["scores"]
    assert all("has changed since" in note for note in notes)


def test_a_store_that_fails_for_now_is_no_picture_less(vectors, monkeypatch):
    def fails(*_, **__):
        raise StorageFailure("the disk is away")

    monkeypatch.setattr(pictures, "open_store", fails)
    with pytest.raises(StorageFailure):
        draw_charts(*opened(vectors / "matches"), None, note=print)


# --- how they are read ---------------------------------------------------------------------------


def test_standings_hold_every_match_and_rows_are_found_again(vectors):
    folder, manifest = opened(vectors / "matches")
    table = table_of(vectors)
    standings = read_outcomes(folder, manifest, LABELS)
    assert standings.query_ids == table["query_id"].unique().to_pylist()
    assert standings.scores.tolist() == table["score"].to_pylist()
    assert standings.grades.tolist() == LABELS.grades(table).tolist()
    wanted = [standings.query_ids[-1], standings.query_ids[0]]
    found = read_match_rows(folder, manifest, standings, wanted, LABELS)
    expected = [row for row in table.to_pylist() if row["query_id"] in wanted]
    assert [
        {name: row[name] for name in MATCHES.schema.names}
        for query in reversed(wanted) for row in found[query]
    ] == expected  # fmt: skip
    assert not read_outcomes(folder, manifest, None).has_grade.any()


def test_the_sample_of_a_gallery_does_not_depend_on_its_parts(vectors, tmp_path, monkeypatch):
    drawn = np.random.default_rng(0).normal(size=(430, 8)).astype(np.float16)
    write_store(tmp_path / "other", drawn[:400], chunk_rows=400)
    one, other = (open_store(open_folder(str(p / n))) for p, n in
                  ((vectors, "gallery"), (tmp_path, "other")))  # fmt: skip
    assert sample_gallery(one, 50, 0).equals(sample_gallery(other, 50, 0))
    assert not sample_gallery(one, 50, 0).equals(sample_gallery(one, 50, 1))
    assert len(sample_gallery(one, 1000, 0)) == 400
    monkeypatch.setattr(samples, "_CHUNKS", 2)
    assert len(sample_gallery(one, 1000, 0)) <= 128


# --- before and after ----------------------------------------------------------------------------


def standings(ids, first, precision):
    return QueryOutcomes(
        list(ids), np.empty(0), np.empty(0, np.int16), np.array(first, np.int32),
        np.array(precision, np.float64), np.zeros(len(ids), np.int32),
    )  # fmt: skip


def test_queries_that_changed_most_come_first_and_only_those_of_both():
    before = standings("abcde", [1, 2, 1, 1, 1], [0.5, 0.5, 0.5, np.nan, 1])
    after = standings("xdcba", [9, 1, 1, 1, 1], [0, 0.5, 0.9, 0.5, 0.5])
    assert most_changed_queries(before, after) == (["b", "c"], 2)
    same = standings("ab", [1, 1], [1, 1])
    assert most_changed_queries(same, same) == (["a", "b"], 0)
    assert most_changed_queries(same, standings("c", [1], [1])) == ([], 0)
    many = [f"q{number}" for number in range(99)]
    worse = most_changed_queries(
        standings(many, [1] * 99, [1] * 99), standings(many, [2] * 99, [0.5] * 99)
    )
    assert worse == (many[:CHANGED_QUERIES], 99)


def test_two_rankings_are_drawn_side_by_side(made, few, tmp_path, monkeypatch):
    said = []
    write = Axes.text
    monkeypatch.setattr(Axes, "text", lambda *a, **k: said.append(a[3]) or write(*a, **k))
    rank_here(made / "index", made / "queries", tmp_path / "m", nprobe=1, top_k=2)
    notes = []
    both = (*opened(tmp_path / "m"), *opened(made / "matches"))
    found = draw_before_after(*both, LABELS, ("one list", "two lists"), note=notes.append)
    assert next(iter(found)) == "before-after-00001.png"
    assert {"one list", "two lists"} <= set(said)
    assert notes == []
    assert found == draw_before_after(*both, LABELS, ("one list", "two lists"), note=notes.append)


def test_two_rankings_without_a_query_in_common_are_no_picture(made, vectors):
    notes = []
    both = (*opened(made / "matches"), *opened(vectors / "matches"))
    assert draw_before_after(*both, LABELS, ("a", "b"), note=notes.append) == {}
    assert notes == ["no picture before-after: the rankings have no query in common"]


# --- how they are kept ---------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch):
    """Two pictures that take no time; gives how often they were drawn."""
    times = []

    def draw(folder, manifest, ground_truth, *, note):
        times.append(len(list(read_outcomes(folder, manifest, ground_truth).query_ids)))
        return {"scores.png": b"scores", "map.png": b"map"}

    monkeypatch.setattr(pictures, "draw_pictures", draw)
    return times


def rank_again(vectors, output, **more):
    return rank_here(vectors / "index", vectors / "queries", output, **ASKED, **more)


def test_pictures_asked_for_later_are_added_once_and_named_with_their_checksums(
    vectors, tmp_path, two
):
    shutil.copytree(vectors / "matches", tmp_path / "m")
    before = finished_output.read_manifest(open_folder(str(tmp_path / "m"))).files
    after = rank_again(vectors, tmp_path / "m", format="png").files
    assert after.keys() - before.keys() == {
        "png.sum.json", "pictures/scores.png", "pictures/map.png",
    }  # fmt: skip
    sums = json.loads((tmp_path / "m/png.sum.json").read_text())["files"]
    assert sums == {
        path: after[path].sha256 for path in ("pictures/scores.png", "pictures/map.png")
    }
    rank_again(vectors, tmp_path / "m", format="png")
    assert two == [30]
    assert [verdict.state for verdict in verify(open_folder(str(tmp_path / "m")))] == ["finished"]
    lines = summary(str(tmp_path / "m"), opened(tmp_path / "m")[1]).lines
    assert "2 pictures: pictures/" in lines


def test_an_altered_picture_is_found_in_finished_and_unfinished_matches(vectors, tmp_path, two):
    shutil.copytree(vectors / "matches", tmp_path / "m")
    rank_again(vectors, tmp_path / "m", format="png")
    (tmp_path / "m/pictures/map.png").write_bytes(b"mop")
    for _ in range(2):
        (verdict,) = verify(open_folder(str(tmp_path / "m")))
        assert verdict.state == "damaged"
        assert "map.png was altered" in verdict.problems[0]
        (tmp_path / "m/manifest.json").unlink(missing_ok=True)
    with pytest.raises(Damaged, match=r"map\.png was altered"):
        rank_again(vectors, tmp_path / "m", format="png")


def test_killed_at_any_moment_while_pictures_are_put_it_ends_the_same(
    vectors, tmp_path, two, monkeypatch
):
    shutil.copytree(vectors / "matches", tmp_path / "whole")
    folder = type(open_folder(str(tmp_path)))
    put = folder._write_and_move
    moments = []
    monkeypatch.setattr(folder, "_write_and_move", lambda *a: moments.append(a[1]) or put(*a))
    rank_again(vectors, tmp_path / "whole", format="png")
    expected = tree(tmp_path / "whole")
    assert "pictures/map.png" in moments
    for moment in range(len(moments)):
        left = [moment]

        def dies(*given, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return put(*given)

        output = tmp_path / f"m{moment}"
        shutil.copytree(vectors / "matches", output)
        with monkeypatch.context() as patch:
            patch.setattr(folder, "_write_and_move", dies)
            with pytest.raises(KeyboardInterrupt):
                rank_again(vectors, output, format="png")
        if (output / "pictures/scores.png").exists() and not (output / "png.sum.json").exists():
            (output / "pictures/scores.png").write_bytes(b"of another version")
        rank_again(vectors, output, format="png")
        assert tree(output) == expected


def test_pictures_beside_a_page_replace_those_of_before_and_nothing_else(tmp_path):
    target = open_folder(str(tmp_path / "pictures"))
    write_pictures(target, {"grid-00001.png": b"1", "grid-00002.png": b"2", "map.png": b"m"})
    target.put("mine.png", b"of a person")
    write_pictures(target, {"grid-00001.png": b"3", "before-after-00001.png": b"b"})
    laid = tree(tmp_path / "pictures")
    mark = parse_checksummed_json(laid.pop("report.json"))
    assert mark == {"pictures": ["before-after-00001.png", "grid-00001.png"]}
    assert laid == {
        "grid-00001.png": b"3", "before-after-00001.png": b"b", "mine.png": b"of a person",
    }  # fmt: skip
