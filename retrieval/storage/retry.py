"""Retries of storage operations, and classification of errors as transient or permanent.

Client libraries of object stores raise errors that are not OSErrors (botocore's
EndpointConnectionError, aiohttp's ClientPayloadError, …). They are recognised by the name of the
library that defines them, so that the libraries need not be installed and no class is missed.
Permanent errors (missing file, access denied) are raised unchanged; rejected credentials affect all
files, and stop the job.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from retrieval.core.errors import AccessRefused, StorageFailure

PERMANENT_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)
"""OSErrors that a retry cannot resolve; all others are transient."""

_CLIENT_LIBRARIES = frozenset(
    ("botocore", "aiobotocore", "s3fs", "aiohttp", "urllib3", "http", "requests", "gcsfs",
     "google", "azure")
)  # fmt: skip
"""Libraries whose errors concern the connection, not the file."""

_ADDRESS_ERRORS = frozenset(("TooManyRedirects", "InvalidURL", "NonHttpUrlClientError"))
"""Errors of aiohttp that are caused by the URL itself."""

_TRANSIENT_STATUS = (408, 425, 429)  # 4xx responses that are worth a retry
_TRANSIENT_CODES = frozenset(("ExpiredToken", "RequestTimeTooSkewed", "NoSuchUpload"))
"""S3 error codes that s3fs reports as missing or forbidden files, though they do not concern the
file: expired credentials would record every image in the ledger."""

_CREDENTIAL_CODES = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity",
     "NotSignedUp", "MissingSecurityHeader", "AuthorizationHeaderMalformed", "Unauthorized", "401")
)  # fmt: skip
"""S3 error codes of rejected credentials; AccessDenied may concern a single file."""

ATTEMPTS = 4
_MAX_SECONDS = 60.0
"""Time after which no further attempt is made; s3fs and botocore retry internally as well."""

Answer = TypeVar("Answer")

wait = time.sleep
"""Sleeps between two attempts; tests replace it."""


def s3_error_code(error: BaseException) -> str:
    """Return the S3 error code behind an error, or an empty string."""
    response: Any = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    try:
        return str(response["Error"]["Code"])
    except (TypeError, KeyError):
        return ""


def is_access_denied(error: BaseException) -> bool:
    """Return whether an error means that access to a file is denied."""
    if isinstance(error, PermissionError | AccessRefused):
        return True
    return any(http_status(cause) in (401, 403) for cause in (error, error.__cause__) if cause)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of a client library's error; None where it has none."""
    libraries = {base.__module__.split(".")[0] for base in type(error).__mro__}
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    return status if libraries & _CLIENT_LIBRARIES and isinstance(status, int) else None


def is_transient(error: BaseException) -> bool:
    """Return whether the same operation may succeed later."""
    if s3_error_code(error) in _TRANSIENT_CODES:
        return True
    if isinstance(error, OSError):
        return not isinstance(error, PERMANENT_ERRORS) and error.errno not in _PERMANENT_NUMBERS
    if not {base.__module__.split(".")[0] for base in type(error).__mro__} & _CLIENT_LIBRARIES:
        return False
    if {base.__name__ for base in type(error).__mro__} & _ADDRESS_ERRORS:
        return False
    status = http_status(error)
    return status is None or not 400 <= status < 500 or status in _TRANSIENT_STATUS


def call_with_retries(
    action: Callable[[], Answer], path: str, verb: str = "read", attempts: int = ATTEMPTS
) -> Answer:
    """Return the result of `action`, retried after transient errors.

    Waits 0.1, 0.4 and 1.6 s between attempts: long enough for a dropped connection, short enough
    for a single image.

    Args:
        action: The operation.
        path: The path or URI in messages.
        verb: The participle in messages: read, written, …
        attempts: Largest number of calls of `action`.

    Raises:
        StorageFailure: If the last attempt failed with a transient error.
        AccessRefused: If the credentials are rejected.
        Exception: Permanent errors of `action`, unchanged.
    """
    started = time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if s3_error_code(error) in _CREDENTIAL_CODES or http_status(error) == 401:
                raise AccessRefused(
                    f"{path} could not be {verb}: the credentials are rejected "
                    f"({error or type(error).__name__}); finished work is kept: use other "
                    "credentials and run the same command again"
                ) from error
            if not is_transient(error):
                raise
            if attempt == attempts or time.monotonic() - started > _MAX_SECONDS:
                raise StorageFailure(
                    f"{path} could not be {verb} after {attempt} attempts "
                    f"({error or type(error).__name__}); "
                    "finished work is kept: run the same command again later"
                ) from error
            wait(0.1 * 4 ** (attempt - 1))
    raise AssertionError("unreachable")
