"""Fixtures for source tests: a local folder, and one behind a URI."""

import uuid
from pathlib import Path

import fsspec
import pytest


class Place:
    """A folder somewhere, in which files are laid."""

    def __init__(self, root):
        self.root = root

    def put(self, name, data):
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
    return Place(str(tmp_path / "photos"))


@pytest.fixture
def remote():
    place = Place(f"memory://{uuid.uuid4()}/photos")
    yield place
    system = fsspec.filesystem("memory")
    for path in system.find(place.root):
        system.rm_file(path)
