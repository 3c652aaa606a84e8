"""Interleave the storage operations of two concurrent runs in a reproducible order.

A schedule is a list of numbers of storage operations: the first run executes schedule[0]
operations, then the second run schedule[1], then the first run schedule[2], …; after the last
number each run continues to its end. Both run in threads of this process, one at a time.
"""

import random
import threading
from contextlib import contextmanager

import pytest

from retrieval.storage import folder, retry

LOCK_TIMEOUT = 3.0
"""Seconds without an operation after which the other thread is assumed to wait for a lock.

Threads of one process share locks (such as that of a cached_property in Python 3.11), which two
processes would not.
"""


class DeadlockError(BaseException):
    """Neither run makes progress, which is an error of the test."""


class Race:
    """Runs two actions in turns, and raises the first of their errors."""

    def __init__(self, schedule):
        self.schedule = list(schedule)
        self.operations = [0, 0]
        self.other_operations = [-1, -1]  # operations of the other run at the last check
        self.turn = 0
        self.alive = {0, 1}
        self.errors = []
        self.condition = threading.Condition()
        self.thread_data = threading.local()

    def run(self, *actions):
        threads = [
            threading.Thread(target=self._run_action, args=pair, daemon=True)
            for pair in enumerate(actions)
        ]
        with self._hooks():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
        if any(thread.is_alive() for thread in threads):
            raise DeadlockError(self.operations)
        for error in self.errors:
            raise error

    def _run_action(self, number, action):
        self.thread_data.number = number
        try:
            self._wait_for_turn(number)
            action()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self.errors.append(error)
        finally:
            with self.condition:
                self.alive.discard(number)
                self.turn = 1 - number
                self.condition.notify_all()

    @contextmanager
    def _hooks(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "fault_hook", lambda *_: self._on_operation())
            patch.setattr(retry, "wait", lambda seconds: self._yield_turn())
            yield

    def _on_operation(self):
        number = getattr(self.thread_data, "number", None)
        if number is None:  # a thread of some library
            return
        self.operations[number] += 1
        if self.schedule:
            self.schedule[0] -= 1
            if self.schedule[0] <= 0:
                self.schedule.pop(0)
                self._yield_turn()

    def _yield_turn(self):
        """Pass the turn to the other run, and wait for the next one."""
        number = self.thread_data.number
        with self.condition:
            if 1 - number in self.alive:
                self.turn = 1 - number
                self.condition.notify_all()
        self._wait_for_turn(number)

    def _wait_for_turn(self, number):
        """Wait for the next turn; take it if the other run seems to wait for a lock of this run."""
        with self.condition:
            while not self.condition.wait_for(lambda: self.turn == number, LOCK_TIMEOUT):
                if self.operations[1 - number] == self.other_operations[number]:
                    self.turn = number
                self.other_operations[number] = self.operations[1 - number]


def schedules(operations, count, seed=0):
    """Yield `count` schedules for two runs of about `operations` storage operations each.

    A third of them pauses the first run once, at evenly spread operations, until the second run
    has ended; a third pauses both runs once; the others take random turns, short or long.
    """
    generator = random.Random(seed)
    for number in range(count):
        position = 1 + number * operations // count
        if number % 3 == 0:
            yield [position, 10**9]
        elif number % 3 == 1:
            yield [position, generator.randint(1, operations), 10**9]
        else:
            max_turn = generator.choice([2, 5, 20, 60])
            yield [generator.randint(1, max_turn) for _ in range(4 * operations // max_turn)]
