"""What the world does to a job: a full disk, photos that vanish or change, closed buckets."""

import hashlib
import subprocess

import fsspec
import pytest

from retrieval.core.errors import AccessRefused, InputError, StorageFailure
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store
from tests.commands import SMALL, lookalike
from tests.conftest import draw_photos
from tests.jobs.embedding.test_store_sync import Source, check, live, picture
from tests.jobs.here import embed_here
from tests.loops import no_waits
from tests.retrieval.storage.faults import inject_faults
from tests.retrieval.storage.s3 import new_prefix, options
from tests.trees import tree
from tests.web import closed_port, serving

BLOCK = 4096


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MiB, where one may be mounted; gives its folder and what fills it."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk of a given size may be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk, room):
    """Leave so many bytes of a disk."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(BLOCK))
        except OSError:
            pass
        file.truncate(file.tell() - room)


def blocks(files):
    return sum(-(-len(data) // BLOCK) * BLOCK for data in files)


@pytest.mark.parametrize("share", [-9, 0.3, 0.6, 0.9])
def test_a_full_disk_stops_the_job_and_the_same_command_ends_it(tmp_path, small_disk, share):
    photos = draw_photos(tmp_path / "photos", 12)
    embed_here(photos, tmp_path / "unharmed", chunk_rows=1)
    wanted = tree(tmp_path / "unharmed")
    parts = blocks(data for path, data in wanted.items() if "/parts/" in path)
    room = blocks(wanted.values()) - parts + int(parts * share)
    fill(small_disk, max(room, 16 * BLOCK))  # the least does not hold the bundle
    output = small_disk / "out"
    with pytest.raises(StorageFailure, match=r"No space left.*make room.*same command"):
        embed_here(photos, output, chunk_rows=1)
    (found,) = verify(open_folder(str(output)))
    assert found.state == "unfinished"
    kept = {path: (output / path).stat().st_mtime_ns for path in tree(output) if "/parts/" in path}
    assert bool(kept) == (share > 0)
    (small_disk / "filler").unlink()
    embed_here(photos, output, chunk_rows=1)
    assert tree(output) == wanted
    assert all((output / path).stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.nightly  # half a minute; the stage itself meets a full disk above
def test_a_full_disk_at_the_command_line(tmp_path, small_disk):
    fill(small_disk, 64 * 1024)
    words = ("embed", "--input", draw_photos(tmp_path / "photos", 4), "--output", small_disk / "o")
    ended = lookalike(*words, *SMALL)
    assert ended.code == 1
    assert "make room" in ended.error
    (small_disk / "filler").unlink()
    assert lookalike(*words, *SMALL).code == 0
    assert lookalike("verify", small_disk / "o").code == 0


@pytest.fixture
def source(tmp_path):
    one = Source(tmp_path / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png"]):
        one.put(name, picture(number))
    return one


def when_read(name, action):
    """Do something just before a photo is read for the first time."""
    left = [action]

    def note(when, operation, path):
        if left and operation == "read" and path.endswith(name):
            left.pop()()

    return inject_faults(note)


def test_a_photo_that_vanishes_after_it_was_listed_stands_in_the_ledger(source, tmp_path):
    output = tmp_path / "out"
    with when_read("b/c.jpg", lambda: source.delete("b/c.jpg")):
        embed_here(source.root, output)
    store = open_store(open_folder(str(output)))
    assert live(store)[1] == {"b/c.jpg"}
    (line,) = next(store.failures()).to_pylist()
    assert (line["stage"], line["error"]) == ("read", "FileNotFoundError")
    embed_here(source.root, output)
    check(source, output)


def test_a_photo_that_changes_after_it_was_listed_is_the_one_that_was_read(source, tmp_path):
    output = tmp_path / "out"
    with when_read("b/c.jpg", lambda: source.put("b/c.jpg", picture(4))):
        embed_here(source.root, output)
    found = live(open_store(open_folder(str(output))))[0]
    assert found["b/c.jpg"][0] == hashlib.sha256(picture(4)).hexdigest()
    embed_here(source.root, output)
    store = check(source, output)
    assert store.manifest.counts["segments"] == 1  # its time is new, its bytes are those of the row
    source.put("b/c.jpg", picture(0))
    embed_here(source.root, output)
    check(source, output)


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    """Photos in a bucket that is asked with the credentials given."""
    place = new_prefix()
    folder = open_folder(place, options(s3))
    for number in range(4):
        folder.put(f"{number}.png", picture(number))

    def ask(**other):
        monkeypatch.setitem(fsspec.config.conf, "s3", {**options(s3), **other})
        return place

    with no_waits():
        yield ask


@pytest.mark.parametrize("wrong", [{"secret": "wrong"}, {"key": "nobody"}])
def test_wrong_credentials_are_refused_before_anything_is_written(bucket, tmp_path, wrong):
    with pytest.raises(InputError) as refused:
        embed_here(bucket(**wrong), tmp_path / "out")
    assert refused.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    embed_here(bucket(), tmp_path / "out")


def forbidden(*names):
    def deny(when, operation, path):
        if operation == "read" and path.endswith(names):
            raise PermissionError("Access Denied")

    return inject_faults(deny)


def test_a_bucket_that_shows_nothing_is_refused_before_anything_is_written(bucket, tmp_path):
    with forbidden(".png"), pytest.raises(AccessRefused, match=r"with these credentials.*Denied"):
        embed_here(bucket(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_forbidden_photo_among_others_stands_in_the_ledger(bucket, tmp_path):
    with forbidden("0.png"):
        embed_here(bucket(), tmp_path / "out")
    assert live(open_store(open_folder(str(tmp_path / "out"))))[1] == {"0.png"}


@pytest.fixture
def web(tmp_path):
    """A web host with two photos."""
    with serving() as web, no_waits():
        for number in range(2):
            web.files[f"{number}.png"] = picture(number)
        yield web


def put_list(path, *urls):
    path.write_text("".join(f"{url}\n" for url in urls))
    return path


def failures_of(output):
    store = open_store(open_folder(str(output)))
    return {line["image_id"]: line["message"] for table in store.failures()
            for line in table.to_pylist()}  # fmt: skip


def test_urls_that_do_not_answer_stand_in_the_ledger_and_are_tried_again(web, tmp_path):
    web.statuses |= {"401": 401, "500": 500}
    dead = f"http://127.0.0.1:{closed_port()}/x.png"
    bad = [web.url("401"), web.url("500"), web.url("loop"), web.url("404"),
           "http://no-such-host.invalid/x.png", dead]  # fmt: skip
    source = put_list(tmp_path / "list.txt", *bad, web.url("0.png"), web.url("1.png"))
    manifest = embed_here(source, tmp_path / "out")
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (2, 6)
    said = failures_of(tmp_path / "out")
    assert sorted(said) == sorted(bad)
    for url, why in ((bad[0], "answered 401"), (bad[1], "answered 500"), (dead, "cannot be reach")):
        assert why in said[url]
    web.statuses.clear()
    web.files |= {"500": picture(2), "401": picture(3)}
    manifest = embed_here(source, tmp_path / "out", retry_failed=True)
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (4, 4)


def test_a_list_of_one_host_that_shows_nothing_is_refused_before_anything_is_written(tmp_path):
    port = closed_port()
    source = put_list(
        tmp_path / "list.txt", *(f"http://127.0.0.1:{port}/{n}.png" for n in range(40))
    )
    with no_waits(), pytest.raises(InputError, match=r"none of the images of .*cannot be reached"):
        embed_here(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_store_stays_finished_while_its_host_is_away(tmp_path):
    with serving() as web:
        web.files |= {"0.png": picture(0), "1.png": picture(1)}
        source = put_list(tmp_path / "list.txt", web.url("0.png"), web.url("1.png"))
        manifest = embed_here(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    with no_waits():
        assert embed_here(source, tmp_path / "out").counts == manifest.counts
        assert tree(tmp_path / "out") == before
        with pytest.raises(InputError, match=r"none of the images.*cannot be reached"):
            embed_here(source, tmp_path / "new")


def test_one_host_of_several_that_refuses_all_is_no_reason_to_stop(web, tmp_path):
    web.statuses |= {f"{number}.jpg": 403 for number in range(40)}
    with serving() as other:
        other.files["z.png"] = picture(0)
        urls = [web.url(f"{number}.jpg") for number in range(40)]
        source = put_list(tmp_path / "list.txt", *urls[:39], other.url("z.png"), urls[39])
        manifest = embed_here(source, tmp_path / "out", max_error_rate=1.0)
    assert manifest.counts["rows"] == 1
    put_list(source, *urls)
    with pytest.raises(AccessRefused, match=r"access to the images .* is denied.*answered 403"):
        embed_here(source, tmp_path / "closed")
