"""Tests of folders in an S3 bucket: the folder contract, refusals, delays and lost responses."""

from contextlib import nullcontext

import pytest

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.storage import retry
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import RemoteFolder, open_folder
from tests.retrieval.storage.s3 import at_rate, new_prefix, nth, options
from tests.retrieval.storage.test_local import FolderTests, every_write, file_writer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def no_retry_delays(monkeypatch):
    """Disable sleeps and the retries of s3fs, so that only the project's retries are tested."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setattr(retry, "wait", lambda seconds: None)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


class TestS3Folder(FolderTests):
    @pytest.fixture
    def folder(self, s3):
        return RemoteFolder(new_prefix(), options(s3))

    def expect_error(self):
        return nullcontext()  # a single error is retried

    def test_uri_round_trip(self, folder):
        folder.put("a/x y%20.bin", b"1")
        assert open_folder(folder.uri(), folder.options) == folder
        assert read_uri(folder.uri("a/x y%20.bin"), folder.options) == b"1"


@pytest.fixture
def folder(proxy):
    return RemoteFolder(new_prefix(), options(proxy.address))


ACTIONS = {
    "put": lambda folder: folder.put("old", b"new"),
    "put_new": lambda folder: folder.put_new("x", b"new"),
    "put_new_file": lambda folder: folder.put_new_file("x", file_writer(b"new")),
    "read": lambda folder: folder.read("old"),
    "open": lambda folder: folder.open("old").read(),
    "exists": lambda folder: folder.exists("old"),
    "entries": lambda folder: list(folder.entries()),
    "delete": lambda folder: folder.delete("old"),
    "read_uri": lambda folder: read_uri(folder.uri("old"), folder.options),
}
every_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


@every_action
@pytest.mark.parametrize("fault", ["refuse", "drop_response"])
def test_single_failed_request_does_not_change_results(proxy, folder, action, fault):
    """Fail each request of an action in turn: with status 503, or by dropping its response."""
    number, affected = 0, 1
    expected = None
    while affected:
        proxy.reset()
        for path in ("old", "x"):
            folder.delete(path)
        folder.put("old", b"1")
        if expected is None:
            expected = (
                action(folder),
                {entry.path: folder.read(entry.path) for entry in folder.entries()},
            )
            continue
        setattr(proxy, fault, nth(proxy.count + number))
        result = action(folder)
        affected = proxy.refused + proxy.dropped
        proxy.reset()
        assert (
            result,
            {entry.path: folder.read(entry.path) for entry in folder.entries()},
        ) == expected
        number += 1
    assert number >= 2


@every_action
def test_persistent_status_503_raises_storage_failure(proxy, folder, action):
    folder.put("old", b"1")
    proxy.refuse = lambda *event: True
    with pytest.raises(StorageFailure, match=r"could not be \w+ after 4 attempts.*same command"):
        action(folder)
    proxy.reset()
    assert folder.read("old") == b"1"


@every_action
def test_unreachable_server_raises_storage_failure(s3, action):
    unreachable = RemoteFolder(new_prefix(), options("http://127.0.0.1:9"))
    with pytest.raises(StorageFailure, match=r"4 attempts.*[Cc]onnect"):
        action(unreachable)


def test_missing_objects_and_denied_access_are_not_retried(proxy, folder):
    for credentials in ({}, {"secret": "wrong"}, {"key": "nobody"}):
        other = RemoteFolder(folder.root, {**folder.options, **credentials})
        before = proxy.count
        with pytest.raises(AccessRefused if credentials else FileNotFoundError):
            other.read("missing")
        with pytest.raises(AccessRefused if credentials else FileNotFoundError):
            read_uri(other.uri("missing"), other.options)
        assert proxy.count - before <= 8


@every_write
def test_put_after_lost_response_recognizes_its_own_object(proxy, folder, write):
    proxy.drop_response = at_rate(1, 0, methods=("PUT",))
    with pytest.raises(StorageFailure):  # each attempt stores or is refused; no response arrives
        write(folder, "x", b"mine")
    proxy.reset()
    assert folder.read("x") == b"mine"
    assert write(folder, "x", b"mine") in (True, None)


def test_operations_succeed_under_frequent_faults(proxy, folder, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 5)
    proxy.refuse = at_rate(0.15, 1)
    proxy.drop_response = at_rate(0.15, 2, methods=("PUT", "DELETE"))
    proxy.delay = 0.002
    for number in range(30):
        assert folder.put_new(f"a/{number}", b"%d" % number)
    for number in range(0, 30, 3):
        folder.delete(f"a/{number}")
    remaining = [number for number in range(30) if number % 3]
    assert sorted(entry.path for entry in folder.entries()) == sorted(
        f"a/{number}" for number in remaining
    )
    assert [folder.read(f"a/{number}") for number in remaining] == [b"%d" % n for n in remaining]
    assert proxy.refused > 5
    assert proxy.dropped > 2
