"""Files that are not whole yet: where they lie, their names, and how one is told as abandoned.

A name carries host, process and the process' start, so that a later run of the same host knows
whether whoever wrote it is still at it.
"""

from __future__ import annotations

import os
import socket
import time

import psutil

from retrieval.core.errors import UsageError

TEMPORARY = ".tmp-"
_STALE_SECONDS = 24 * 3600
_serial = iter(range(1 << 62))


def temporary_name() -> str:
    """Give a name that no other process and no other call gives."""
    process = psutil.Process()
    host = socket.gethostname()
    return f"{TEMPORARY}{host}-{process.pid}-{int(process.create_time())}-{next(_serial)}"


def make_scratch(folder: str | None) -> None:
    """Make the folder of `--scratch` on this node, if one is named, or refuse it."""
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--scratch {folder} cannot be made on {socket.gethostname()} ({error.strerror}); name "
            "a local folder that can, or leave it away"
        ) from error


def is_abandoned(path: str) -> bool:
    """Tell whether the process that made a temporary file is dead, or the file a day old."""
    try:
        if time.time() - os.stat(path).st_mtime > _STALE_SECONDS:
            return True
    except FileNotFoundError:
        return False
    parts = os.path.basename(path)[len(TEMPORARY) :].rsplit("-", 3)
    if len(parts) != 4 or parts[0] != socket.gethostname():
        return False
    try:
        # counted from the boot, whose time moves a little when the clock is set
        return abs(psutil.Process(int(parts[1])).create_time() - int(parts[2])) > 2
    except psutil.NoSuchProcess:
        return True
    except ValueError:  # no name of ours
        return False
