"""Name a finished file only if that name is free, on file systems with and without hard links.

`os.link` decides that on most file systems. exFAT, FAT, many FUSE mounts and some network shares
have no hard links; there Linux's `renameat2` with RENAME_NOREPLACE decides it, and where the file
system does not know that flag either, a lock on the folder, under which one process at a time looks
and renames. Each way the name appears with the whole file behind it or not at all, and a process
that is killed leaves no lock, since the kernel releases it.
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
"""What file systems answer to a link, a flag or a lock that they do not have."""

_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux' fcntl.h and fs.h


def name_if_free(source: str, target: str) -> None:
    """Rename a file within its folder; raise FileExistsError where the new name is taken."""
    for way in (os.link, _rename_without_replacing, _rename_under_lock):
        try:
            way(source, target)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            last = error
    raise OSError(
        last.errno,
        f"{last.strerror}: the file system has no hard links, and neither a rename that replaces "
        "nothing nor locks",
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
