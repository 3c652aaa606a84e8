"""Test full disks, photos that vanish or change, denied buckets and unreachable hosts."""

import hashlib
import subprocess

import fsspec
import pytest

from retrieval.core.errors import AccessRefused, InputError, StorageFailure
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store
from tests.commands import SMALL_MODEL_OPTIONS, run_command
from tests.conftest import draw_photos
from tests.fault_loop import without_retry_delays
from tests.file_tree import read_tree
from tests.jobs.embedding.test_store_sync import Source, check_store, make_picture, read_live_rows
from tests.jobs.in_process import embed_in_process
from tests.retrieval.storage.faults import inject_faults
from tests.retrieval.storage.s3 import new_prefix, options
from tests.web_server import closed_port, serve_files

BLOCK = 4096


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 16 MiB, and return its folder; skip the test without permission."""
    folder = tmp_path / "disk"
    folder.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
    try:
        subprocess.run(arguments, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a disk: requires root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, free_bytes):
    """Fill a disk except for `free_bytes`."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(BLOCK))
        except OSError:
            pass
        file.truncate(file.tell() - free_bytes)


def occupied_bytes(files):
    return sum(-(-len(data) // BLOCK) * BLOCK for data in files)


@pytest.mark.parametrize("parts_share", [-9, 0.3, 0.6, 0.9])
def test_full_disk_stops_the_job_and_a_second_run_completes(tmp_path, small_disk, parts_share):
    photos = draw_photos(tmp_path / "photos", 12)
    embed_in_process(photos, tmp_path / "unharmed", chunk_rows=1)
    expected = read_tree(tmp_path / "unharmed")
    parts_bytes = occupied_bytes(data for path, data in expected.items() if "/parts/" in path)
    free_bytes = occupied_bytes(expected.values()) - parts_bytes + int(parts_bytes * parts_share)
    fill(small_disk, max(free_bytes, 16 * BLOCK))  # the smallest is less than the bundle
    output = small_disk / "out"
    with pytest.raises(StorageFailure, match=r"No space left.*make room.*same command"):
        embed_in_process(photos, output, chunk_rows=1)
    (verdict,) = verify(open_folder(str(output)))
    assert verdict.state == "unfinished"
    written_parts = {
        path: (output / path).stat().st_mtime_ns for path in read_tree(output) if "/parts/" in path
    }
    assert bool(written_parts) == (parts_share > 0)
    (small_disk / "filler").unlink()
    embed_in_process(photos, output, chunk_rows=1)
    assert read_tree(output) == expected
    assert all((output / path).stat().st_mtime_ns == mtime for path, mtime in written_parts.items())


@pytest.mark.nightly  # takes half a minute; the stage is tested above
def test_full_disk_exit_code(tmp_path, small_disk):
    fill(small_disk, 64 * 1024)
    arguments = (
        "embed",
        "--input",
        draw_photos(tmp_path / "photos", 4),
        "--output",
        small_disk / "o",
    )
    result = run_command(*arguments, *SMALL_MODEL_OPTIONS)
    assert result.exit_code == 1
    assert "make room" in result.error
    (small_disk / "filler").unlink()
    assert run_command(*arguments, *SMALL_MODEL_OPTIONS).exit_code == 0
    assert run_command("verify", small_disk / "o").exit_code == 0


@pytest.fixture
def source(tmp_path):
    source = Source(tmp_path / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png"]):
        source.put(name, make_picture(number))
    return source


def before_first_read(name, action):
    """Run an action just before a photo is read for the first time."""
    actions = [action]

    def on_operation(when, operation, path):
        if actions and operation == "read" and path.endswith(name):
            actions.pop()()

    return inject_faults(on_operation)


def test_photo_deleted_after_listing_is_recorded_in_the_ledger(source, tmp_path):
    output = tmp_path / "out"
    with before_first_read("b/c.jpg", lambda: source.delete("b/c.jpg")):
        embed_in_process(source.root, output)
    store = open_store(open_folder(str(output)))
    assert read_live_rows(store)[1] == {"b/c.jpg"}
    (failure,) = next(store.failures()).to_pylist()
    assert (failure["stage"], failure["error"]) == ("read", "FileNotFoundError")
    embed_in_process(source.root, output)
    check_store(source, output)


def test_photo_changed_after_listing_is_embedded_as_read(source, tmp_path):
    output = tmp_path / "out"
    with before_first_read("b/c.jpg", lambda: source.put("b/c.jpg", make_picture(4))):
        embed_in_process(source.root, output)
    rows = read_live_rows(open_store(open_folder(str(output))))[0]
    assert rows["b/c.jpg"][0] == hashlib.sha256(make_picture(4)).hexdigest()
    embed_in_process(source.root, output)
    store = check_store(source, output)
    assert store.manifest.counts["segments"] == 1  # new modification time, same bytes
    source.put("b/c.jpg", make_picture(0))
    embed_in_process(source.root, output)
    check_store(source, output)


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    """Return a function that sets S3 options and returns the URL of a folder of four photos."""
    address = new_prefix()
    folder = open_folder(address, options(s3))
    for number in range(4):
        folder.put(f"{number}.png", make_picture(number))

    def set_options(**changes):
        monkeypatch.setitem(fsspec.config.conf, "s3", {**options(s3), **changes})
        return address

    with without_retry_delays():
        yield set_options


@pytest.mark.parametrize("credentials", [{"secret": "wrong"}, {"key": "nobody"}])
def test_wrong_credentials_are_refused_before_writing(bucket, tmp_path, credentials):
    with pytest.raises(InputError) as error:
        embed_in_process(bucket(**credentials), tmp_path / "out")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    embed_in_process(bucket(), tmp_path / "out")


def deny_access(*names):
    def deny(when, operation, path):
        if operation == "read" and path.endswith(names):
            raise PermissionError("Access Denied")

    return inject_faults(deny)


def test_denied_bucket_is_refused_before_writing(bucket, tmp_path):
    with (
        deny_access(".png"),
        pytest.raises(AccessRefused, match=r"with the current credentials.*Denied"),
    ):
        embed_in_process(bucket(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_single_denied_photo_is_recorded_in_the_ledger(bucket, tmp_path):
    with deny_access("0.png"):
        embed_in_process(bucket(), tmp_path / "out")
    assert read_live_rows(open_store(open_folder(str(tmp_path / "out"))))[1] == {"0.png"}


@pytest.fixture
def web(tmp_path):
    """Yield a web server with two photos."""
    with serve_files() as web, without_retry_delays():
        for number in range(2):
            web.files[f"{number}.png"] = make_picture(number)
        yield web


def write_url_list(path, *urls):
    path.write_text("".join(f"{url}\n" for url in urls))
    return path


def read_failures(output):
    store = open_store(open_folder(str(output)))
    return {failure["image_id"]: failure["message"] for table in store.failures()
            for failure in table.to_pylist()}  # fmt: skip


def test_failing_urls_are_recorded_and_retried(web, tmp_path):
    web.statuses |= {"401": 401, "500": 500}
    unreachable = f"http://127.0.0.1:{closed_port()}/x.png"
    failing = [web.url("401"), web.url("500"), web.url("loop"), web.url("404"),
           "http://no-such-host.invalid/x.png", unreachable]  # fmt: skip
    source = write_url_list(tmp_path / "list.txt", *failing, web.url("0.png"), web.url("1.png"))
    manifest = embed_in_process(source, tmp_path / "out")
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (2, 6)
    failures = read_failures(tmp_path / "out")
    assert sorted(failures) == sorted(failing)
    assert "answered 401" in failures[failing[0]]
    assert "answered 500" in failures[failing[1]]
    assert "cannot be reach" in failures[unreachable]
    web.statuses.clear()
    web.files |= {"500": make_picture(2), "401": make_picture(3)}
    manifest = embed_in_process(source, tmp_path / "out", retry_failed=True)
    assert (manifest.counts["rows"], manifest.counts["failures"]) == (4, 4)


def test_unreachable_host_is_refused_before_writing(tmp_path):
    port = closed_port()
    source = write_url_list(
        tmp_path / "list.txt", *(f"http://127.0.0.1:{port}/{n}.png" for n in range(40))
    )
    with (
        without_retry_delays(),
        pytest.raises(InputError, match=r"none of the images of .*cannot be reached"),
    ):
        embed_in_process(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_store_is_unchanged_while_its_host_is_unreachable(tmp_path):
    with serve_files() as web:
        web.files |= {"0.png": make_picture(0), "1.png": make_picture(1)}
        source = write_url_list(tmp_path / "list.txt", web.url("0.png"), web.url("1.png"))
        manifest = embed_in_process(source, tmp_path / "out")
    before = read_tree(tmp_path / "out")
    with without_retry_delays():
        assert embed_in_process(source, tmp_path / "out").counts == manifest.counts
        assert read_tree(tmp_path / "out") == before
        with pytest.raises(InputError, match=r"none of the images.*cannot be reached"):
            embed_in_process(source, tmp_path / "new")


def test_denied_host_among_others_does_not_stop_the_run(web, tmp_path):
    web.statuses |= {f"{number}.jpg": 403 for number in range(40)}
    with serve_files() as reachable_host:
        reachable_host.files["z.png"] = make_picture(0)
        urls = [web.url(f"{number}.jpg") for number in range(40)]
        source = write_url_list(
            tmp_path / "list.txt", *urls[:39], reachable_host.url("z.png"), urls[39]
        )
        manifest = embed_in_process(source, tmp_path / "out", max_error_rate=1.0)
    assert manifest.counts["rows"] == 1
    write_url_list(source, *urls)
    with pytest.raises(AccessRefused, match=r"access to the images .* is denied.*answered 403"):
        embed_in_process(source, tmp_path / "closed")
