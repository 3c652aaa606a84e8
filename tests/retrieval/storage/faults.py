"""Fault injection for storage operations: failing operations and killed processes."""

from contextlib import contextmanager

import pytest

from retrieval.storage import folder


class Killed(BaseException):
    """Simulates the death of the process: no handler of the project catches BaseException."""


@contextmanager
def inject_faults(function):
    """Call `function(when, operation, path)` before and after every storage operation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "fault_hook", function)
        yield


def record_operations(action):
    """Run `action` and return its calls of the fault hook: (when, operation, path) each."""
    recorded = []
    with inject_faults(lambda *event: recorded.append(event)):
        action()
    return recorded


class FailAt:
    """Fault hook that calls `fault` at one call only, numbered from 0."""

    def __init__(self, number, fault):
        self.remaining = number
        self.fault = fault

    def __call__(self, when, operation, path):
        self.remaining -= 1
        if self.remaining == -1:
            self.fault(when, operation, path)


def raise_io_error(when, operation, path):
    """Raise the OSError of a failing disk."""
    raise OSError(5, "Input/output error", path)
