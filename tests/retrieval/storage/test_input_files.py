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
from tests.retrieval.storage.faults import FailAt, broken, inject_faults, operations


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        (b"caf\xe9.jpg", "caf%E9.jpg"),
        (b"\xff\x80/\xc3\xbc \xfc.jpg", "%FF%80/ü %FC.jpg"),
        (b"100%25 caf\xe9.jpg", "100%25 caf%E9.jpg"),  # what was there before stays as it is
        (b"a%20b.jpg", "a%20b.jpg"),
        (b"caf%E9.jpg", "caf%E9.jpg"),
    ],
)
def test_a_name_that_is_not_utf_8_is_read_by_how_it_is_listed(tmp_path, name, listed):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_bytes(b"photo")
    assert read_uri(str(tmp_path / listed)) == b"photo"


def test_the_name_as_written_comes_first(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.jpg")).write_bytes(b"bytes")
    (tmp_path / "caf%E9.jpg").write_bytes(b"letters")
    assert read_uri(str(tmp_path / "caf%E9.jpg")) == b"letters"


def test_a_file_uri_is_read(tmp_path):
    (tmp_path / "a b.jpg").write_bytes(b"photo")
    assert read_uri(f"file://{tmp_path}/a b.jpg") == b"photo"


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been slept."""
    slept = []
    monkeypatch.setattr(retry, "wait", slept.append)
    return slept


def failing(times, error):
    """An action that fails some times, then answers."""
    left = iter([error] * times)

    def action():
        for each in left:
            raise each
        return "answer"

    return action


@pytest.mark.parametrize("times", range(4))
def test_errors_that_pass_are_waited_for(waits, times):
    assert call_with_retries(failing(times, ConnectionResetError("reset")), "x.jpg") == "answer"
    assert waits == pytest.approx([0.1, 0.4, 1.6][:times])


def test_an_error_that_stays_stops_the_job_and_names_the_path(waits):
    with pytest.raises(StorageFailure, match=r"photos/x\.jpg.*4 attempts.*reset"):
        call_with_retries(failing(4, ConnectionResetError("reset")), "photos/x.jpg")
    assert len(waits) == 3


@pytest.mark.parametrize("error", [*retry.PERMANENT_ERRORS, OSError(errno.ELOOP, ""), ValueError])
def test_what_would_fail_again_is_not_tried_again(waits, error):
    with pytest.raises(error if isinstance(error, type) else type(error)) as raised:
        call_with_retries(failing(1, error), "x.jpg")
    assert not isinstance(raised.value, StorageFailure)
    assert waits == []


@pytest.mark.parametrize(("status", "error"), [(401, AccessRefused), (403, ClientResponseError)])
def test_an_image_server_that_wants_other_credentials_stops_the_job(waits, status, error):
    """403 may be of one image; 401 is of whoever asks."""
    asked = SimpleNamespace(real_url="http://photos/x.jpg")
    answer = ClientResponseError(asked, (), status=status, message="no")
    with pytest.raises(error):
        call_with_retries(failing(1, answer), "http://photos/x.jpg")
    assert waits == []


def test_a_missing_file_is_missing_at_once(tmp_path, waits):
    with pytest.raises(FileNotFoundError):
        read_uri(str(tmp_path / "x.jpg"))
    with pytest.raises(FileNotFoundError):
        read_uri(str(tmp_path / "caf%E9.jpg"))
    with pytest.raises(FileNotFoundError):
        read_uri(f"memory://{uuid.uuid4()}/x.jpg")
    assert waits == []


def test_a_link_to_itself_fails_at_once(tmp_path, waits):
    (tmp_path / "x.jpg").symlink_to("x.jpg")
    with pytest.raises(OSError, match="symbolic links"):
        read_uri(str(tmp_path / "x.jpg"))
    assert waits == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_every_read_of_an_image_passes_the_seam(tmp_path, waits, when):
    (tmp_path / "x.jpg").write_bytes(b"photo")
    moments = operations(lambda: read_uri(str(tmp_path / "x.jpg")))
    assert [moment[0] for moment in moments] == ["before", "after"]
    with inject_faults(FailAt(["before", "after"].index(when), broken)):
        assert read_uri(str(tmp_path / "x.jpg")) == b"photo"
    assert len(waits) == 1
