"""Test the checks of `--output` before any work, and an output inside the gallery."""

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
from tests.commands import run_command_in_process
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.retrieval.storage.outputs import make_run_output


def check_settings(settings_class, output, **inputs):
    check_inputs_outside(
        settings_class(output=str(output), **{name: str(value) for name, value in inputs.items()})
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a folder with photos, a link to them, and two other folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/cats", "other", "q"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "gallery", "message"),
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
def test_output_that_is_or_contains_an_input_is_refused(home, output, gallery, message):
    output = output.format(home=home)
    with pytest.raises(UsageError, match=message):
        check_settings(RunSettings, output, gallery=gallery, queries="memory://q")
    with pytest.raises(UsageError, match=message.replace("gallery", "queries")):
        check_settings(RunSettings, output, gallery="memory://q", queries=gallery)


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
def test_output_beside_or_inside_an_input_is_accepted(home, output, gallery):
    check_settings(RunSettings, output, gallery=gallery, queries="q")


def test_all_inputs_of_all_commands_are_checked(home):
    for settings_class, names in [
        (EmbedSettings, ("input",)), (IndexSettings, ("embeddings",)),
        (RankSettings, ("index", "queries")), (TrainSettings, ("data",)),
        (CompareSettings, ("data",)), (PredictSettings, ("input",)),
    ]:  # fmt: skip
        for name in names:
            inputs = dict.fromkeys(names, "q") | {name: "photos"}
            extra = {"bundle": "b"} if settings_class is PredictSettings else {}
            with pytest.raises(UsageError, match=f"is --{name} photos"):
                check_settings(settings_class, "photos", **inputs, **extra)


def test_files_inside_an_output_are_refused(tmp_path):
    make_run_output(LocalFolder(str(tmp_path / "out")))
    before = read_tree(tmp_path / "out")
    output, page = tmp_path / "out", tmp_path / "out/matches/better.html"
    for arguments in (
        ("report", "--matches", output / "matches", "--output", page),
        ("report", "--matches", output / "matches", "--output", output / "report.html"),
        ("evaluate", "--matches", output / "matches", "--per-query", output / "x.csv"),
        ("index", "--embeddings", output / "gallery", "--output", tmp_path / "i", "--export-faiss",
         output / "whole.faiss"),
        ("train", "--data", tmp_path / "photos", "--output", tmp_path / "m", "--cache",
         tmp_path / "m" / "cache"),
    ):  # fmt: skip
        result = run_command_in_process(*arguments)
        assert result.exit_code == 2, result.stderr
        assert "an output of lookalike" in result.error
    assert read_tree(tmp_path / "out") == before
    check_file("--output", str(tmp_path / "page.html"), output=str(tmp_path / "other"))


@pytest.mark.parametrize(
    "arguments",
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
def test_occupied_output_is_refused_before_inputs_are_read(tmp_path, arguments):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    result = run_command_in_process(*arguments, "--output", tmp_path / "full")
    assert result.exit_code == 2
    assert "letter.txt" in result.error
    (tmp_path / "full" / "letter.txt").rename(tmp_path / "full" / ".DS_Store")
    result = run_command_in_process(*arguments, "--output", tmp_path / "full")
    assert result.exit_code == 3, result.stderr  # the input is missing


def test_demo_checks_all_outputs_before_drawing(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "letter.txt").write_text("dear")
    result = run_command_in_process("demo", "--output", tmp_path)
    assert result.exit_code == 2
    assert os.listdir(tmp_path) == ["result"]


@pytest.fixture(scope="module")
def nested_settings(tmp_path_factory):
    """Return settings of a finished run whose output is inside the gallery, with macOS files."""
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
        outcome = run.run(settings)
    assert outcome.matches.counts["gallery"] == 6
    return settings


def test_output_inside_the_gallery_is_not_listed_again(nested_settings, monkeypatch, capsys):
    root = Path(nested_settings.gallery)
    before = read_tree(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.chdir(root.parent)
    with without_ray():
        for gallery, output in (
            (nested_settings.gallery, nested_settings.output), ("self", "self/result"),
            ("./self/", "self/../self/result/"), (f"file://{root}", f"file://{root}/result"),
        ):  # fmt: skip
            settings = dataclasses.replace(nested_settings, gallery=gallery, output=output)
            assert run.run(settings).matches.counts["gallery"] == 6
            message = capsys.readouterr().err
            assert "nothing to do" in message
            assert "folders that lookalike wrote: 1 (such as result)" in message
            assert "hidden files: 6 (such as ._photo" in message
    assert read_tree(root) == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_outputs_with_macos_files_are_readable(nested_settings, tmp_path):
    output = Path(nested_settings.output)
    for path in list(output.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(b"x")
        path.with_name(".DS_Store").write_bytes(b"x")
    try:
        assert {verdict.state for verdict in verify(open_folder(str(output)))} == {"finished"}
        matches = output / "matches"
        assert run_command_in_process("evaluate", "--matches", matches).exit_code == 0
        page = tmp_path / "report.html"
        assert (
            run_command_in_process("report", "--matches", matches, "--output", page).exit_code == 0
        )
        with without_ray():
            assert run.run(nested_settings).result.exit_code == 0
    finally:
        for path in [*output.rglob("._*"), *output.rglob(".DS_Store")]:
            path.unlink()


def test_report_pictures_are_not_listed_as_photos(nested_settings):
    root = Path(nested_settings.gallery)
    page = root / "page.html"
    arguments = ("report", "--matches", Path(nested_settings.output) / "matches", "--output", page)
    result = run_command_in_process(*arguments, "--format", "png")
    assert result.exit_code == 0, result.stderr
    assert list((root / "page_pictures").glob("*.png"))
    with without_ray():
        assert run.run(nested_settings).matches.counts["gallery"] == 6
