"""Checks that an output can be written, before anything is read, started or computed.

Otherwise a command would fail after minutes of work, or would replace or remove its own input.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from retrieval.core.errors import UsageError
from retrieval.core.output_layout import OutputKind
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import is_remote, local_path, open_folder

_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
"""Aliases of URI schemes, with the scheme they stand for."""


def check_output(settings: Any, kind: OutputKind) -> None:
    """Raise if --output is or contains an input, belongs to another job, or cannot be written."""
    check_inputs_outside(settings)
    transaction.check_output_claim(open_folder(settings.output), kind, overwrite=settings.overwrite)


def check_inputs_outside(settings: Any) -> None:
    """Raise UsageError if --output is or contains an input of the command.

    An output inside a folder of photos is allowed: listing the folder skips it.
    """
    for field in dataclasses.fields(settings):
        option, value = field.metadata.get("option"), getattr(settings, field.name)
        if option is None or option.access != "read" or value is None:
            continue
        if _is_within(value, settings.output):
            is_same = _is_within(settings.output, value)
            raise UsageError(
                f"--output {settings.output} {'is' if is_same else 'contains'} {option.flag} "
                f"{value}, which this command reads; specify a folder beside it"
            )


def check_file(flag: str, path: str, *, output: str | None = None) -> None:
    """Raise UsageError if a local file of an option would be written into an output folder.

    `output` is the folder that the command itself will write; it may not exist yet.
    """
    enclosing = finished_output.enclosing_output(path)
    if output is not None and _is_within(path, output):
        enclosing = output
    if enclosing:
        raise UsageError(
            f"{flag} {path} is inside {enclosing}, which is an output of lookalike; specify a path "
            "elsewhere"
        )


def _is_within(path: str, folder: str) -> bool:
    """Return whether a path or URI is a folder or is inside it, after resolving links."""
    if is_remote(path) != is_remote(folder):
        return False
    if is_remote(path):
        return f"{_normalize(path)}/".startswith(f"{_normalize(folder)}/")
    inner, outer = (Path(os.path.realpath(local_path(name))) for name in (path, folder))
    return any(_is_same(parent, outer) for parent in (inner, *inner.parents))


def _is_same(path: Path, other: Path) -> bool:
    try:  # names differ in case on some file systems, and a folder may be mounted twice
        return path == other or os.path.samefile(path, other)
    except OSError:
        return False


def _normalize(uri: str) -> str:
    """Return a URI with the usual scheme and without empty parts; no request is made."""
    scheme, _, path = uri.partition("://")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return f"{_SCHEMES.get(scheme, scheme)}://{'/'.join(parts)}"
