"""Test connecting to clusters, and the folder, token and path of a local Ray instance."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from jobs.cluster import connection, resources, session, submit
from jobs.cluster.resources import Cluster
from jobs.cluster.submit import dashboard_address
from retrieval.core.errors import InputError
from tests.commands import LOOKALIKE
from tests.retrieval.storage.s3 import free_ports


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Remove all RAY_ variables from the environment, and restore them after the test."""
    for name in [*os.environ, *connection._CLUSTER_ENVIRONMENT]:
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, "")  # so that monkeypatch restores it
            monkeypatch.delenv(name)
    monkeypatch.setattr(connection, "_PORT_TIMEOUT", 0.2)


@pytest.fixture
def silent_port():
    """Return the port of a server that accepts connections and never answers."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-such-host.invalid:6379"])
def test_unreachable_address_is_refused_naming_its_source(monkeypatch, address):
    (port,) = free_ports(1)
    address = address.format(port=port)
    with pytest.raises(InputError, match=f"^--ray-address {address}: nothing answers there"):
        connection.connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for option in (None, "auto"):
        with pytest.raises(
            InputError, match=f"^RAY_ADDRESS={address}: nothing answers .*; specify"
        ):
            connection.connect(option)


def test_silent_dashboard_is_refused(monkeypatch, silent_port):
    monkeypatch.setattr(submit, "REPLY_TIMEOUT", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{silent_port}")
    from jobs.config.settings import EmbedSettings

    settings = EmbedSettings(input="/i", output="/o")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS=http://\S+: no dashboard .*timed out"):
        submit.submit(dashboard_address(settings), "embed", settings, sys.stdout)


def test_failed_connection_is_not_attempted_again(monkeypatch, silent_port):
    """By default Ray connects twenty times; it reads the setting at import."""
    connect_calls = []

    def refuse(option):
        connect_calls.append(option)
        raise InputError("no cluster")

    monkeypatch.setattr(resources, "connect", refuse)
    monkeypatch.setattr(resources, "is_connected", lambda: False)
    cluster = Cluster(f"127.0.0.1:{silent_port}", None)
    assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "1"
    for _ in range(3):  # as consecutive stages do
        with pytest.raises(InputError):
            cluster.connect()
    assert len(connect_calls) == 1


@pytest.mark.nightly  # Ray waits for ten seconds and more
def test_server_that_is_not_ray_is_refused_within_a_minute(tmp_path):
    import numpy as np

    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    with closing(socket.socket()) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{listener.getsockname()[1]}"}
        arguments = ["index", "--embeddings", tmp_path / "v.npy", "--output", tmp_path / "o"]
        result = subprocess.run(
            [LOOKALIKE, *arguments], env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert result.returncode == 3
    assert f"RAY_ADDRESS={environment['RAY_ADDRESS']}: Ray cannot be reached" in result.stderr


def test_missing_cluster_token_is_reported(tmp_path, local_ray):
    import numpy as np
    import ray

    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    address = ray.get_runtime_context().gcs_address
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("f" * 64)
    arguments = ["index", "--embeddings", tmp_path / "v.npy", "--output", tmp_path / "o"]
    result = subprocess.run(
        [LOOKALIKE, *arguments, "--ray-address", address],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 3
    assert f"error: --ray-address {address}: the cluster requires a token" in result.stderr
    assert "RAY_AUTH_MODE=token" in result.stderr


@pytest.fixture
def session_parent(tmp_path, monkeypatch):
    """Create session folders below `tmp_path` only."""
    monkeypatch.setattr(session, "_parents", lambda: [str(tmp_path / "no" / "such"), str(tmp_path)])
    return tmp_path


def start_with_errors(*errors):
    """Start a local Ray whose first attempts raise `errors`; return the folder of each attempt."""
    temp_dirs, remaining_errors = [], list(errors)

    def init(**options):
        temp_dirs.append(options["_temp_dir"])
        assert Path(temp_dirs[-1]).is_dir()
        if remaining_errors:
            raise remaining_errors.pop(0)

    connection._start(init)
    return temp_dirs


STARTUP_TIMEOUT = Exception("The current node timed out during startup. This could happen because")


def test_startup_timeout_is_retried_once_in_a_new_folder(session_parent):
    first, second = start_with_errors(STARTUP_TIMEOUT)
    assert not os.path.exists(first)
    assert os.path.isdir(second)
    session.running_session().end()
    assert list(session_parent.iterdir()) == []


def test_failed_startup_is_reported_and_removes_its_folders(session_parent, monkeypatch):
    import ray

    def time_out(**_):
        raise STARTUP_TIMEOUT

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(InputError, match=r"^Ray cannot be started on this machine .*timed out"):
        connection.connect(None)
    with pytest.raises(ValueError, match="other"):
        start_with_errors(ValueError("other"))
    assert list(session_parent.iterdir()) == []


def test_token_of_a_local_ray_is_set_in_the_environment_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    connection._choose_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN_PATH", "/secret")):
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv(name, value)
        connection._choose_token()
        assert "RAY_AUTH_TOKEN" not in os.environ
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    connection._choose_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"


def test_workers_receive_only_the_path_of_our_packages(tmp_path):
    root = str(Path(__file__).parents[3])
    sys_path = connection._options("local")["job_config"]._py_driver_sys_path
    sys_path.extend([str(tmp_path), root])
    assert sys_path == [root]


def test_session_folders_of_killed_processes_are_removed(session_parent):
    running = session.running_session()  # possibly started by another test
    killed_session = session.start_session()
    os.close(killed_session.lock)  # as the kernel does at the end of a process
    session._started.remove(killed_session)
    (Path(killed_session.folder) / "session_2026").mkdir()
    session_in_use = session.start_session()
    assert not os.path.exists(killed_session.folder)
    unrelated_folders = {
        session_parent / "lookalike-0" / "session_1",
        session_parent / "lookalike-abcdefgh",
    }
    for folder in unrelated_folders:
        folder.mkdir(parents=True)
    third_session = session.start_session()
    assert os.path.isdir(session_in_use.folder)
    third_session.end()
    session_in_use.end()
    assert all(folder.is_dir() for folder in unrelated_folders)
    assert session.running_session() is running


def test_session_folder_of_a_running_process_is_kept(session_parent):
    killed_session = session.start_session()
    os.close(killed_session.lock)
    session._started.remove(killed_session)
    arguments = [sys.executable, "-c", "input()", f"--temp-dir={killed_session.folder}/session_1"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as process:
        session.start_session().end()
        assert os.path.isdir(killed_session.folder)
        process.communicate(b"\n")
    session.start_session().end()
    assert list(session_parent.iterdir()) == []


def test_unwritable_session_folder_names_tmpdir(monkeypatch):
    monkeypatch.setattr(session, "_parents", lambda: ["/proc/nonexistent"])
    with pytest.raises(InputError, match=r"at most 24 characters.*set TMPDIR to a writable folder"):
        session.start_session()


def test_too_long_temporary_folder_is_not_used(monkeypatch):
    monkeypatch.setattr(session.tempfile, "tempdir", "/a/path/that/is/far/too/long/for/sockets")
    assert session._parents()[0] == "/tmp"
