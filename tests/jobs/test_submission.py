"""The same command, submitted to a cluster that is somebody else's process."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.commands import LOOKALIKE, SMALL, lookalike_here

RAY = str(Path(sys.executable).with_name("ray"))
WAIT = 180


@pytest.fixture
def head(tmp_path):
    """Start a head node on loopback as a process of its own, and end it; gives its dashboard."""
    gcs, dashboard, agent = _free_ports(3)
    socket_folder = Path("/tmp") / f"la{os.getpid()}"  # Ray's socket paths must be short
    environment = {
        **os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2",
        f"--temp-dir={socket_folder}", "--disable-usage-stats",
        # by default a fixed one, which the Ray of the other tests has: jobs need this agent
        f"--dashboard-agent-listen-port={agent}",
    ]  # fmt: skip
    log = tmp_path / "head.log"
    with open(log, "w") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
    try:
        _wait_for(dashboard, agent)  # each submission before they are up costs seconds
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:  # asked to end, it would wait half a minute for its children
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in started:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(60)
        _, alive = psutil.wait_procs(started, 60)
        assert not alive


def test_a_submitted_job_runs_though_a_folder_of_the_users_is_named_jobs(head, photos, tmp_path):
    address, environment = head
    gallery, queries, out = photos("gallery"), photos("queries", 3, seed=1), tmp_path / "out"
    mine = tmp_path / "work"
    (mine / "jobs").mkdir(parents=True)
    (mine / "jobs" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    words = ["--gallery", gallery, "--queries", queries, "--output", out, *SMALL, "--json"]
    submit = [
        RAY, "job", "submit", "--address", address, "--working-dir", mine, "--",
        LOOKALIKE, "run", *words,
    ]  # fmt: skip
    ended = _submitted(submit, environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    answer = next(line for line in ended.stdout.splitlines() if line.startswith('{"'))
    assert json.loads(answer)["queries"] == 3
    assert lookalike_here("verify", out).code == 0


def _submitted(command, environment):
    """Submit, again while the head's dashboard is not up yet."""
    for _ in range(30):
        ended = subprocess.run(
            [str(word) for word in command], env=environment, capture_output=True, text=True,
            timeout=WAIT, check=False,
        )  # fmt: skip
        said = ended.stdout + ended.stderr
        if "Failed to connect" not in said and "No available agent" not in said:
            return ended
        time.sleep(1)
    return ended


def _wait_for(*ports):
    deadline = time.monotonic() + WAIT
    for port in ports:
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.2)


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
