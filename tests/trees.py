"""A folder as a value: every file's path and bytes, to compare whole outputs."""

from __future__ import annotations

from pathlib import Path


def tree(root: Path, *, but: tuple[str, ...] = ("run.json",)) -> dict[str, bytes]:
    """Give path -> bytes of all files below a folder, temporary ones too, run.json left out."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in but
    }
