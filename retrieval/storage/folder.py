"""Interface of a folder, local or remote, and the hook that every storage operation calls.

Tests replace `fault_hook` to inject faults: it is called before and after every operation, and once
per attempt where an operation is retried.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal


def _do_nothing(when: Literal["before", "after"], operation: str, path: str) -> None:
    """Inject no fault (default hook)."""


fault_hook: Callable[[Literal["before", "after"], str, str], None] = _do_nothing


@contextmanager
def operation(name: str, path: str) -> Iterator[None]:
    """Call the fault hook before and after one storage operation."""
    fault_hook("before", name, path)
    yield
    fault_hook("after", name, path)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a folder: its path below it ('/'-separated) and its size in bytes."""

    path: str
    size: int


class Folder(ABC):
    """A local or remote folder; paths are relative to it and '/'-separated."""

    @abstractmethod
    def uri(self, path: str = "") -> str:
        """Return the absolute path or URI of a file in this folder; by default of the folder."""

    @abstractmethod
    def child(self, path: str) -> Folder:
        """Return the folder at `path` below this one, whether or not it exists."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a file as a seekable binary stream; raise FileNotFoundError if there is none."""

    @abstractmethod
    def entries(self, below: str = "") -> Iterator[Entry]:
        """Iterate over all files below a path, at any depth, temporary ones included.

        Files created by desktops and file systems are skipped (`ignored_files.py`). A folder that
        does not exist has no entries.
        """

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing an existing one."""

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file atomically if it does not exist; return whether it was written.

        On object stores an existing file of the same content also counts as written.
        """

    @abstractmethod
    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        """Call `write` with the path of a local file to fill, then write that as `put_new` does."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file if it exists."""

    def sweep(self) -> None:
        """Remove temporary files of ended processes of this host, and those older than a day."""
        return

    def read(self, path: str) -> bytes:
        """Return the bytes of a file; raise FileNotFoundError if there is none."""
        with self.open(path) as file:
            return file.read()

    def sha256(self, path: str) -> str:
        """Return the hex SHA-256 of a file, which may be larger than memory."""
        with self.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def exists(self, path: str) -> bool:
        """Return whether there is a file at `path`."""
        try:
            self.open(path).close()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True
