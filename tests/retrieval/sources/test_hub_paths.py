"""Tests of `hf://` paths: a folder of a repository is read over HTTP, here from a fake hub."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from retrieval.core.errors import InputError
from retrieval.sources.detect import open_source
from retrieval.storage.input_files import read_uri

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "/api/datasets/owner/animals"
FILES = {"photos/cat/1.png": b"first", "photos/dog/2.png": b"second", "README.md": b"text"}


def tree(prefix):
    """Return the entries of one folder, as the hub's API lists them."""
    entries = {}
    for name, data in FILES.items():
        if prefix and not name.startswith(prefix + "/"):
            continue
        head, slash, _ = name[len(prefix) + 1 if prefix else 0 :].partition("/")
        path = f"{prefix}/{head}" if prefix else head
        size = 0 if slash else len(data)
        entries[path] = {
            "type": "directory" if slash else "file", "path": path, "size": size, "oid": "a" * 40
        }  # fmt: skip
    return list(entries.values())


class FakeHub(BaseHTTPRequestHandler):
    """Answers the requests for one repository of a data set."""

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        files = "/datasets/owner/animals/resolve/main/"
        if path == REPOSITORY:
            self.answer({"id": "owner/animals", "_id": "1", "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{REPOSITORY}/tree/main"):
            self.answer(tree(path.removeprefix(f"{REPOSITORY}/tree/main").strip("/")))
        elif path.startswith(files):
            self.answer(FILES[path.removeprefix(files)])
        else:
            self.answer({"error": "Repository not found"}, 404)

    def answer(self, value, status=200):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Suppress the log line of a request."""


@pytest.fixture
def hub(monkeypatch):
    """Yield the storage options that select the fake hub."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield {"endpoint": f"http://127.0.0.1:{server.server_address[1]}", "token": False}
    server.shutdown()
    server.server_close()
    thread.join()


def test_folder_of_a_repository_is_listed_and_read(hub):
    source = open_source("hf://datasets/owner/animals/photos", options=hub)
    items = sorted(source.items(), key=lambda item: item.image_id)
    assert [(item.image_id, item.label, item.size) for item in items] == [
        ("cat/1.png", "cat", 5), ("dog/2.png", "dog", 6)
    ]  # fmt: skip
    assert [read_uri(item.path, hub) for item in items] == [b"first", b"second"]


def test_missing_repository_is_refused(hub):
    with pytest.raises(InputError, match="hf://datasets/owner/other/photos does not exist"):
        open_source("hf://datasets/owner/other/photos", options=hub)


def test_offline_mode_is_named(monkeypatch):
    """The hub's cache serves the weights of networks, not `hf://` paths."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set; unset it, or .*hf download"):
        open_source("hf://datasets/owner/offline/photos")
