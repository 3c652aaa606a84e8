"""Rename a finished file only if the target does not exist, with or without hard links.

Most file systems support this through `os.link`. exFAT, FAT, many FUSE mounts and some network
shares have no hard links; there Linux's `renameat2` with RENAME_NOREPLACE is used, and where that
flag is not supported either, a lock on the folder. In each case the rename is atomic, and a killed
process leaves no lock behind, since the kernel releases it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

_UNSUPPORTED = (
    errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK,
    errno.ENOLCK, errno.EBADF,
)  # fmt: skip
"""Error numbers of file systems that do not support a link, a flag or a lock."""

_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux' fcntl.h and fs.h


def rename_if_absent(source: str, target: str) -> None:
    """Rename `source` to `target` in the same folder.

    Raises FileExistsError if the target exists, and OSError if the file system supports none of the
    three methods.
    """
    for rename in (os.link, _rename_without_replacing, _rename_under_lock):
        try:
            rename(source, target)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            last_error = error
    raise OSError(
        last_error.errno,
        f"{last_error.strerror}: the file system supports neither hard links, nor a rename without "
        "replacing, nor locks",
        target,
    )


def _rename_without_replacing(source: str, target: str) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    names = [os.fsencode(name) for name in (source, target)]
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_NOREPLACE)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _rename_under_lock(source: str, target: str) -> None:
    folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        os.replace(source, target)
    finally:
        os.close(folder)  # which releases the lock
