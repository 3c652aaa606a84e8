"""A folder as a value: every file's path and bytes, to compare whole outputs."""

from __future__ import annotations

from pathlib import Path

from retrieval.storage.temporary import TEMPORARY_PREFIX


def tree(
    root: Path, *, but: tuple[str, ...] = ("run.json",), half: bool = True
) -> dict[str, bytes]:
    """Give path -> bytes of all files below a folder, run.json left out.

    Temporary ones are files too, unless what is half-written does not count: a run leaves what
    its workers wrote when they were killed to the next one's sweep.
    """
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in but
        if half or not path.name.startswith(TEMPORARY_PREFIX)
    }
