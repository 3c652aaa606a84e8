"""Check that an output can be written, before anything is read, started or computed.

Otherwise a command would fail only after minutes of work, or an output inside its own input would
have its pictures listed among the photos, or would remove what the command reads.
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
"""Other URI schemes of the same object stores."""


def check_output(settings: Any, kind: OutputKind) -> None:
    """Raise if --output is an input, contains one, holds another job, or cannot be written."""
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
            same = _is_within(settings.output, value)
            raise UsageError(
                f"--output {settings.output} {'is' if same else 'contains'} {option.flag} "
                f"{value}, which this command reads; name a folder beside it"
            )


def check_file(flag: str, path: str, *, output: str | None = None) -> None:
    """Raise UsageError if a local file would be written into an output folder.

    `output` is the folder that the command itself will write, which may not exist yet.
    """
    enclosing = finished_output.enclosing_output(path)
    if output is not None and _is_within(path, output):
        enclosing = output
    if enclosing:
        raise UsageError(
            f"{flag} {path} lies in {enclosing}, an output of lookalike, to which it would not "
            "belong; name a place elsewhere"
        )


def _is_within(path: str, folder: str) -> bool:
    """Return whether a path or URI is a folder or lies in it, after resolving links."""
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
    """Return a URI in its normal form, as far as that is known without a request."""
    scheme, _, path = uri.partition("://")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return f"{_SCHEMES.get(scheme, scheme)}://{'/'.join(parts)}"
