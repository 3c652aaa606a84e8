"""Tests of folders in an S3 bucket: the folder contract, refusals, delays and lost responses."""

from contextlib import nullcontext

import pytest

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.storage import retry
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import RemoteFolder, open_folder
from tests.retrieval.storage.s3 import at_rate, new_prefix, nth, options
from tests.retrieval.storage.test_local import FolderTests, copy_of, every_write

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No waits, and no attempts of s3fs' own: ours are what is tested."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setattr(retry, "wait", lambda seconds: None)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


class TestS3Folder(FolderTests):
    @pytest.fixture
    def folder(self, s3):
        return RemoteFolder(new_prefix(), options(s3))

    def stopped(self):
        return nullcontext()  # an error that comes once is none

    def test_its_uri_opens_it_again(self, folder):
        folder.put("a/x y%20.bin", b"1")
        assert open_folder(folder.uri(), folder.options) == folder
        assert read_uri(folder.uri("a/x y%20.bin"), folder.options) == b"1"


@pytest.fixture
def folder(proxy):
    return RemoteFolder(new_prefix(), options(proxy.address))


ACTIONS = {
    "put": lambda folder: folder.put("old", b"new"),
    "put_new": lambda folder: folder.put_new("x", b"new"),
    "put_new_file": lambda folder: folder.put_new_file("x", copy_of(b"new")),
    "read": lambda folder: folder.read("old"),
    "open": lambda folder: folder.open("old").read(),
    "exists": lambda folder: folder.exists("old"),
    "entries": lambda folder: list(folder.entries()),
    "delete": lambda folder: folder.delete("old"),
    "read_uri": lambda folder: read_uri(folder.uri("old"), folder.options),
}
every_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


@every_action
@pytest.mark.parametrize("harm", ["refuse", "lose"])
def test_one_request_that_fails_changes_no_answer(proxy, folder, action, harm):
    """At every request that an action makes: a 503, or an answer that never comes."""
    number, harmed = 0, 1
    wanted = None
    while harmed:
        proxy.heal()
        for path in ("old", "x"):
            folder.delete(path)
        folder.put("old", b"1")
        if wanted is None:
            wanted = (action(folder), {e.path: folder.read(e.path) for e in folder.entries()})
            continue
        setattr(proxy, harm, nth(proxy.count + number))
        answer = action(folder)
        harmed = proxy.refused + proxy.lost
        proxy.heal()
        assert (answer, {e.path: folder.read(e.path) for e in folder.entries()}) == wanted
        number += 1
    assert number >= 2


@every_action
def test_a_bucket_that_refuses_for_long_stops_the_job(proxy, folder, action):
    folder.put("old", b"1")
    proxy.refuse = lambda *moment: True
    with pytest.raises(StorageFailure, match=r"could not be \w+ after 4 attempts.*same command"):
        action(folder)
    proxy.heal()
    assert folder.read("old") == b"1"


@every_action
def test_a_server_that_is_gone_stops_the_job(s3, action):
    gone = RemoteFolder(new_prefix(), options("http://127.0.0.1:9"))
    with pytest.raises(StorageFailure, match=r"4 attempts.*[Cc]onnect"):
        action(gone)


def test_what_is_missing_or_asked_for_with_wrong_credentials_is_not_asked_for_again(proxy, folder):
    for denied in ({}, {"secret": "wrong"}, {"key": "nobody"}):
        other = RemoteFolder(folder.root, {**folder.options, **denied})
        before = proxy.count
        with pytest.raises(AccessRefused if denied else FileNotFoundError):
            other.read("missing")
        with pytest.raises(AccessRefused if denied else FileNotFoundError):
            read_uri(other.uri("missing"), other.options)
        assert proxy.count - before <= 8


@every_write
def test_whoever_comes_second_is_told_even_if_the_first_answer_was_lost(proxy, folder, write):
    proxy.lose = at_rate(1, 0, methods=("PUT",))
    with pytest.raises(StorageFailure):  # each attempt is stored or refused, none is answered
        write(folder, "x", b"mine")
    proxy.heal()
    assert folder.read("x") == b"mine"
    assert write(folder, "x", b"mine") in (True, None)


def test_much_trouble_is_only_slow(proxy, folder, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 5)
    proxy.refuse = at_rate(0.15, 1)
    proxy.lose = at_rate(0.15, 2, methods=("PUT", "DELETE"))
    proxy.delay = 0.002
    for number in range(30):
        assert folder.put_new(f"a/{number}", b"%d" % number)
    for number in range(0, 30, 3):
        folder.delete(f"a/{number}")
    left = [number for number in range(30) if number % 3]
    assert sorted(e.path for e in folder.entries()) == sorted(f"a/{number}" for number in left)
    assert [folder.read(f"a/{number}") for number in left] == [b"%d" % n for n in left]
    assert proxy.refused > 5
    assert proxy.lost > 2
