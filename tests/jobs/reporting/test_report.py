"""Test `report`: single file or folder, resuming, and deterministic bytes."""

import shutil
from dataclasses import replace

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import ReportSettings
from jobs.reporting import report
from jobs.reporting import write_report as writing
from jobs.reporting.write_report import ReportSource, write_report
from retrieval.core.errors import UsageError
from retrieval.core.schemas import GALLERY_LABELS
from retrieval.evaluation.labels import Labels
from retrieval.report import contact_sheet, page_slices, thumbnails
from retrieval.storage import folder, transaction
from retrieval.storage.finished_output import read_manifest
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.sample_matches import write_matches

LABELS = Labels(GALLERY_LABELS.schema.empty_table())  # use the labels in the matches
QUERIES, TOP_K, MAX_IMAGES = 120, 5, 200  # 600 images exceed the limit of a single file


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def matches_root(tmp_path_factory):
    """Write matches of 120 queries with 12 photos, one of which cannot be read."""
    root = tmp_path_factory.mktemp("matches")
    photos = sorted(str(path) for path in draw_photos(root / "photos", 12).rglob("*.jpg"))
    open(photos[5], "wb").close()
    names = sorted(f"{root}/photos/q{number:04}.jpg" for number in range(QUERIES - 1))
    write_matches(root / "m", names, photos, top_k=TOP_K, failed=(photos[5],), block=40)
    write_matches(root / "few", names[:20], photos, top_k=TOP_K)
    write_matches(root / "none", [], photos)
    return root


