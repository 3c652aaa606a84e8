"""A Ray cluster of several nodes on one machine, each started by `ray start` on its own address.

A node is killed with all its processes, as in a power failure, and may be restarted. The head has
no CPUs, so all work runs on the worker nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.commands import LOOKALIKE, CommandResult
from tests.network_links import NetworkLinks
from tests.retrieval.storage.s3 import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).parents[1]
TIMEOUT = 180.0

FAST_FAILURE_DETECTION = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
    "RAY_grpc_keepalive_time_ms": "2000",
    "RAY_grpc_keepalive_timeout_ms": "2000",
}
"""Ray settings that detect a dead node after 1.5 s instead of 15 s, and a cut link after 4 s."""

_MOUNT_PRIVATE_FOLDER = 'mount --make-rprivate / && mount -t tmpfs tmpfs "$0" && exec "$@"'


@dataclass
class RayNodes:
    """The processes of a cluster by node name: `head`, `node1`, `node2`."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    node_settings: dict[str, dict[str, str]] = field(default_factory=dict)  # by node name
    node_arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of `ray start`
    object_store_bytes: int = 100_000_000  # of each node
    links: NetworkLinks | None = None
    private_folder: Path | None = None  # mounted separately on each worker node; requires root
    head_arguments: tuple[str, ...] = ()  # further arguments of the head
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def __post_init__(self):
        self.gcs, self.dashboard, self.agent = free_ports(3)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.pause_folder = self.folder / "paused"
        self.pause_folder.mkdir()
        # socket paths have a length limit
        self.sockets = Path(tempfile.mkdtemp(prefix="la", dir="/tmp"))
        # commands that other tests ran in this process may have set these
        inherited = {
            name: value for name, value in os.environ.items()
            if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        }  # fmt: skip
        self.environment = {
            **inherited, **FAST_FAILURE_DETECTION, "RAY_AUTH_MODE": "disabled",
            "RAY_enable_metrics_collection": "false", "RAY_prestart_worker_first_driver": "false",
            **self.settings, "RAY_USAGE_STATS_ENABLED": "0", "PAUSE_FOLDER": str(self.pause_folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'tests' / 'pause_hook'}:{ROOT}",
        }  # fmt: skip

    def start_head(self):
        """Start the head, and wait until it accepts jobs."""
        self._start(
            "head", 1, "--head", f"--port={self.gcs}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", "--num-cpus=0",
            f"--dashboard-agent-listen-port={self.agent}", *self.head_arguments,
        )  # fmt: skip
        wait_until(lambda: _listens(self.agent), "the head's agent")
        wait_until(self._accepts_jobs, "the head to accept jobs")

    def start(self, name, number, cpus=1):
        """Start a worker node."""
        (agent,) = free_ports(1)
        self._start(
            name, number, f"--address={self._ip(1)}:{self.gcs}", f"--num-cpus={cpus}",
            f"--dashboard-agent-listen-port={agent}",
        )  # fmt: skip

    def _start(self, name, number, *arguments):
        assert name not in self.processes
        command = [
            RAY, "start", "--block", f"--node-ip-address={self._ip(number)}",
            "--disable-usage-stats", f"--temp-dir={self.sockets / str(number)}",
            f"--object-store-memory={self.object_store_bytes}", "--include-log-monitor=false",
            *arguments, *self.node_arguments.get(name, ()),
        ]  # fmt: skip
        if self.links and number > 1:
            command = self.links.in_namespace(number, command)
        if self.private_folder and number > 1:
            command = [
                "unshare",
                "--mount",
                "sh",
                "-euc",
                _MOUNT_PRIVATE_FOLDER,
                self.private_folder,
                *command,
            ]
        with open(self.folder / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                command, env={**self.environment, **self.node_settings.get(name, {}), "NODE": name},
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        if self.links and number > 1:
            self.links.connect(number, self.processes[name])

    def _ip(self, number):
        return self.links.address(number) if self.links else f"127.0.0.{number}"

    def wait_for_nodes(self, count):
        """Wait until the head reports `count` alive nodes."""
        wait_until(lambda: len(self.alive()) == count, f"{count} nodes")

    def alive(self):
        """Return the addresses of the nodes that the head reports as alive."""
        nodes = [node["raylet"] for node in self.get_json("/nodes?view=summary")["data"]["summary"]]
        return [node["nodeManagerAddress"] for node in nodes if node.get("state") == "ALIVE"]

    def _accepts_jobs(self):
        with suppress(OSError):
            return self.get_json("/api/jobs/") is not None

    def get_json(self, path):
        """Return the JSON answer of the dashboard to a GET request."""
        token = self.environment.get("RAY_AUTH_TOKEN", "none")
        request = urllib.request.Request(self.address + path)
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)

    def restore(self):
        """Restart missing nodes, and resume all paused processes."""
        for number, name in enumerate(WORKER_NODES, 2):
            self.resume(name)
            if name in self.processes and self.processes[name].poll() is not None:
                self.kill(name)
            if name not in self.processes:
                self.start(name, number)
        self.resume("head")
        self.wait_for_nodes(len(WORKER_NODES) + 1)

    def kill(self, name):
        """Kill all processes of a node at once."""
        process = self.processes.pop(name)
        kill_process_tree(process)
        process.wait(TIMEOUT)

    def find_processes(self, name, text):
        """Return the processes of a node whose command line contains `text`."""
        processes = psutil.Process(self.processes[name].pid).children(recursive=True)
        return [process for process in processes if text in " ".join(process.cmdline())]

    def pause_at(self, name, pattern):
        """Pause processes of a node before storage operations that match a pattern.

        The pattern is a regular expression searched in "OPERATION PATH".
        """
        (self.pause_folder / f"{name}.paused").unlink(missing_ok=True)
        (self.pause_folder / name).write_text(pattern)

    def pause_all_at(self, pattern):
        """Pause processes of all worker nodes before operations that match a pattern."""
        for name in WORKER_NODES:
            self.pause_at(name, pattern)

    def wait_for_first_paused(self, command, seconds=TIMEOUT):
        """Return the first node with a paused process, and resume the other nodes."""

        def paused_nodes():
            return [
                name for name in WORKER_NODES if (self.pause_folder / f"{name}.paused").exists()
            ]

        wait_until(
            lambda: paused_nodes() or command.poll() is not None, "a node to be paused", seconds
        )
        assert paused_nodes(), "the command ended before"
        first = paused_nodes()[0]
        for name in {*WORKER_NODES} - {first}:
            self.resume(name)
        return first

    def resume(self, name):
        """Resume the paused processes of a node."""
        (self.pause_folder / name).unlink(missing_ok=True)

    def wait_until_paused(self, name, command, seconds=TIMEOUT):
        """Wait until a process of a node is paused, and resume the other nodes.

        Fails if the command ends before.
        """
        marker = self.pause_folder / f"{name}.paused"
        wait_until(
            lambda: marker.exists() or command.poll() is not None, f"{name} to be paused", seconds
        )
        assert marker.exists(), "the command ended before"
        for other in {*WORKER_NODES} - {name}:
            self.resume(other)

    def close(self):
        """Kill all nodes and remove their sockets."""
        for name in [*self.processes]:
            self.kill(name)
        shutil.rmtree(self.sockets, ignore_errors=True)


