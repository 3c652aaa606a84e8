"""Test the `report` command: one file or a folder, resuming, and deterministic bytes."""

import shutil
from dataclasses import replace

import pytest

from jobs.cluster.resources import Cluster
from jobs.config.settings import ReportSettings
from jobs.reporting import report
from jobs.reporting import write_report as putting
from jobs.reporting.write_report import ReportSource, write_report
from retrieval.core.errors import UsageError
from retrieval.core.schemas import GALLERY_LABELS
from retrieval.evaluation.labels import Labels
from retrieval.report import contact_sheet, page_slices
from retrieval.report import thumbnails as pictures
from retrieval.storage import folder, transaction
from retrieval.storage.finished_output import read_manifest
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.jobs.here import without_ray
from tests.matches import put_matches
from tests.trees import tree

LABELS = Labels(GALLERY_LABELS.schema.empty_table())  # those in the matches
QUERIES, TOP_K, CELLS = 120, 5, 200  # more cells than one file may have here


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Matches of 120 queries that share 12 photos, one of which cannot be read."""
    root = tmp_path_factory.mktemp("matches")
    photos = sorted(str(path) for path in draw_photos(root / "photos", 12).rglob("*.jpg"))
    open(photos[5], "wb").close()
    names = sorted(f"{root}/photos/q{number:04}.jpg" for number in range(QUERIES - 1))
    put_matches(root / "m", names, photos, top_k=TOP_K, failed=(photos[5],), block=40)
    put_matches(root / "few", names[:20], photos, top_k=TOP_K)
    put_matches(root / "none", [], photos)
    return root


@pytest.fixture(autouse=True)
def here(request):
    """All work in this process, but for a test that asks for Ray.

    Without the fixture `monkeypatch`, which would outlive this and put back what this changed.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contact_sheet, "MAX_SINGLE_FILE_IMAGES", CELLS)
        if "ray_here" in request.fixturenames:
            yield
        else:
            with without_ray():
                yield


def reported(matches, output, **settings):
    report.start(ReportSettings(matches=str(matches), output=str(output), **settings))
    return output.read_text()


def test_few_queries_are_one_file(made, tmp_path):
    page = reported(made / "few", tmp_path / "report.html", title="A <title>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert page.count('<article class="query"') == 20
    assert "A &lt;title&gt;" in page
    assert page.count("<image id=") == 11  # of the queries none can be read
    assert page.count("Top-1 right") + page.count("Top-1 wrong") == 20


def test_many_become_a_folder_with_the_same_bytes_however_they_are_made(
    made, tmp_path, monkeypatch
):
    page = reported(made / "m", tmp_path / "one/report.html")
    assert page.count('<article class="query') == 50
    files = tree(tmp_path / "one")
    pages = [f"report_files/pages/{number:05d}.html" for number in range(2, 4)]
    chunks = [f"report_files/chunks/{number:05d}.js" for number in range(5)]
    assert files.keys() >= {*pages, *chunks, "report_files/facets.js", "report_files/report.json"}
    assert sum(path.endswith(".jpg") for path in files) == 11
    # backwards, and every slice on the cluster's side
    for bound in ("IMAGES_HERE", "_QUERIES_HERE"):
        monkeypatch.setattr(putting, bound, 0)
    monkeypatch.setattr(
        putting.tasks, "run_tasks", lambda _, function, items: map(function, reversed([*items]))
    )
    reported(made / "m", tmp_path / "two/report.html")
    assert tree(tmp_path / "two") == files
    # and over itself
    reported(made / "m", tmp_path / "two/report.html")
    assert tree(tmp_path / "two") == files


def test_through_ray_the_same_bytes(made, tmp_path, ray_here, monkeypatch):
    reported(made / "m", tmp_path / "one/report.html")
    for bound in ("IMAGES_HERE", "_QUERIES_HERE"):
        monkeypatch.setattr(putting, bound, 0)
    monkeypatch.setattr(putting, "PER_SLICE", 50)
    reported(made / "m", tmp_path / "two/report.html", workers=2)
    for path in (tmp_path / "two/report_files/chunks").glob("*.json"):
        path.unlink()  # of slices of another size
    (tmp_path / "one/report_files/chunks/00000.json").unlink()
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_each_image_is_read_once_and_a_second_time_none(made, tmp_path, monkeypatch):
    read = []

    def note(when, what, path):
        if when == "before" and what == "read" and "/photos/" in path:
            read.append(path)

    monkeypatch.setattr(folder, "fault_hook", note)
    reported(made / "m", tmp_path / "report.html")
    assert len(read) == len(set(read)) > 12
    read.clear()
    made_again = []
    monkeypatch.setattr(
        page_slices, "render_further_pages", lambda *given: made_again.append(given)
    )
    reported(made / "m", tmp_path / "report.html")
    assert read == made_again == []


def test_a_run_that_is_killed_goes_on(made, tmp_path):
    reported(made / "m", tmp_path / "whole/report.html")
    whole = tree(tmp_path / "whole")
    for point in (2, 9, 14, 16, 20, 23, 25):  # of 25 files, the probe first, the page last
        left = [point]

        def dies(when, what, path, left=left):
            left[0] -= when == "before" and what == "replace"
            if left[0] <= 0:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "fault_hook", dies)
            with pytest.raises(Killed):
                reported(made / "m", tmp_path / "two/report.html")
        assert not (tmp_path / "two/report.html").exists()
        reported(made / "m", tmp_path / "two/report.html")
        assert tree(tmp_path / "two") == whole
        shutil.rmtree(tmp_path / "two")


