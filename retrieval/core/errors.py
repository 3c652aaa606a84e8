"""Every refusal of the house, one family, each with the exit code the command ends with.

A message is one sentence that names the path or the option and the way out. What is not of this
family is a fault of ours and ends with 1.
"""

from __future__ import annotations


class LookalikeError(Exception):
    """A refusal meant for a person; `exit_code` is what the process ends with."""

    exit_code = 1


class UsageError(LookalikeError):
    """An option is wrong, or an output cannot be written where it was asked for."""

    exit_code = 2


class InputError(LookalikeError):
    """An input is missing or cannot be read."""

    exit_code = 3


class AccessRefused(InputError):
    """A store does not know the credentials: everything else it holds would be refused too."""


class TooManyFailures(LookalikeError):
    """More images failed than `--max-error-rate` allows; what was finished is kept."""

    exit_code = 4


class BelowBound(LookalikeError):
    """A bound that was asked for was not reached; the results are whole and say what was."""

    exit_code = 5


class Mismatch(LookalikeError):
    """Two things that do not belong together: settings, bundles, dimensions."""

    exit_code = 6


class Damaged(LookalikeError):
    """Something on disk is missing, extra or altered."""

    exit_code = 7


class Stalled(LookalikeError):
    """Nothing has moved for the time that is allowed."""

    exit_code = 8


class StorageFailure(LookalikeError):
    """A disk or a store failed for now (full, lost, refused) and kept failing when tried again.

    It stops the job and never stands in the ledger, since the same command may well succeed later.
    """

    exit_code = 1
