"""A cluster of several nodes on one machine: each a `ray start` of its own on its own address.

A node is killed with all its processes, as if its machine had lost its power, and may be started
again. The head has no CPUs, so that work is done by the others.
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

from tests.commands import LOOKALIKE, Ended
from tests.links import Links
from tests.retrieval.storage.s3 import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).parents[1]
WAIT = 60.0

QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
    "RAY_grpc_keepalive_time_ms": "2000",
    "RAY_grpc_keepalive_timeout_ms": "2000",
}
"""A node that is gone is noticed after 1.5 s instead of 15, a link that is cut after 4."""

_ITS_OWN = 'mount --make-rprivate / && mount -t tmpfs tmpfs "$0" && exec "$@"'


@dataclass
class Nodes:
    """The processes of a cluster, by the name of their node: `head`, `one`, `two`."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    harm: dict[str, dict[str, str]] = field(default_factory=dict)  # settings of single nodes
    store: int = 100_000_000  # bytes of each node's object store
    links: Links | None = None
    own: Path | None = None  # a folder that each worker node has for itself; takes root
    head: tuple[str, ...] = ()  # further words that start the head
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def __post_init__(self):
        self.gcs, self.dashboard, self.agent = free_ports(3)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.held = self.folder / "held"
        self.held.mkdir()
        self.sockets = Path(tempfile.mkdtemp(prefix="la", dir="/tmp"))  # paths must be short
        self.environment = {
            **os.environ, **QUICK, "RAY_AUTH_MODE": "disabled",
            "RAY_enable_metrics_collection": "false", "RAY_prestart_worker_first_driver": "false",
            **self.settings, "RAY_USAGE_STATS_ENABLED": "0", "HELD": str(self.held),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'tests' / 'held'}:{ROOT}",
        }  # fmt: skip

    def start_head(self):
        """Start the head, and wait until it takes jobs."""
        self._start(
            "head", 1, "--head", f"--port={self.gcs}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", "--num-cpus=0",
            f"--dashboard-agent-listen-port={self.agent}", *self.head,
        )  # fmt: skip
        until(lambda: _listens(self.agent), "the head's agent")
        until(self._takes_jobs, "the head to take jobs")

    def start(self, name, number, cpus=1):
        """Start a worker node."""
        (agent,) = free_ports(1)
        self._start(
            name, number, f"--address={self._ip(1)}:{self.gcs}", f"--num-cpus={cpus}",
            f"--dashboard-agent-listen-port={agent}",
        )  # fmt: skip

    def _start(self, name, number, *words):
        assert name not in self.processes
        command = [
            RAY, "start", "--block", f"--node-ip-address={self._ip(number)}",
            "--disable-usage-stats", f"--temp-dir={self.sockets / str(number)}",
            f"--object-store-memory={self.store}", "--include-log-monitor=false", *words,
        ]  # fmt: skip
        if self.links and number > 1:
            command = self.links.wrapped(number, command)
        if self.own and number > 1:
            command = ["unshare", "--mount", "sh", "-euc", _ITS_OWN, self.own, *command]
        with open(self.folder / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                command, env={**self.environment, **self.harm.get(name, {}), "NODE": name},
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        if self.links and number > 1:
            self.links.connect(number, self.processes[name])

    def _ip(self, number):
        return self.links.address(number) if self.links else f"127.0.0.{number}"

    def wait(self, count):
        """Wait until so many nodes are alive, as the head sees them."""
        until(lambda: len(self.alive()) == count, f"{count} nodes")

    def alive(self):
        """Ask the head for the addresses of its nodes."""
        found = [node["raylet"] for node in self.ask("/nodes?view=summary")["data"]["summary"]]
        return [node["nodeManagerAddress"] for node in found if node.get("state") == "ALIVE"]

    def _takes_jobs(self):
        with suppress(OSError):
            return self.ask("/api/jobs/") is not None

    def ask(self, path):
        """Ask the dashboard for anything."""
        token = self.environment.get("RAY_AUTH_TOKEN", "none")
        request = urllib.request.Request(self.address + path)
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def mend(self):
        """Start what was killed or gave itself up, and hold nothing any more."""
        for number, name in enumerate(NAMES, 2):
            self.let_go(name)
            if name in self.processes and self.processes[name].poll() is not None:
                self.kill(name)
            if name not in self.processes:
                self.start(name, number)
        self.let_go("head")
        self.wait(len(NAMES) + 1)

    def kill(self, name):
        """End all processes of a node at once."""
        process = self.processes.pop(name)
        end(process)
        process.wait(WAIT)

    def has(self, name, what):
        """Give the processes of a node that are called something like this."""
        below = psutil.Process(self.processes[name].pid).children(recursive=True)
        return [process for process in below if what in " ".join(process.cmdline())]

    def hold(self, name, pattern):
        """Let processes of a node wait before they store a file whose path has this pattern."""
        (self.held / f"{name}.here").unlink(missing_ok=True)
        (self.held / name).write_text(pattern)

    def hold_all(self, pattern):
        """Let the workers of whichever node wait there."""
        for name in NAMES:
            self.hold(name, pattern)

    def first_held(self, running, seconds=WAIT):
        """Give the first node of which one waits, and let the others go on."""

        def held():
            return [name for name in NAMES if (self.held / f"{name}.here").exists()]

        until(lambda: held() or running.poll() is not None, "a node to be held", seconds)
        assert held(), "the command ended before"
        first = held()[0]
        for name in {*NAMES} - {first}:
            self.let_go(name)
        return first

    def let_go(self, name):
        """Let them go on."""
        (self.held / name).unlink(missing_ok=True)

    def wait_held(self, name, running, seconds=WAIT):
        """Wait until one of them waits there, while the command runs that is to get there."""
        here = self.held / f"{name}.here"
        until(lambda: here.exists() or running.poll() is not None, f"{name} to be held", seconds)
        assert here.exists(), "the command ended before"

    def close(self):
        """End everything."""
        for name in [*self.processes]:
            self.kill(name)
        shutil.rmtree(self.sockets, ignore_errors=True)


@contextmanager
def cluster(folder, settings=(), **given):
    """Give a head and two workers of one CPU each, all of them there."""
    nodes = Nodes(folder, dict(settings), **given)
    try:
        nodes.start_head()
        nodes.mend()
        yield nodes
    finally:
        nodes.close()


NAMES = ("one", "two")


def end(process):
    """Kill a process and all below it: stopped first, so that none starts another meanwhile."""
    seen: dict[int, psutil.Process] = {}
    while True:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            found = {p.pid: p for p in [root, *root.children(recursive=True)] if p.pid not in seen}
            for each in found.values():
                with suppress(psutil.NoSuchProcess):
                    each.suspend()
            seen |= found
            if found:
                continue
        break
    for each in seen.values():
        with suppress(psutil.NoSuchProcess):
            each.kill()
    _, alive = psutil.wait_procs([p for p in seen.values() if p.pid != process.pid], 20)
    assert not alive


class Running:
    """The command line, started and not waited for."""

    def __init__(self, *words, env, cwd=None):
        self._out, self._err = _sink(), _sink()
        self._process = subprocess.Popen(
            [LOOKALIKE, *map(str, words)], stdout=self._out, stderr=self._err, env=env, cwd=cwd
        )
        self.poll, self.send_signal = self._process.poll, self._process.send_signal

    def said(self):
        """Give what it wrote to stderr so far."""
        return os.pread(self._err, 1 << 20, 0).decode()

    def ended(self, seconds):
        """Wait for its end, not longer than that."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"not ended after {seconds} s: {self.said()}") from None
        return Ended(
            self._process.returncode, os.pread(self._out, 1 << 20, 0).decode(), self.said()
        )


def _sink():
    """Give a descriptor of a file that nobody else knows."""
    number, path = tempfile.mkstemp()
    os.unlink(path)
    return number


def until(true, what, seconds=WAIT):
    """Wait until something is true."""
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def _listens(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
