"""Which errors of a disk or a bucket may pass, and how often one asks again.

What carries bytes to a bucket raises errors of its own that are no OSErrors (botocore's
EndpointConnectionError and ReadTimeoutError, aiohttp's ServerDisconnectedError and
ClientPayloadError, …). They are told by the library that raises them, so that none of these
libraries must be there; a list of single classes would miss the next one. What comes again
however often one tries (missing, access denied) is raised as it is; where the credentials are
wrong, that is no fault of one file, and the job is refused.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from retrieval.core.errors import AccessRefused, StorageFailure

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that come again however often one tries; all other OSErrors may pass."""

_CARRIERS = frozenset(
    ("botocore", "aiobotocore", "s3fs", "aiohttp", "urllib3", "http", "requests", "gcsfs",
     "google", "azure")
)  # fmt: skip
"""Libraries whose errors are the way's, not the file's."""

_OF_THE_ADDRESS = frozenset(("TooManyRedirects", "InvalidURL", "NonHttpUrlClientError"))
"""Errors of aiohttp that the address itself is to blame for."""

_PASSING_STATUS = (408, 425, 429)  # of 4xx answers; all others are meant
_OF_THE_JOB = frozenset(("ExpiredToken", "RequestTimeTooSkewed", "NoSuchUpload"))
"""Codes of S3 that s3fs translates as if the file were missing or forbidden: credentials that have
run out would put every image into the ledger, and an upload whose answer was lost is no more."""

_OF_CREDENTIALS = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity",
     "NotSignedUp", "MissingSecurityHeader", "AuthorizationHeaderMalformed", "Unauthorized", "401")
)  # fmt: skip
"""Codes that say nothing of a file: whoever asks is not known. AccessDenied may be of one file."""

ATTEMPTS = 4
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


def is_refusal(error: BaseException) -> bool:
    """Tell whether a store refuses to show a file, to this one or to anybody."""
    if isinstance(error, PermissionError | AccessRefused):
        return True
    return any(status_of(each) in (401, 403) for each in (error, error.__cause__) if each)


def status_of(error: BaseException) -> int | None:
    """Give the status of an HTTP answer that an error of a carrier stands for."""
    libraries = {base.__module__.split(".")[0] for base in type(error).__mro__}
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    return status if libraries & _CARRIERS and isinstance(status, int) else None


def may_pass(error: BaseException) -> bool:
    """Tell whether the same operation may well succeed later."""
    if code_of(error) in _OF_THE_JOB:
        return True
    if isinstance(error, OSError):
        return not isinstance(error, PERMANENT) and error.errno not in _PERMANENT_NUMBERS
    if not {base.__module__.split(".")[0] for base in type(error).__mro__} & _CARRIERS:
        return False
    if {base.__name__ for base in type(error).__mro__} & _OF_THE_ADDRESS:
        return False
    status = status_of(error)
    return status is None or not 400 <= status < 500 or status in _PASSING_STATUS


def retrying(
    action: Callable[[], Answer], path: str, verb: str = "read", attempts: int = ATTEMPTS
) -> Answer:
    """Do an action again after errors that may pass, then refuse with `StorageFailure`.

    Waits 0.1, 0.4, 1.6 s: long enough for a dropped connection, short enough for an image.
    """
    started = time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if code_of(error) in _OF_CREDENTIALS or status_of(error) == 401:
                raise AccessRefused(
                    f"{path} could not be {verb}: the credentials are refused "
                    f"({error or type(error).__name__}); what is finished is kept: give others"
                ) from error
            if not may_pass(error):
                raise
            if attempt == attempts or time.monotonic() - started > _NO_MORE_AFTER:
                raise StorageFailure(
                    f"{path} could not be {verb} after {attempt} attempts "
                    f"({error or type(error).__name__}); "
                    "what is finished is kept: run the same command again when it can"
                ) from error
            wait(0.1 * 4 ** (attempt - 1))
    raise AssertionError("unreachable")
