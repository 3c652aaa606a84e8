"""Fault injection for storage operations: failing operations and simulated process deaths."""

from contextlib import contextmanager

import pytest

from retrieval.storage import folder


class Killed(BaseException):
    """Stands for a process that is gone: nothing of the house catches it."""


@contextmanager
def inject_faults(function):
    """Let `function(when, operation, path)` see every storage operation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "fault_hook", function)
        yield


def operations(action):
    """Name every moment that `action` passes at the seam: (when, operation, path)."""
    seen = []
    with inject_faults(lambda *moment: seen.append(moment)):
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
