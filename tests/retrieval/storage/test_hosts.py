"""Tests of web hosts: a refusal or a timeout is an error of one image and costs little time."""

import pickle

import fsspec
import pytest

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.sources.item_reader import ItemReader
from retrieval.storage import hosts, retry
from retrieval.storage.hosts import HostError, HostHealth, host_of, with_timeouts
from retrieval.storage.input_files import read_uri
from retrieval.storage.retry import is_access_denied
from tests.web import closed_port, serving


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that would have been slept."""
    slept = []
    monkeypatch.setattr(retry, "wait", slept.append)
    return slept


@pytest.fixture
def web():
    with serving() as web:
        web.files["a.jpg"] = b"photo"
        yield web


@pytest.mark.parametrize(
    ("status", "times"), [(401, 1), (403, 1), (410, 1), (429, 4), (500, 4), (503, 4)]
)
def test_what_a_host_answers_is_said_after_bounded_attempts(web, status, times):
    web.statuses["x.jpg"] = status
    with ItemReader() as opener:
        with pytest.raises(HostError, match=rf"127\.0\.0\.1:\d+ answered {status} \(") as raised:
            opener.read(web.url("x.jpg"))
        assert raised.value.status == status
        assert is_access_denied(raised.value) == (status in (401, 403))
        assert web.asked["x.jpg"] == times
        assert opener.read(web.url("a.jpg")) == b"photo"


def test_a_missing_page_and_a_circle_of_redirects(web, waits):
    with ItemReader() as opener:
        with pytest.raises(FileNotFoundError):
            opener.read(web.url("none.jpg"))
        with pytest.raises(HostError, match="redirects in a circle"):
            opener.read(web.url("loop"))
    assert waits == []


def test_a_host_in_trouble_is_asked_once_an_image_until_it_answers(web):
    for name in ("1", "2"):
        web.statuses[name] = 500
    with ItemReader() as opener:
        for name, times in (("1", 4), ("2", 1)):
            with pytest.raises(HostError, match="answered 500"):
                opener.read(web.url(name))
            assert web.asked[name] == times
        opener.read(web.url("a.jpg"))
        with pytest.raises(HostError):
            opener.read(web.url("1"))
    assert web.asked["1"] == 4 + 4


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/{}.jpg", "http://no-such-host.invalid/{1}.jpg",
            "ftp://127.0.0.1:{}/{}.jpg"]
)  # fmt: skip
def test_a_silent_host_costs_each_image_nothing_and_all_say_the_same(url, waits, monkeypatch):
    port, said, asked = closed_port(), [], []
    plain = fsspec.core.url_to_fs
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *a, **k: asked.append(a) or plain(*a, **k))
    with ItemReader() as opener:
        for number in range(20):
            with pytest.raises(HostError, match="cannot be reached") as raised:
                opener.read(url.format(port, number))
            said.append(str(raised.value))
            assert raised.value.status is None
    assert len(set(said)) == 1
    assert len(asked) == 4 + 2
    assert sum(waits) < 3


def test_a_silent_host_is_asked_again_after_a_while(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: now[0])
    known, answers = HostHealth(), []

    def silent(attempts):
        answers.append(attempts)
        raise StorageFailure("no") from ConnectionRefusedError(111, "refused")

    for seconds in (0, 0, 0, 0, 59, 61, 61, 62, 130):
        now[0] = seconds
        with pytest.raises(HostError, match=r"h:7 cannot be reached \(refused\)"):
            known.read("http://h:7/x", silent)
    assert answers == [4, 1, 1, 1, 1]
    now[0] = 200
    assert known.read("http://h:7/x", lambda attempts: bytes([attempts])) == b"\1"
    assert known.read("http://h:7/x", lambda attempts: bytes([attempts])) == b"\4"


def test_a_host_that_takes_a_connection_and_never_answers(web, monkeypatch):
    monkeypatch.setitem(hosts._TIMEOUTS, "sock_read", 0.2)
    with ItemReader() as opener, pytest.raises(HostError, match="did not answer in time"):
        opener.read(web.url("hang"))
    assert web.asked["hang"] == 4


def test_buckets_and_disks_still_stop_the_job():
    def failing(attempts):
        raise StorageFailure("away") from ConnectionResetError("reset")

    for url in ("s3://bucket/x.jpg", "/photos/x.jpg", "gs://bucket/x.jpg", "memory://x.jpg"):
        with pytest.raises(StorageFailure, match="away"):
            HostHealth().read(url, failing)


def test_other_reads_of_a_web_host_still_stop_it(web):
    """A list, labels or weights are one file that all depends on."""
    web.statuses |= {"list.txt": 500, "labels.csv": 401}
    with pytest.raises(StorageFailure):
        read_uri(web.url("list.txt"))
    with pytest.raises(AccessRefused):
        read_uri(web.url("labels.csv"))


def test_the_host_of_a_url():
    assert host_of("https://user:secret@Example.org:8443/x?y=1") == "example.org:8443"
    assert host_of("http://[::1]/x") == "::1"
    assert [host_of(path) for path in ("s3://bucket/x", "/http://x", "x.jpg")] == [None] * 3


def test_what_a_person_sets_for_the_web_stays(monkeypatch):
    assert "timeout" in with_timeouts("http://h/x", {})["client_kwargs"]
    assert with_timeouts("s3://b/x", {}) == {}
    assert with_timeouts("http://h/x", {"client_kwargs": {}}) == {"client_kwargs": {}}
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"auth": None}})
    assert with_timeouts("https://h/x", {"a": 1}) == {"a": 1}


def test_host_failures_are_not_pickled():
    hosts_health = HostHealth()
    hosts_health._record_failure("h", "no", timed_out=True)
    assert pickle.loads(pickle.dumps(hosts_health)) == HostHealth()
