"""One image read with patience: what may pass is tried again, what comes again is raised."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec

from retrieval.errors import StorageFailure
from retrieval.storage.files import is_remote, local_path, operation

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that come again however often one tries; all other OSErrors may pass."""

_ATTEMPTS = 4

Answer = TypeVar("Answer")


def read_uri(path: str, options: Mapping[str, Any] | None = None) -> bytes:
    """Give the bytes of one image, wherever it lies.

    A name that is not UTF-8 stands in listings with %XX for the bytes that are not; it is tried
    when no file has the name as written.
    """

    def read() -> bytes:
        with operation("read", path):
            if is_remote(path):
                system, name = fsspec.core.url_to_fs(path, **(options or {}))
                return cast(bytes, system.cat_file(name))
            name = local_path(path)
            try:
                return Path(name).read_bytes()
            except FileNotFoundError:
                if "%" not in name:
                    raise
                return Path(_not_utf8(name)).read_bytes()

    return retrying(read, path)


def _not_utf8(name: str) -> str:
    """Put bytes back for %80 … %FF, the only ones that are not UTF-8 by themselves."""
    plain = re.sub(
        rb"%([89A-F][0-9A-F])", lambda found: bytes([int(found[1], 16)]), os.fsencode(name)
    )
    return os.fsdecode(plain)


def retrying(action: Callable[[], Answer], path: str) -> Answer:
    """Do an action again after errors that may pass, then refuse with `StorageFailure`.

    Waits 0.1, 0.4, 1.6 s: long enough for a dropped connection, short enough for an image.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except OSError as error:
            if isinstance(error, PERMANENT) or error.errno in _PERMANENT_NUMBERS:
                raise
            if attempt == _ATTEMPTS - 1:
                raise StorageFailure(
                    f"{path} could not be read after {_ATTEMPTS} attempts ({error}); "
                    "what is finished is kept: run the same command again when it can"
                ) from error
            time.sleep(0.1 * 4**attempt)
    raise AssertionError("unreachable")
