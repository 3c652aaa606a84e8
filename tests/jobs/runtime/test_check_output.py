"""An --output is refused before any work, and one that lies among the photos settles."""

import dataclasses
import os
from pathlib import Path

import pytest

from jobs.commands import run
from jobs.config.settings import (
    CompareSettings,
    EmbedSettings,
    IndexSettings,
    PredictSettings,
    RankSettings,
    RunSettings,
    TrainSettings,
)
from jobs.runtime.check_output import check_file, check_inputs_outside
from retrieval.core.errors import UsageError
from retrieval.storage.local import LocalFolder, open_folder
from retrieval.storage.verify import verify
from tests.commands import lookalike_here
from tests.conftest import draw_photos
from tests.jobs.here import without_ray
from tests.retrieval.storage.outputs import job
from tests.trees import tree


def apart(kind, output, **inputs):
    check_inputs_outside(
        kind(output=str(output), **{name: str(value) for name, value in inputs.items()})
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with photos in it, a link to them, and another folder beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/cats", "other", "q"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "gallery", "said"),
    [
        ("photos", "photos", "is --gallery photos"),
        ("photos/", "./photos", "is --gallery"),
        ("link", "photos", "is --gallery photos"),
        ("photos", "link", "is --gallery link"),
        ("{home}/other/../photos", "link/.", "is --gallery"),
        ("file://{home}/photos", "photos", "is --gallery"),
        (".", "photos", "contains --gallery photos"),
        ("photos", "link/cats", "contains --gallery link/cats"),
        ("s3://bucket/photos/", "s3a://bucket//photos", "is --gallery"),
        ("gs://bucket/a", "gcs://bucket/a/photos", "contains --gallery"),
    ],
)
def test_an_output_that_is_or_holds_an_input_is_refused(home, output, gallery, said):
    output = output.format(home=home)
    with pytest.raises(UsageError, match=said):
        apart(RunSettings, output, gallery=gallery, queries="memory://q")
    with pytest.raises(UsageError, match=said.replace("gallery", "queries")):
        apart(RunSettings, output, gallery="memory://q", queries=gallery)


@pytest.mark.parametrize(
    ("output", "gallery"),
    [
        ("photos/result", "photos"),
        ("link/result", "photos"),
        ("other", "photos"),
        ("photo", "photos"),
        ("photos/cats2", "photos/cats"),
        ("s3://bucket/photos/result", "s3://bucket/photos"),
        ("s3://bucket/photo", "s3://bucket/photos"),
        ("s3://other/photos", "s3://bucket/photos"),
        ("photos", "s3://bucket/photos"),
    ],
)
def test_an_output_beside_or_in_an_input_is_not(home, output, gallery):
    apart(RunSettings, output, gallery=gallery, queries="q")


def test_every_input_of_every_command_counts(home):
    for kind, names in [
        (EmbedSettings, ("input",)), (IndexSettings, ("embeddings",)),
        (RankSettings, ("index", "queries")), (TrainSettings, ("data",)),
        (CompareSettings, ("data",)), (PredictSettings, ("input",)),
    ]:  # fmt: skip
        for name in names:
            inputs = dict.fromkeys(names, "q") | {name: "photos"}
            more = {"bundle": "b"} if kind is PredictSettings else {}
            with pytest.raises(UsageError, match=f"is --{name} photos"):
                apart(kind, "photos", **inputs, **more)