def test_what_was_altered_or_lost_of_a_folder_is_made_again(made, tmp_path):
    reported(made / "m", tmp_path / "report.html")
    whole = tree(tmp_path)
    for path in ("thumbnails/0000/003.jpg", "chunks/00002.js", "facets.js", "report.json"):
        at = tmp_path / "report_files" / path
        data = bytearray(at.read_bytes())
        data[len(data) // 2] ^= 1
        at.write_bytes(data)
        reported(made / "m", tmp_path / "report.html")
        assert tree(tmp_path) == whole
        at.unlink()
        reported(made / "m", tmp_path / "report.html")
        assert tree(tmp_path) == whole


def test_leftovers_of_other_matches_are_removed(made, tmp_path):
    reported(made / "m", tmp_path / "a/report.html")
    reported(made / "few", tmp_path / "a/report.html")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["report.html"]
    photos = sorted(str(path) for path in (made / "photos").rglob("*.jpg"))
    names = [f"/none/{number:05}.jpg" for number in range(180)]
    put_matches(tmp_path / "more", names, photos)
    reported(tmp_path / "more", tmp_path / "a/report.html")
    reported(made / "m", tmp_path / "a/report.html")
    reported(made / "m", tmp_path / "b/report.html")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    # another title draws the pages anew, from the same thumbnails
    before = (tmp_path / "a/report_files/thumbnails/0000/003.jpg").stat().st_mtime_ns
    page = reported(made / "m", tmp_path / "a/report.html", title="Another")
    assert "Another" in page
    assert "Another" in (tmp_path / "a/report_files/pages/00002.html").read_text()
    assert (tmp_path / "a/report_files/thumbnails/0000/003.jpg").stat().st_mtime_ns == before


def test_a_folder_of_somebody_else_is_not_touched(made, tmp_path):
    (tmp_path / "report_files").mkdir()
    (tmp_path / "report_files/jquery.js").write_text("theirs")
    with pytest.raises(
        UsageError, match=r"report_files contains files that do not belong to a report"
    ):
        reported(made / "m", tmp_path / "report.html")
    assert tree(tmp_path) == {"report_files/jquery.js": b"theirs"}
    reported(made / "few", tmp_path / "report.html")
    assert (tmp_path / "report_files/jquery.js").read_text() == "theirs"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "make_thumbnail", None)
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file/report.html", f"{tmp_path}/new/"):
        with pytest.raises(UsageError, match=r"--output .* (is a folder|cannot be written)"):
            report.start(ReportSettings(matches=str(made / "few"), output=str(output)))


@pytest.mark.parametrize("asked", [",", "pdf", "html,pdf"])
def test_a_report_of_no_known_format_is_refused(made, tmp_path, asked):
    with pytest.raises(UsageError, match=r"--format '(pdf)?': write one or both of html,png"):
        reported(made / "few", tmp_path / "report.html", format=asked)


def test_the_answer_names_what_was_made(made, tmp_path):
    asked = ReportSettings(matches=str(made / "few"), output=f"{tmp_path}/r.html", format="png")
    assert report.start(asked).values == {"pictures": f"{tmp_path}/r_pictures"}


def test_matches_without_any_query_make_a_page_that_says_so(made, tmp_path):
    assert "There are no queries." in reported(made / "none", tmp_path / "report.html")


def test_a_bound_on_queries_keeps_the_measures_of_all(made, tmp_path):
    page = reported(made / "m", tmp_path / "report.html", max_queries=4)
    assert page.count('<article class="query"') == 3
    assert page.count('<article class="query failed"') == 1
    assert "4 of 120 queries" in page
    whole = reported(made / "m", tmp_path / "whole.html")
    card = '<dd class="value">'
    assert page.split(card)[1][:5] == whole.split(card)[1][:5]


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("is_finished", [True, False])
def test_verify_finds_a_flipped_bit_in_every_file_of_a_report(made, tmp_path, is_finished):
    out = tmp_path / "m"
    shutil.copytree(made / "m", out)
    for name in ("manifest.json", "files.parquet"):
        (out / name).unlink()
    inside = open_folder(str(out))
    manifest = read_manifest(open_folder(str(made / "m")))
    write_report(
        Cluster("nowhere", 1), ReportSource(inside, manifest, None, LABELS), inside, "report.html"
    )
    if is_finished:
        transaction.finish_output(inside, "matches", manifest.counts)
    (verdict,) = verify(inside)
    assert verdict.state == ("finished" if is_finished else "unfinished")
    for path in (
        "report.html", "report_files/facets.js", "report_files/report.json",
        "report_files/chunks/00003.js", "report_files/chunks/00000.json",
        "report_files/pages/00003.html", "report_files/thumbnails/0000/002.jpg",
        "report_files/thumbnails/0000/000.json",
    ):  # fmt: skip
        flipped(out / path)
        (verdict,) = verify(inside)
        assert verdict.state == "damaged", path
        flipped(out / path)
    (out / "report_files/other.jpg").write_bytes(b"")
    assert "does not belong" in " ".join(verify(inside)[0].problems)


def test_the_bound_of_cells_decides(made, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_SINGLE_FILE_IMAGES", 10**6)
    assert reported(made / "m", tmp_path / "report.html").count("<article") == 120
    assert not (tmp_path / "report_files").exists()
    assert (
        replace(contact_sheet.PageFrame("a", page_slices.ReportFiles("b"), 1), pages=2).pages == 2
    )