@pytest.fixture(autouse=True)
def in_process(request):
    """Run all stages in this process, except in tests that use Ray.

    This does not use the fixture `monkeypatch`, whose teardown would come later and undo it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contact_sheet, "MAX_SINGLE_FILE_IMAGES", MAX_IMAGES)
        if "local_ray" in request.fixturenames:
            yield
        else:
            with without_ray():
                yield


def make_report(matches, output, **settings):
    report.start(ReportSettings(matches=str(matches), output=str(output), **settings))
    return output.read_text()


def test_few_queries_give_a_single_file(matches_root, tmp_path):
    page = make_report(matches_root / "few", tmp_path / "report.html", title="A <title>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert page.count('<article class="query"') == 20
    assert "A &lt;title&gt;" in page
    assert page.count("<image id=") == 11  # no query image can be read
    assert page.count("Top-1 right") + page.count("Top-1 wrong") == 20


def test_many_queries_give_a_deterministic_folder(matches_root, tmp_path, monkeypatch):
    page = make_report(matches_root / "m", tmp_path / "one/report.html")
    assert page.count('<article class="query') == 50
    files = read_tree(tmp_path / "one")
    pages = [f"report_files/pages/{number:05d}.html" for number in range(2, 4)]
    chunks = [f"report_files/chunks/{number:05d}.js" for number in range(5)]
    assert files.keys() >= {*pages, *chunks, "report_files/facets.js", "report_files/report.json"}
    assert sum(path.endswith(".jpg") for path in files) == 11
    # in reverse order, with all slices as cluster tasks
    for limit_name in ("LOCAL_IMAGE_LIMIT", "_LOCAL_QUERY_LIMIT"):
        monkeypatch.setattr(writing, limit_name, 0)
    monkeypatch.setattr(
        writing.tasks, "run_tasks", lambda _, function, items: map(function, reversed([*items]))
    )
    make_report(matches_root / "m", tmp_path / "two/report.html")
    assert read_tree(tmp_path / "two") == files
    # overwriting the same report
    make_report(matches_root / "m", tmp_path / "two/report.html")
    assert read_tree(tmp_path / "two") == files


def test_report_with_ray_is_identical(matches_root, tmp_path, local_ray, monkeypatch):
    make_report(matches_root / "m", tmp_path / "one/report.html")
    for limit_name in ("LOCAL_IMAGE_LIMIT", "_LOCAL_QUERY_LIMIT"):
        monkeypatch.setattr(writing, limit_name, 0)
    monkeypatch.setattr(writing, "PER_SLICE", 50)
    make_report(matches_root / "m", tmp_path / "two/report.html", workers=2)
    for path in (tmp_path / "two/report_files/chunks").glob("*.json"):
        path.unlink()  # of another slice size
    (tmp_path / "one/report_files/chunks/00000.json").unlink()
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


def test_each_image_is_read_once(matches_root, tmp_path, monkeypatch):
    read = []

    def on_operation(when, operation, path):
        if when == "before" and operation == "read" and "/photos/" in path:
            read.append(path)

    monkeypatch.setattr(folder, "fault_hook", on_operation)
    make_report(matches_root / "m", tmp_path / "report.html")
    assert len(read) == len(set(read)) > 12
    read.clear()
    render_calls = []
    monkeypatch.setattr(
        page_slices, "render_further_pages", lambda *arguments: render_calls.append(arguments)
    )
    make_report(matches_root / "m", tmp_path / "report.html")
    assert read == render_calls == []


@pytest.mark.parametrize(
    "kill_points",
    [(2, 14, 25), pytest.param((9, 16, 20, 23), marks=pytest.mark.nightly)],
)
def test_killed_report_resumes(matches_root, tmp_path, kill_points):
    """Kill at some of 25 written files; the first is the write test, the last the page."""
    make_report(matches_root / "m", tmp_path / "whole/report.html")
    expected = read_tree(tmp_path / "whole")
    for write_number in kill_points:
        remaining = [write_number]

        def die(when, operation, path, remaining=remaining):
            remaining[0] -= when == "before" and operation == "replace"
            if remaining[0] <= 0:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "fault_hook", die)
            with pytest.raises(Killed):
                make_report(matches_root / "m", tmp_path / "two/report.html")
        assert not (tmp_path / "two/report.html").exists()
        make_report(matches_root / "m", tmp_path / "two/report.html")
        assert read_tree(tmp_path / "two") == expected
        shutil.rmtree(tmp_path / "two")


def test_altered_or_missing_report_files_are_rewritten(matches_root, tmp_path):
    make_report(matches_root / "m", tmp_path / "report.html")
    expected = read_tree(tmp_path)
    for path in ("thumbnails/0000/003.jpg", "chunks/00002.js", "facets.js", "report.json"):
        file = tmp_path / "report_files" / path
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        make_report(matches_root / "m", tmp_path / "report.html")
        assert read_tree(tmp_path) == expected
        file.unlink()
        make_report(matches_root / "m", tmp_path / "report.html")
        assert read_tree(tmp_path) == expected


def test_files_of_previous_reports_are_removed(matches_root, tmp_path):
    make_report(matches_root / "m", tmp_path / "a/report.html")
    make_report(matches_root / "few", tmp_path / "a/report.html")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["report.html"]
    photos = sorted(str(path) for path in (matches_root / "photos").rglob("*.jpg"))
    names = [f"/none/{number:05}.jpg" for number in range(180)]
    write_matches(tmp_path / "more", names, photos)
    make_report(tmp_path / "more", tmp_path / "a/report.html")
    make_report(matches_root / "m", tmp_path / "a/report.html")
    make_report(matches_root / "m", tmp_path / "b/report.html")
    assert read_tree(tmp_path / "a") == read_tree(tmp_path / "b")
    # a new title renders the pages again with the same thumbnails
    before = (tmp_path / "a/report_files/thumbnails/0000/003.jpg").stat().st_mtime_ns
    page = make_report(matches_root / "m", tmp_path / "a/report.html", title="Another")
    assert "Another" in page
    assert "Another" in (tmp_path / "a/report_files/pages/00002.html").read_text()
    assert (tmp_path / "a/report_files/thumbnails/0000/003.jpg").stat().st_mtime_ns == before


def test_foreign_folder_is_not_changed(matches_root, tmp_path):
    (tmp_path / "report_files").mkdir()
    (tmp_path / "report_files/jquery.js").write_text("theirs")
    with pytest.raises(
        UsageError, match=r"report_files contains files that do not belong to a report"
    ):
        make_report(matches_root / "m", tmp_path / "report.html")
    assert read_tree(tmp_path) == {"report_files/jquery.js": b"theirs"}
    make_report(matches_root / "few", tmp_path / "report.html")
    assert (tmp_path / "report_files/jquery.js").read_text() == "theirs"


def test_unwritable_output_is_refused_before_any_work(matches_root, tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "make_thumbnail", None)
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file/report.html", f"{tmp_path}/new/"):
        with pytest.raises(UsageError, match=r"--output .* (is a folder|cannot be written)"):
            report.start(ReportSettings(matches=str(matches_root / "few"), output=str(output)))


@pytest.mark.parametrize("formats", [",", "pdf", "html,pdf"])
def test_unknown_format_is_refused(matches_root, tmp_path, formats):
    with pytest.raises(UsageError, match=r"--format '(pdf)?': use one or both of html,png"):
        make_report(matches_root / "few", tmp_path / "report.html", format=formats)


def test_result_names_the_pictures_folder(matches_root, tmp_path):
    settings = ReportSettings(
        matches=str(matches_root / "few"), output=f"{tmp_path}/r.html", format="png"
    )
    assert report.start(settings).values == {"pictures": f"{tmp_path}/r_pictures"}


def test_matches_without_queries(matches_root, tmp_path):
    assert "There are no queries." in make_report(matches_root / "none", tmp_path / "report.html")


def test_max_queries_keeps_the_measures_of_all_queries(matches_root, tmp_path):
    page = make_report(matches_root / "m", tmp_path / "report.html", max_queries=4)
    assert page.count('<article class="query"') == 3
    assert page.count('<article class="query failed"') == 1
    assert "4 of 120 queries" in page
    full_page = make_report(matches_root / "m", tmp_path / "whole.html")
    card = '<dd class="value">'
    assert page.split(card)[1][:5] == full_page.split(card)[1][:5]


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("is_finished", [True, False])
def test_verify_detects_a_flipped_bit_in_each_report_file(matches_root, tmp_path, is_finished):
    output = tmp_path / "m"
    shutil.copytree(matches_root / "m", output)
    for name in ("manifest.json", "files.parquet"):
        (output / name).unlink()
    output_folder = open_folder(str(output))
    manifest = read_manifest(open_folder(str(matches_root / "m")))
    write_report(
        Cluster("nowhere", 1),
        ReportSource(output_folder, manifest, None, LABELS),
        output_folder,
        "report.html",
    )
    if is_finished:
        transaction.finish_output(output_folder, "matches", manifest.counts)
    (verdict,) = verify(output_folder)
    assert verdict.state == ("finished" if is_finished else "unfinished")
    for path in (
        "report.html", "report_files/facets.js", "report_files/report.json",
        "report_files/chunks/00003.js", "report_files/chunks/00000.json",
        "report_files/pages/00003.html", "report_files/thumbnails/0000/002.jpg",
        "report_files/thumbnails/0000/000.json",
    ):  # fmt: skip
        flip_bit(output / path)
        (verdict,) = verify(output_folder)
        assert verdict.state == "damaged", path
        flip_bit(output / path)
    (output / "report_files/other.jpg").write_bytes(b"")
    assert "does not belong" in " ".join(verify(output_folder)[0].problems)


def test_image_limit_of_a_single_file(matches_root, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_SINGLE_FILE_IMAGES", 10**6)
    assert make_report(matches_root / "m", tmp_path / "report.html").count("<article") == 120
    assert not (tmp_path / "report_files").exists()
    assert (
        replace(contact_sheet.PageFrame("a", page_slices.ReportFiles("b"), 1), pages=2).pages == 2
    )
