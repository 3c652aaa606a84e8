"""Which errors of a disk or a bucket may pass, and how often one asks again.

What carries bytes to a bucket raises errors of its own that are no OSErrors (botocore's
EndpointConnectionError and ReadTimeoutError, aiohttp's ServerDisconnectedError and
ClientPayloadError, …). They are told by the library that raises them, so that none of these
libraries must be there; a list of single classes would miss the next one. What comes again
however often one tries (missing, access denied) is raised as it is.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from retrieval.errors import StorageFailure

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that come again however often one tries; all other OSErrors may pass."""

_CARRIERS = frozenset(
    ("botocore", "aiobotocore", "s3fs", "aiohttp", "urllib3", "http", "requests", "gcsfs",
     "google", "azure")
)  # fmt: skip
"""Libraries whose errors are the way's, not the file's."""

_PASSING_STATUS = (408, 425, 429)  # of 4xx answers; all others are meant
_OF_THE_JOB = frozenset(("ExpiredToken", "RequestTimeTooSkewed", "NoSuchUpload"))
"""Codes of S3 that s3fs translates as if the file were missing or forbidden: credentials that have
run out would put every image into the ledger, and an upload whose answer was lost is no more."""

_ATTEMPTS = 4
_NO_MORE_AFTER = 60.0
"""Seconds after which no further attempt is made: s3fs and botocore try again by themselves."""

Answer = TypeVar("Answer")

wait = time.sleep
"""What passes the time between two attempts; tests let nobody wait here, and only here."""


def code_of(error: BaseException) -> str:
    """Give the code of S3's answer that an error comes from; nothing where there is none."""
    response: Any = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    try:
        return str(response["Error"]["Code"])
    except (TypeError, KeyError):
        return ""


def may_pass(error: BaseException) -> bool:
    """Tell whether the same operation may well succeed later."""
    if code_of(error) in _OF_THE_JOB:
        return True
    if isinstance(error, OSError):
        return not isinstance(error, PERMANENT) and error.errno not in _PERMANENT_NUMBERS
    libraries = {base.__module__.split(".")[0] for base in type(error).__mro__}
    if not libraries & _CARRIERS:
        return False
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    meant = isinstance(status, int) and 400 <= status < 500
    return not meant or status in _PASSING_STATUS


def retrying(action: Callable[[], Answer], path: str, verb: str = "read") -> Answer:
    """Do an action again after errors that may pass, then refuse with `StorageFailure`.

    Waits 0.1, 0.4, 1.6 s: long enough for a dropped connection, short enough for an image.
    """
    started = time.monotonic()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            if attempt == _ATTEMPTS or time.monotonic() - started > _NO_MORE_AFTER:
                raise StorageFailure(
                    f"{path} could not be {verb} after {attempt} attempts "
                    f"({error or type(error).__name__}); "
                    "what is finished is kept: run the same command again when it can"
                ) from error
            wait(0.1 * 4 ** (attempt - 1))
    raise AssertionError("unreachable")