def test_files_are_not_written_into_an_output(tmp_path):
    job(LocalFolder(str(tmp_path / "out")))
    before = tree(tmp_path / "out")
    out, page = tmp_path / "out", tmp_path / "out/matches/better.html"
    for words in (
        ("report", "--matches", out / "matches", "--output", page),
        ("report", "--matches", out / "matches", "--output", out / "report.html"),
        ("evaluate", "--matches", out / "matches", "--per-query", out / "x.csv"),
        ("index", "--embeddings", out / "gallery", "--output", tmp_path / "i", "--export-faiss",
         out / "whole.faiss"),
        ("train", "--data", tmp_path / "photos", "--output", tmp_path / "m", "--cache",
         tmp_path / "m" / "cache"),
    ):  # fmt: skip
        ended = lookalike_here(*words)
        assert ended.code == 2, ended.err
        assert "an output of lookalike" in ended.error
    assert tree(tmp_path / "out") == before
    check_file("--output", str(tmp_path / "page.html"), output=str(tmp_path / "other"))


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--gallery", "nowhere", "--queries", "nowhere"),
        ("embed", "--input", "nowhere"),
        ("index", "--embeddings", "nowhere"),
        ("rank", "--index", "nowhere", "--queries", "nowhere"),
        ("train", "--data", "nowhere"),
        ("predict", "--input", "nowhere", "--bundle", "nowhere"),
        ("compare", "--data", "nowhere", "--backbones", "resnet18"),
    ],
)
def test_an_occupied_output_is_refused_before_any_input_is_looked_at(tmp_path, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    ended = lookalike_here(*words, "--output", tmp_path / "full")
    assert ended.code == 2
    assert "letter.txt" in ended.error
    (tmp_path / "full" / "letter.txt").rename(tmp_path / "full" / ".DS_Store")
    ended = lookalike_here(*words, "--output", tmp_path / "full")
    assert ended.code == 3, ended.err  # the input that is missing


def test_a_demo_looks_at_all_it_will_write_before_it_draws(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "letter.txt").write_text("dear")
    ended = lookalike_here("demo", "--output", tmp_path)
    assert ended.code == 2
    assert os.listdir(tmp_path) == ["result"]


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """Settings of a run whose output lies in its gallery, beside what a Mac leaves there."""
    root = tmp_path_factory.mktemp("self")
    gallery = draw_photos(root / "self", 6)
    for photo in list(gallery.rglob("*.jpg")):
        photo.with_name(f"._{photo.name}").write_bytes(b"\0\5\16\7")
    (gallery / "class0/.ipynb_checkpoints").mkdir()
    (gallery / "class0/.ipynb_checkpoints/a.jpg").write_bytes(b"x")
    (gallery / "result").mkdir()
    (gallery / "result/.DS_Store").write_bytes(b"x")
    settings = RunSettings(
        gallery=str(gallery), queries=str(draw_photos(root / "queries", 3, seed=1)),
        output=str(gallery / "result"), format="png,html,csv", backbone="scratch",
        weights="random", image_size=32, top_k=3,
    )  # fmt: skip
    with without_ray():
        ran = run.run(settings)
    assert ran.matches.counts["gallery"] == 6
    return settings


def test_an_output_in_its_own_gallery_settles_however_it_is_named(settled, monkeypatch, capsys):
    root = Path(settled.gallery)
    before = tree(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.chdir(root.parent)
    with without_ray():
        for gallery, output in (
            (settled.gallery, settled.output), ("self", "self/result"),
            ("./self/", "self/../self/result/"), (f"file://{root}", f"file://{root}/result"),
        ):  # fmt: skip
            again = dataclasses.replace(settled, gallery=gallery, output=output)
            assert run.run(again).matches.counts["gallery"] == 6
            said = capsys.readouterr().err
            assert "nothing to do" in said
            assert "folders that lookalike wrote: 1 (such as result)" in said
            assert "hidden files: 6 (such as ._photo" in said
    assert tree(root) == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_every_command_reads_a_result_in_which_a_mac_has_been(settled, tmp_path):
    out = Path(settled.output)
    for path in list(out.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(b"x")
        path.with_name(".DS_Store").write_bytes(b"x")
    try:
        assert {verdict.state for verdict in verify(open_folder(str(out)))} == {"finished"}
        matches = out / "matches"
        assert lookalike_here("evaluate", "--matches", matches).code == 0
        page = tmp_path / "report.html"
        assert lookalike_here("report", "--matches", matches, "--output", page).code == 0
        with without_ray():
            assert run.run(settled).result.exit_code == 0
    finally:
        for path in [*out.rglob("._*"), *out.rglob(".DS_Store")]:
            path.unlink()


def test_pictures_beside_a_page_are_no_photos(settled):
    root = Path(settled.gallery)
    page = root / "page.html"
    words = ("report", "--matches", Path(settled.output) / "matches", "--output", page)
    ended = lookalike_here(*words, "--format", "png")
    assert ended.code == 0, ended.err
    assert list((root / "page_pictures").glob("*.png"))
    with without_ray():
        assert run.run(settled).matches.counts["gallery"] == 6
