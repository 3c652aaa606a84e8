"""Faults at the one seam of the storage: an operation that fails, or at which the process dies."""

from contextlib import contextmanager

import pytest

from retrieval.storage import folder


class Killed(BaseException):
    """Stands for a process that is gone: nothing of the house catches it."""


@contextmanager
def seam(function):
    """Let `function(when, operation, path)` see every storage operation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "seam", function)
        yield


def operations(action):
    """Name every moment that `action` passes at the seam: (when, operation, path)."""
    seen = []
    with seam(lambda *moment: seen.append(moment)):
        action()
    return seen


class FailAt:
    """Does something at the moment of this number, counted from 0, and only there."""

    def __init__(self, number, fault):
        self.left = number
        self.fault = fault

    def __call__(self, when, operation, path):
        self.left -= 1
        if self.left == -1:
            self.fault(when, operation, path)


def broken(when, operation, path):
    """Fail as a disk does."""
    raise OSError(5, "Input/output error", path)
