"""Whether an --output can be used, asked before anything is read, started or computed.

A command that is refused its output after minutes of work has wasted them, and one whose output is
its own input would find pictures that it made among the photos, or remove what it reads.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from retrieval.core.errors import UsageError
from retrieval.core.output_layout import Kind
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import is_remote, local_path, open_folder

_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
"""Further names of the same object stores."""


def check_output(settings: Any, kind: Kind) -> None:
    """Refuse an --output that is an input, holds one, is occupied, or cannot be written."""
    check_apart(settings)
    transaction.check_claim(open_folder(settings.output), kind, overwrite=settings.overwrite)


def check_apart(settings: Any) -> None:
    """Refuse an --output that is, or lies around, something that the command reads.

    An output inside a folder of photos is fine: it is passed over where the folder is listed.
    """
    for field in dataclasses.fields(settings):
        option, value = field.metadata.get("option"), getattr(settings, field.name)
        if option is None or option.place != "read" or value is None:
            continue
        if _is_within(value, settings.output):
            same = _is_within(settings.output, value)
            raise UsageError(
                f"--output {settings.output} {'is' if same else 'lies around'} {option.flag} "
                f"{value}, which this command reads; name a folder beside it"
            )


def check_file(flag: str, path: str, *, output: str | None = None) -> None:
    """Refuse to write a local file into an output, to which it would not belong.

    `output` is what the command itself is to write, which may not be there yet.
    """
    around = finished_output.enclosing_output(path)
    if output is not None and _is_within(path, output):
        around = output
    if around:
        raise UsageError(
            f"{flag} {path} lies in {around}, an output of lookalike, to which it would not "
            "belong; name a place elsewhere"
        )


def _is_within(path: str, folder: str) -> bool:
    """Return whether a path or URI is a folder, or lies in it, through whatever links."""
    if is_remote(path) != is_remote(folder):
        return False
    if is_remote(path):
        return f"{_plain(path)}/".startswith(f"{_plain(folder)}/")
    inner, outer = (Path(os.path.realpath(local_path(name))) for name in (path, folder))
    return any(_is_same(parent, outer) for parent in (inner, *inner.parents))


def _is_same(one: Path, other: Path) -> bool:
    try:  # names differ in case on some file systems, and a folder may be mounted twice
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False


def _plain(uri: str) -> str:
    """Write a URI in one way, as far as that is known without asking its store."""
    scheme, _, path = uri.partition("://")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return f"{_SCHEMES.get(scheme, scheme)}://{'/'.join(parts)}"
