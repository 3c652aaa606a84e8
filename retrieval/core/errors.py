"""Exceptions that end a command, each with the exit code of the process.

A message is one sentence that names the path or the option and what to do about it. Any other
exception is a bug of this program and ends with exit code 1.
"""

from __future__ import annotations

from typing import Any


class LookalikeError(Exception):
    """Base of all errors reported to users; `exit_code` is the exit status of the process.

    Where a command of the Python API finished with an exit code that is not 0, as below a requested
    bound, `result` is its result.
    """

    exit_code = 1
    result: Any = None


class UsageError(LookalikeError):
    """An option is wrong, or the output cannot be written to the requested place."""

    exit_code = 2


class InputError(LookalikeError):
    """An input is missing or cannot be read."""

    exit_code = 3


class AccessRefused(InputError):
    """An object store rejects the credentials, so that every other request would fail as well."""


class TooManyFailures(LookalikeError):
    """More images failed than `--max-error-rate` allows; finished work is kept."""

    exit_code = 4


class BelowBound(LookalikeError):
    """A requested bound was not reached; the results are complete and state the actual value."""

    exit_code = 5


class Mismatch(LookalikeError):
    """Inputs or outputs do not fit together: their settings, bundles or dimensions differ."""

    exit_code = 6


class Damaged(LookalikeError):
    """A file on disk is missing, unexpected or altered."""

    exit_code = 7


class Stalled(LookalikeError):
    """No progress was made within the allowed time."""

    exit_code = 8


class StorageFailure(LookalikeError):
    """A disk or an object store kept failing after all retries, for instance because it is full.

    It stops the job and is never recorded in the ledger, since the same command may succeed later.
    """

    exit_code = 1
