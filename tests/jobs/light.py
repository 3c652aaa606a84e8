"""What workers are given to do that need nothing: to import a test would take them seconds.

A worker finds a function by its module, so it imports all that this module does.
"""

import os
import signal
import time

import numpy as np

from retrieval.core.errors import InputError, UsageError


def doubled(shared):
    return lambda item, attempt: {"item": item, "double": item * shared["factor"]}


def refused(shared):
    raise UsageError("--precision bf16: no such arithmetic")


def refusing(shared):
    def work(item, attempt):
        raise InputError(f"item {item} is missing")

    return work


def tells(_):
    return lambda item, attempt: {"n": attempt.number, "given_up": sorted(attempt.given_up)}


def dies(_):
    def work(item, attempt):
        os.kill(os.getpid(), signal.SIGKILL)

    return work


def hangs_in_2(let_go):
    def work(item, attempt):
        if item == 2:
            attempt.note("/photos/x.jpg")
            while not let_go.exists():
                time.sleep(0.1)
        return {"item": item}

    return work


def waits(let_go):
    def work(item, attempt):
        attempt.note("/photos/x.jpg")
        while not let_go.exists():
            time.sleep(0.1)
        return {"item": item, "n": attempt.number}

    return work


def late(number, kept):
    """Answer the later the earlier one is asked."""
    time.sleep(0.3 if number == 0 else 0)
    return number * kept


def large_and_small(number):
    return np.full(1000, number), number
