"""Tests of reading input files: names that are not UTF-8, special files, and retries."""

import errno
import os
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import ClientResponseError

from retrieval.core.errors import AccessRefused, StorageFailure
from retrieval.storage import retry
from retrieval.storage.input_files import read_uri
from retrieval.storage.retry import call_with_retries
from tests.retrieval.storage.faults import FailAt, inject_faults, raise_io_error, record_operations


@pytest.mark.parametrize(
    ("name", "listed_name"),
    [
        (b"caf\xe9.jpg", "caf%E9.jpg"),
        (b"\xff\x80/\xc3\xbc \xfc.jpg", "%FF%80/ü %FC.jpg"),
        (
            b"100%25 caf\xe9.jpg",
            "100%25 caf%E9.jpg",
        ),  # percent signs of the name itself are not escaped
        (b"a%20b.jpg", "a%20b.jpg"),
        (b"caf%E9.jpg", "caf%E9.jpg"),
    ],
)
def test_non_utf8_file_name_is_read_by_its_escaped_name(tmp_path, name, listed_name):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_bytes(b"photo")
    assert read_uri(str(tmp_path / listed_name)) == b"photo"


def test_literal_file_name_precedes_escaped_name(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.jpg")).write_bytes(b"bytes")
    (tmp_path / "caf%E9.jpg").write_bytes(b"letters")
    assert read_uri(str(tmp_path / "caf%E9.jpg")) == b"letters"


def test_file_uri_is_read(tmp_path):
    (tmp_path / "a b.jpg").write_bytes(b"photo")
    assert read_uri(f"file://{tmp_path}/a b.jpg") == b"photo"


@pytest.fixture
def sleeps(monkeypatch):
    """Return the list of requested sleeps, in seconds; no test sleeps."""
    slept = []
    monkeypatch.setattr(retry, "wait", slept.append)
    return slept


def fail_times(failures, error):
    """Return a function that raises `error` the first `failures` times, then returns "answer"."""
    remaining = iter([error] * failures)

    def action():
        for failure in remaining:
            raise failure
        return "answer"

    return action


@pytest.mark.parametrize("failures", range(4))
def test_transient_errors_are_retried_with_backoff(sleeps, failures):
    assert (
        call_with_retries(fail_times(failures, ConnectionResetError("reset")), "x.jpg") == "answer"
    )
    assert sleeps == pytest.approx([0.1, 0.4, 1.6][:failures])


def test_persistent_error_raises_storage_failure_with_path(sleeps):
    with pytest.raises(StorageFailure, match=r"photos/x\.jpg.*4 attempts.*reset"):
        call_with_retries(fail_times(4, ConnectionResetError("reset")), "photos/x.jpg")
    assert len(sleeps) == 3


@pytest.mark.parametrize("error", [*retry.PERMANENT_ERRORS, OSError(errno.ELOOP, ""), ValueError])
def test_permanent_errors_are_not_retried(sleeps, error):
    with pytest.raises(error if isinstance(error, type) else type(error)) as raised:
        call_with_retries(fail_times(1, error), "x.jpg")
    assert not isinstance(raised.value, StorageFailure)
    assert sleeps == []


@pytest.mark.parametrize(("status", "error"), [(401, AccessRefused), (403, ClientResponseError)])
def test_status_401_of_image_server_raises_access_refused(sleeps, status, error):
    """Status 403 may concern a single image; status 401 concerns the credentials of the job."""
    request = SimpleNamespace(real_url="http://photos/x.jpg")
    response = ClientResponseError(request, (), status=status, message="no")
    with pytest.raises(error):
        call_with_retries(fail_times(1, response), "http://photos/x.jpg")
    assert sleeps == []


def test_missing_file_is_not_retried(tmp_path, sleeps):
    with pytest.raises(FileNotFoundError):
        read_uri(str(tmp_path / "x.jpg"))
    with pytest.raises(FileNotFoundError):
        read_uri(str(tmp_path / "caf%E9.jpg"))
    with pytest.raises(FileNotFoundError):
        read_uri(f"memory://{uuid.uuid4()}/x.jpg")
    assert sleeps == []


def test_link_to_itself_is_not_retried(tmp_path, sleeps):
    (tmp_path / "x.jpg").symlink_to("x.jpg")
    with pytest.raises(OSError, match="symbolic links"):
        read_uri(str(tmp_path / "x.jpg"))
    assert sleeps == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_image_reads_call_fault_hook_and_are_retried(tmp_path, sleeps, when):
    (tmp_path / "x.jpg").write_bytes(b"photo")
    events = record_operations(lambda: read_uri(str(tmp_path / "x.jpg")))
    assert [event[0] for event in events] == ["before", "after"]
    with inject_faults(FailAt(["before", "after"].index(when), raise_io_error)):
        assert read_uri(str(tmp_path / "x.jpg")) == b"photo"
    assert len(sleeps) == 1
