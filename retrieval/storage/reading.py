"""One image read with patience: what may pass is tried again, what comes again is raised."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import fsspec

from retrieval.storage.files import is_remote, local_path, operation
from retrieval.storage.patience import retrying


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
