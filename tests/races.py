"""Two runs at once, taking turns at the seam: which of them goes on is decided beforehand.

A schedule is a list of numbers: the first run does so many operations on storage, then the second,
then the first again, …; when the list is at its end, each goes on to its own end. So a race that
was found is found again. Both run in threads of this process, but only one at a time.
"""

import random
import threading
from contextlib import contextmanager

import pytest

from retrieval.storage import folder, retry

LOCKED = 3.0
"""Seconds without an operation after which the other one is taken to wait for a lock: threads share
those of this process (a cached_property of Python 3.11 has one), which two runs would not."""


class Stuck(BaseException):
    """Nobody goes on: a fault of the test."""


class Race:
    """Runs actions in turns; what they raise is raised."""

    def __init__(self, schedule):
        self.left = list(schedule)
        self.moments = [0, 0]
        self.seen = [-1, -1]  # of the other one's moments, when this one last looked
        self.turn = 0
        self.alive = {0, 1}
        self.errors = []
        self.changed = threading.Condition()
        self.who = threading.local()

    def run(self, *actions):
        threads = [
            threading.Thread(target=self._one, args=pair, daemon=True)
            for pair in enumerate(actions)
        ]
        with self._seam():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
        if any(thread.is_alive() for thread in threads):
            raise Stuck(self.moments)
        for error in self.errors:
            raise error

    def _one(self, number, action):
        self.who.number = number
        try:
            self._wait(number)
            action()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.errors.append(error)
        finally:
            with self.changed:
                self.alive.discard(number)
                self.turn = 1 - number
                self.changed.notify_all()

    @contextmanager
    def _seam(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "fault_hook", lambda *moment: self._moment())
            patch.setattr(retry, "wait", lambda seconds: self._pass_on())
            yield

    def _moment(self):
        number = getattr(self.who, "number", None)
        if number is None:  # a thread of some library
            return
        self.moments[number] += 1
        if self.left:
            self.left[0] -= 1
            if self.left[0] <= 0:
                self.left.pop(0)
                self._pass_on()

    def _pass_on(self):
        """Let the other one go on until it is this one's turn again."""
        number = self.who.number
        with self.changed:
            if 1 - number in self.alive:
                self.turn = 1 - number
                self.changed.notify_all()
        self._wait(number)

    def _wait(self, number):
        """Wait for this one's turn; it comes too when the other one waits for a lock of this."""
        with self.changed:
            while not self.changed.wait_for(lambda: self.turn == number, LOCKED):
                if self.moments[1 - number] == self.seen[number]:
                    self.turn = number
                self.seen[number] = self.moments[1 - number]


def schedules(moments, count, seed=0):
    """Give so many schedules for two runs of about so many moments.

    A third stops the first run once, at moments spread evenly, while the second goes to its end; a
    third stops both once; the rest takes turns at random, quickly or slowly.
    """
    generator = random.Random(seed)
    for number in range(count):
        place = 1 + number * moments // count
        if number % 3 == 0:
            yield [place, 10**9]
        elif number % 3 == 1:
            yield [place, generator.randint(1, moments), 10**9]
        else:
            most = generator.choice([2, 5, 20, 60])
            yield [generator.randint(1, most) for _ in range(4 * moments // most)]
