"""Clusters that are not there or refuse, and a Ray of our own: its folder, token and path."""

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
def plain_environment(monkeypatch):
    """Nothing of Ray's in the environment but what a test sets, and nothing left there."""
    for name in [*os.environ, *connection._CLUSTER_ENVIRONMENT]:
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, "")  # so that it is restored
            monkeypatch.delenv(name)
    monkeypatch.setattr(connection, "_PORT_TIMEOUT", 0.2)


@pytest.fixture
def silent():
    """The port of something that takes connections and never answers."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-such-host.invalid:6379"])
def test_an_address_where_nothing_answers_is_refused_naming_what_gave_it(monkeypatch, address):
    (port,) = free_ports(1)
    address = address.format(port=port)
    with pytest.raises(InputError, match=f"^--ray-address {address}: nothing answers there"):
        connection.connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for option in (None, "auto"):
        with pytest.raises(InputError, match=f"^RAY_ADDRESS={address}: nothing answers .* none:"):
            connection.connect(option)


def test_a_dashboard_that_never_answers_is_refused(monkeypatch, silent):
    monkeypatch.setattr(submit, "REPLY_TIMEOUT", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{silent}")
    from jobs.config.settings import EmbedSettings

    settings = EmbedSettings(input="/i", output="/o")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS=http://\S+: no dashboard .*timed out"):
        submit.submit(dashboard_address(settings), "embed", settings, sys.stdout)


def test_what_does_not_speak_ray_is_asked_once_and_not_for_long(monkeypatch, silent):
    """Ray itself asks twenty times; it reads these settings when it is imported."""
    asked = []

    def refuse(option):
        asked.append(option)
        raise InputError("no cluster")

    monkeypatch.setattr(resources, "connect", refuse)
    monkeypatch.setattr(resources, "is_connected", lambda: False)
    where = Cluster(f"127.0.0.1:{silent}", None)
    assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "1"
    for _ in range(3):  # a step that looks again at what there is
        with pytest.raises(InputError):
            where.connect()
    assert len(asked) == 1


@pytest.mark.nightly  # Ray waits for ten seconds and more
def test_what_does_not_speak_ray_is_refused_in_less_than_a_minute(tmp_path):
    import numpy as np

    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    with closing(socket.socket()) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{listener.getsockname()[1]}"}
        words = ["index", "--embeddings", tmp_path / "v.npy", "--output", tmp_path / "o"]
        ended = subprocess.run(
            [LOOKALIKE, *words], env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert ended.returncode == 3
    assert f"RAY_ADDRESS={environment['RAY_ADDRESS']}: Ray cannot be reached" in ended.stderr


def test_who_lacks_the_token_of_a_cluster_is_told_of_tokens(tmp_path, ray_here):
    import numpy as np
    import ray

    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    address = ray.get_runtime_context().gcs_address
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("f" * 64)
    words = ["index", "--embeddings", tmp_path / "v.npy", "--output", tmp_path / "o"]
    ended = subprocess.run(
        [LOOKALIKE, *words, "--ray-address", address], env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 3
    assert f"error: --ray-address {address}: the cluster requires a token" in ended.stderr
    assert "RAY_AUTH_MODE=token" in ended.stderr


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where sessions have their folders: none of anybody else's."""
    monkeypatch.setattr(session, "_parents", lambda: [str(tmp_path / "no" / "such"), str(tmp_path)])
    return tmp_path


def start_with(*errors):
    """Start a Ray here that fails so often; return the folders it was given."""
    given, left = [], list(errors)

    def init(**options):
        given.append(options["_temp_dir"])
        assert Path(given[-1]).is_dir()
        if left:
            raise left.pop(0)

    connection._start(init)
    return given


SLOW = Exception("The current node timed out during startup. This could happen because")


def test_a_ray_that_starts_too_slowly_is_started_once_more_in_a_new_folder(folders):
    first, second = start_with(SLOW)
    assert not os.path.exists(first)
    assert os.path.isdir(second)
    session.running_session().end()
    assert list(folders.iterdir()) == []


def test_a_ray_that_does_not_start_is_refused_and_leaves_nothing(folders, monkeypatch):
    import ray

    def slow(**_):
        raise SLOW

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(InputError, match=r"^Ray cannot be started on this machine .*timed out"):
        connection.connect(None)
    with pytest.raises(ValueError, match="other"):
        start_with(ValueError("other"))
    assert list(folders.iterdir()) == []


def test_a_ray_of_our_own_has_its_token_in_the_environment_alone(tmp_path, monkeypatch):
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


def test_workers_are_sent_only_folders_that_hold_our_packages(tmp_path):
    root = str(Path(__file__).parents[3])
    sent = connection._options("local")["job_config"]._py_driver_sys_path
    sent.extend([str(tmp_path), root])
    assert sent == [root]


def test_folders_of_killed_commands_are_removed_and_those_in_use_are_not(folders):
    before = session.running_session()  # other tests of this process may have started one
    killed = session.start_session()
    os.close(killed.lock)  # as the kernel does
    session._started.remove(killed)
    (Path(killed.folder) / "session_2026").mkdir()
    in_use = session.start_session()
    assert not os.path.exists(killed.folder)
    others = {folders / "lookalike-0" / "session_1", folders / "lookalike-abcdefgh"}
    for other in others:
        other.mkdir(parents=True)
    third = session.start_session()
    assert os.path.isdir(in_use.folder)
    third.end()
    in_use.end()
    assert all(other.is_dir() for other in others)
    assert session.running_session() is before


def test_a_folder_that_a_living_process_was_started_with_is_not_removed(folders):
    killed = session.start_session()
    os.close(killed.lock)
    session._started.remove(killed)
    words = [sys.executable, "-c", "input()", f"--temp-dir={killed.folder}/session_1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        session.start_session().end()
        assert os.path.isdir(killed.folder)
        process.communicate(b"\n")
    session.start_session().end()
    assert list(folders.iterdir()) == []


def test_where_nothing_can_be_written_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(session, "_parents", lambda: ["/proc/nonexistent"])
    with pytest.raises(InputError, match=r"at most 24 characters.*set TMPDIR to one that can"):
        session.start_session()


def test_a_long_path_is_passed_over(monkeypatch):
    monkeypatch.setattr(session.tempfile, "tempdir", "/a/path/that/is/far/too/long/for/sockets")
    assert session._parents()[0] == "/tmp"
