"""Tests of web hosts: a refusal or timeout fails a single image, and takes little time."""

import pickle

import fsspec
import pytest

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.sources.item_reader import ItemReader
from retrieval.storage import hosts, retry
from retrieval.storage.hosts import HostError, HostHealth, host_of, with_timeouts
from retrieval.storage.input_files import read_uri
from retrieval.storage.retry import is_access_denied
from tests.web_server import closed_port, serve_files


@pytest.fixture(autouse=True)
def sleeps(monkeypatch):
    """Return the list of requested sleeps, in seconds; no test sleeps."""
    slept = []
    monkeypatch.setattr(retry, "wait", slept.append)
    return slept


@pytest.fixture
def web():
    with serve_files() as web:
        web.files["a.jpg"] = b"photo"
        yield web


@pytest.mark.parametrize(
    ("status", "attempts"), [(401, 1), (403, 1), (410, 1), (429, 4), (500, 4), (503, 4)]
)
def test_error_status_is_reported_after_bounded_attempts(web, status, attempts):
    web.statuses["x.jpg"] = status
    with ItemReader() as reader:
        with pytest.raises(HostError, match=rf"127\.0\.0\.1:\d+ answered {status} \(") as raised:
            reader.read(web.url("x.jpg"))
        assert raised.value.status == status
        assert is_access_denied(raised.value) == (status in (401, 403))
        assert web.request_counts["x.jpg"] == attempts
        assert reader.read(web.url("a.jpg")) == b"photo"


def test_missing_page_and_redirect_loop_are_not_retried(web, sleeps):
    with ItemReader() as reader:
        with pytest.raises(FileNotFoundError):
            reader.read(web.url("none.jpg"))
        with pytest.raises(HostError, match="redirects in a circle"):
            reader.read(web.url("loop"))
    assert sleeps == []


def test_failing_host_gets_single_request_per_image_until_success(web):
    for name in ("1", "2"):
        web.statuses[name] = 500
    with ItemReader() as reader:
        for name, attempts in (("1", 4), ("2", 1)):
            with pytest.raises(HostError, match="answered 500"):
                reader.read(web.url(name))
            assert web.request_counts[name] == attempts
        reader.read(web.url("a.jpg"))
        with pytest.raises(HostError):
            reader.read(web.url("1"))
    assert web.request_counts["1"] == 4 + 4


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/{}.jpg", "http://no-such-host.invalid/{1}.jpg",
            "ftp://127.0.0.1:{}/{}.jpg"]
)  # fmt: skip
def test_unreachable_host_fails_fast_with_identical_errors(url, sleeps, monkeypatch):
    port, messages, calls = closed_port(), [], []
    original = fsspec.core.url_to_fs
    monkeypatch.setattr(
        fsspec.core,
        "url_to_fs",
        lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs),
    )
    with ItemReader() as reader:
        for number in range(20):
            with pytest.raises(HostError, match="cannot be reached") as raised:
                reader.read(url.format(port, number))
            messages.append(str(raised.value))
            assert raised.value.status is None
    assert len(set(messages)) == 1
    assert len(calls) == 4 + 2
    assert sum(sleeps) < 3


def test_unreachable_host_is_retried_after_delay(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
    health, attempt_counts = HostHealth(), []

    def fail(attempts):
        attempt_counts.append(attempts)
        raise StorageFailure("no") from ConnectionRefusedError(111, "refused")

    for seconds in (0, 0, 0, 0, 59, 61, 61, 62, 130):
        clock[0] = seconds
        with pytest.raises(HostError, match=r"h:7 cannot be reached \(refused\)"):
            health.read("http://h:7/x", fail)
    assert attempt_counts == [4, 1, 1, 1, 1]
    clock[0] = 200
    assert health.read("http://h:7/x", lambda attempts: bytes([attempts])) == b"\1"
    assert health.read("http://h:7/x", lambda attempts: bytes([attempts])) == b"\4"


def test_host_without_response_times_out(web, monkeypatch):
    monkeypatch.setitem(hosts._TIMEOUTS, "sock_read", 0.2)
    with ItemReader() as reader, pytest.raises(HostError, match="did not answer in time"):
        reader.read(web.url("hang"))
    assert web.request_counts["hang"] == 4


def test_storage_failures_of_buckets_and_disks_are_raised():
    def failing(attempts):
        raise StorageFailure("away") from ConnectionResetError("reset")

    for url in ("s3://bucket/x.jpg", "/photos/x.jpg", "gs://bucket/x.jpg", "memory://x.jpg"):
        with pytest.raises(StorageFailure, match="away"):
            HostHealth().read(url, failing)


def test_web_errors_of_required_files_are_raised(web):
    """The whole job depends on a list, labels or weights."""
    web.statuses |= {"list.txt": 500, "labels.csv": 401}
    with pytest.raises(StorageFailure):
        read_uri(web.url("list.txt"))
    with pytest.raises(AccessRefused):
        read_uri(web.url("labels.csv"))


def test_host_of_url():
    assert host_of("https://user:secret@Example.org:8443/x?y=1") == "example.org:8443"
    assert host_of("http://[::1]/x") == "::1"
    assert [host_of(path) for path in ("s3://bucket/x", "/http://x", "x.jpg")] == [None] * 3


def test_user_client_settings_are_kept(monkeypatch):
    assert "timeout" in with_timeouts("http://h/x", {})["client_kwargs"]
    assert with_timeouts("s3://b/x", {}) == {}
    assert with_timeouts("http://h/x", {"client_kwargs": {}}) == {"client_kwargs": {}}
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"auth": None}})
    assert with_timeouts("https://h/x", {"a": 1}) == {"a": 1}


def test_host_failures_are_not_pickled():
    health = HostHealth()
    health._record_failure("h", "no", timed_out=True)
    assert pickle.loads(pickle.dumps(health)) == HostHealth()
