"""Read a folder into a dictionary, to compare complete outputs."""

from __future__ import annotations

from pathlib import Path

from retrieval.storage.temporary import TEMPORARY_PREFIX


def read_tree(
    root: Path, *, exclude: tuple[str, ...] = ("run.json",), include_temporary: bool = True
) -> dict[str, bytes]:
    """Return the bytes of each file below a folder by its relative path.

    Files named in `exclude` are left out. Temporary files are included by default; set
    `include_temporary=False` after workers were killed, since the next run removes their files.
    """
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in exclude
        if include_temporary or not path.name.startswith(TEMPORARY_PREFIX)
    }
