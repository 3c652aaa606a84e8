"""What may be done in a folder, wherever it lies, and the seam that every operation passes.

`seam` is the ONE place where tests inject faults: it is called before and after every operation,
and where an operation is tried again, for each attempt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal


def _nothing(when: Literal["before", "after"], operation: str, path: str) -> None:
    """Let every operation pass."""


seam: Callable[[Literal["before", "after"], str, str], None] = _nothing


@contextmanager
def operation(name: str, path: str) -> Iterator[None]:
    """Surround one operation on storage by the seam."""
    seam("before", name, path)
    yield
    seam("after", name, path)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a folder: its path below it ('/'-separated) and its size in bytes."""

    path: str
    size: int


class Folder(ABC):
    """A folder and what may be done in it; paths are relative to it, '/'-separated."""

    @abstractmethod
    def uri(self, path: str = "") -> str:
        """Give the absolute path or URI of a file in it."""

    @abstractmethod
    def child(self, path: str) -> Folder:
        """Give the folder at `path` below this one, there or not."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, seekable; FileNotFoundError where there is none."""

    @abstractmethod
    def entries(self, below: str = "") -> Iterator[Entry]:
        """Yield every file in it, at any depth, temporary ones included; none if it is absent.

        What a desktop or file system left there counts as absent (`ignored_files.py`).
        """

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a file as a whole, replacing what is there."""

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file as a whole if nothing is there; False where something is."""

    @abstractmethod
    def put_new_file(self, path: str, write: Callable[[str], None]) -> bool:
        """Let `write` fill a local file of a given name, then put it as `put_new` does."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def sweep(self) -> None:
        """Remove what dead processes of this host, or anyone a day ago, left half-written."""
        return

    def read(self, path: str) -> bytes:
        """Give a file's bytes."""
        with self.open(path) as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        try:
            self.open(path).close()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True