@contextmanager
def ray_cluster(folder, settings=(), **options):
    """Yield a running cluster: a head without CPUs and two worker nodes of one CPU each."""
    nodes = RayNodes(folder, dict(settings), **options)
    try:
        nodes.start_head()
        nodes.restore()
        yield nodes
    finally:
        nodes.close()


WORKER_NODES = ("node1", "node2")


def kill_process_tree(process):
    """Kill a process and its descendants; suspend them first, so that none starts another."""
    processes: dict[int, psutil.Process] = {}
    while True:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            tree = [root, *root.children(recursive=True)]
            added = {p.pid: p for p in tree if p.pid not in processes}
            for member in added.values():
                with suppress(psutil.NoSuchProcess):
                    member.suspend()
            processes |= added
            if added:
                continue
        break
    for member in processes.values():
        with suppress(psutil.NoSuchProcess):
            member.kill()
    _, alive = psutil.wait_procs([p for p in processes.values() if p.pid != process.pid], 20)
    assert not alive


class RunningCommand:
    """A command line running in the background."""

    def __init__(self, *arguments, env, cwd=None):
        self._out, self._err = _open_anonymous_file(), _open_anonymous_file()
        self._process = subprocess.Popen(
            [LOOKALIKE, *map(str, arguments)], stdout=self._out, stderr=self._err, env=env, cwd=cwd
        )
        self.poll, self.send_signal = self._process.poll, self._process.send_signal

    def read_stderr(self):
        """Return the output on stderr so far."""
        return os.pread(self._err, 1 << 20, 0).decode()

    def wait(self, seconds):
        """Wait for the end of the command, and return its result; kill it after `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"still running after {seconds} s: {self.read_stderr()}") from None
        return CommandResult(
            self._process.returncode, os.pread(self._out, 1 << 20, 0).decode(), self.read_stderr()
        )


def _open_anonymous_file():
    """Return the descriptor of an anonymous temporary file."""
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


def wait_until(condition, description, seconds=TIMEOUT):
    """Wait until `condition()` is true; fail after `seconds`, naming `description`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {description}"
        time.sleep(0.1)


def _listens(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
