"""Names of temporary files, detection of abandoned ones, and the folder of --temp-dir.

A name contains the host, the process id and the start time of the process, by which a later run on
the same host finds out whether the writing process still exists.
"""

from __future__ import annotations

import os
import socket
import time

import psutil

from retrieval.core.errors import UsageError

TEMPORARY_PREFIX = ".tmp-"
_STALE_SECONDS = 24 * 3600
_serial = iter(range(1 << 62))


def temporary_name() -> str:
    """Return a name that is unique across processes and calls."""
    process = psutil.Process()
    host = socket.gethostname()
    return f"{TEMPORARY_PREFIX}{host}-{process.pid}-{int(process.create_time())}-{next(_serial)}"


def make_temp_dir(folder: str | None) -> None:
    """Create the folder of `--temp-dir` on this node, if given; raise UsageError if that fails."""
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--temp-dir {folder} cannot be created on {socket.gethostname()} ({error.strerror}); "
            "specify another local folder, or omit the option"
        ) from error


def is_abandoned(path: str) -> bool:
    """Return whether the writer of a temporary file has ended, or the file is over a day old."""
    try:
        if time.time() - os.stat(path).st_mtime > _STALE_SECONDS:
            return True
    except FileNotFoundError:
        return False
    parts = os.path.basename(path)[len(TEMPORARY_PREFIX) :].rsplit("-", 3)
    if len(parts) != 4 or parts[0] != socket.gethostname():
        return False
    try:
        # derived from the boot time, which shifts slightly when the clock is set
        return abs(psutil.Process(int(parts[1])).create_time() - int(parts[2])) > 2
    except psutil.NoSuchProcess:
        return True
    except ValueError:  # not a name that `temporary_name` returned
        return False
