"""Functions for workers, in a module with few imports.

A worker imports the module of its function; importing a test module would take seconds.
"""

import os
import signal
import time

import numpy as np

from retrieval.core.errors import InputError, UsageError


def multiply_by_factor(shared):
    return lambda item, attempt: {"item": item, "double": item * shared["factor"]}


def raise_during_setup(shared):
    raise UsageError("--precision bf16: no such arithmetic")


def raise_during_work(shared):
    def work(item, attempt):
        raise InputError(f"item {item} is missing")

    return work


def report_attempt(_):
    return lambda item, attempt: {"n": attempt.number, "images": sorted(attempt.quarantined_images)}


def kill_worker(_):
    def work(item, attempt):
        os.kill(os.getpid(), signal.SIGKILL)

    return work


def hang_on_item_2(release_file):
    def work(item, attempt):
        if item == 2:
            attempt.note("/photos/x.jpg")
            release_file.with_name("hanging").touch()
            while not release_file.exists():
                time.sleep(0.1)
        return {"item": item}

    return work


def block_until_released(release_file):
    def work(item, attempt):
        attempt.note("/photos/x.jpg")
        while not release_file.exists():
            time.sleep(0.1)
        return {"item": item, "n": attempt.number}

    return work


def delay_first_item(number, factor):
    """Return `number * factor`, with a delay for the first item."""
    time.sleep(0.3 if number == 0 else 0)
    return number * factor


def array_and_number(number):
    return np.full(1000, number), number
