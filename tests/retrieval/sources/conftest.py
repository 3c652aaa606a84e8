"""Fixtures of source tests: a local folder, and a folder behind a URI."""

import uuid
from pathlib import Path

import fsspec
import pytest


class WritableFolder:
    """A local or remote folder to which tests write files."""

    def __init__(self, root):
        self.root = root

    def put(self, name, data):
        """Write a file, creating its folders; return its path or URI."""
        if "://" in self.root:
            fsspec.filesystem("memory").pipe_file(f"{self.root}/{name}", data)
        else:
            path = Path(self.root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"{self.root}/{name}"

    def remove(self, name):
        if "://" in self.root:
            fsspec.filesystem("memory").rm_file(f"{self.root}/{name}")
        else:
            Path(self.root, name).unlink()


@pytest.fixture
def local(tmp_path):
    return WritableFolder(str(tmp_path / "photos"))


@pytest.fixture
def remote():
    folder = WritableFolder(f"memory://{uuid.uuid4()}/photos")
    yield folder
    filesystem = fsspec.filesystem("memory")
    for path in filesystem.find(folder.root):
        filesystem.rm_file(path)
