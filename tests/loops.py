"""The fault loop: at every operation on storage an error or a death, and no trace of it afterwards.

As SQLite is tested: fail the N-th operation for N = 0, 1, 2, … until a run is clean. After each,
what is left must be sound (`verify`), and the same command, run again unharmed, must end in the
very same tree, temporary files included. A flow is any callable that makes an output in a folder
and goes on with what it finds there; flows need no Ray.
"""

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import pytest

from retrieval.core.errors import LookalikeError
from retrieval.storage import local, retry
from retrieval.storage.local import LocalFolder, RemoteFolder
from retrieval.storage.verify import verify
from tests.retrieval.storage.faults import FailAt, Killed, broken, inject_faults, operations
from tests.retrieval.storage.s3 import new_prefix, options
from tests.trees import tree


def contents(folder):
    """Every file of a folder, temporary ones too, but run.json: path -> bytes."""
    if isinstance(folder, LocalFolder):
        return tree(Path(folder.uri()))
    paths = [entry.path for entry in folder.entries()]
    return {path: folder.read(path) for path in paths if not path.endswith("run.json")}


@contextmanager
def dead_names():
    """Let temporary files be named as those of a process that is no more."""
    name = local.temporary_name

    def named():
        host, pid, _, serial = name().rsplit("-", 3)
        return f"{host}-{pid}-1-{serial}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "temporary_name", named)
        yield


class Fault(ABC):
    """What happens at the N-th moment, and from then on."""

    @abstractmethod
    def at(self, number):
        """Give a seam that does it at the moment of this number."""

    def stops(self):
        """Give the errors that may end the harmed run."""
        return suppress(OSError, LookalikeError)


class FailsOnce(Fault):
    """One error, as of a lost connection."""

    def at(self, number):
        return inject_faults(FailAt(number, broken))


class StaysAway(Fault):
    """Every operation from then on fails, as those of a full disk or a lost server."""

    def at(self, number):
        left = [number]

        def fail(*moment):
            left[0] -= 1
            if left[0] < 0:
                broken(*moment)

        return inject_faults(fail)


class Dies(Fault):
    """The process is gone: nothing of its own is done any more, no clean-up either."""

    @contextmanager
    def at(self, number):
        left = [number]

        def die(when, operation, path):
            left[0] -= 1
            if left[0] == -1 and (when, operation) == ("before", "write"):
                Path(path).write_bytes(b"half of i")
            if left[0] < 0:
                raise Killed

        with dead_names(), pytest.MonkeyPatch.context() as patch, inject_faults(die):
            patch.setattr(local, "unlink", _unless(lambda: left[0] < 0))
            yield

    def stops(self):
        return suppress(Killed)


def _unless(dead):
    """Remove nothing once the process is dead: its `finally` blocks never run."""
    unlink = local.unlink

    def alive(name):
        if not dead():
            unlink(name)

    return alive


FAULTS = {"fails once": FailsOnce(), "stays away": StaysAway(), "dies": Dies()}


class Loop:
    """A flow, harmed at one moment after another.

    `place(name)` gives a new folder, `run(folder)` makes the output there, from the files `before`
    (path -> bytes). The moments are those of an unharmed run; each fault at each is a point.
    """

    def __init__(self, place, run, before=()):
        self.place, self.run, self.before = place, run, dict(before)
        whole = self._begun("unharmed")
        self.moments = operations(lambda: run(whole))
        self.unharmed = contents(whole)
        self.done = Counter()
        assert {verdict.state for verdict in verify(whole)} == {"finished"}

    def points(self, most=None):
        """Give (fault, moment) of all points, or of at most so many, spread evenly."""
        count = len(self.moments)
        each = count if most is None else min(count, most // len(FAULTS))
        return [(name, place * count // each) for name in FAULTS for place in range(each)]

    def harm(self, name, number):
        """Do one fault at one moment, judge what is left, go on, and compare."""
        fault, folder = FAULTS[name], self._begun(f"{name}-{number}".replace(" ", "-"))
        with fault.at(number), fault.stops():
            self.run(folder)
        self._sound(folder)
        self.run(folder)
        self._sound(folder)
        left = contents(folder)
        assert left.keys() == self.unharmed.keys(), (name, number, self.moments[number])
        assert left == self.unharmed, (name, number, self.moments[number])
        self.done[name] += 1
        for path in left:
            folder.delete(path)

    def _begun(self, name):
        folder = self.place(name)
        for path, data in self.before.items():
            folder.put(path, data)
        return folder

    def _sound(self, folder):
        if any(True for _ in folder.entries()):
            problems = [problem for verdict in verify(folder) for problem in verdict.problems]
            assert not problems, problems


def harm_all(loop, points, record_property):
    """Do some points of a loop, say how many there were, and give that."""
    before = loop.done.total()
    for point in points:
        loop.harm(*point)
    count = loop.done.total() - before
    print(f"{count} points: {dict(loop.done)}")  # noqa: T201 - read with -rP
    record_property("points", count)
    assert loop.done.keys() == FAULTS.keys()
    return count


@contextmanager
def loop_on_disk(start, root):
    """A loop over a `start` (`run`, and the files `before` it), below a local folder."""
    with no_waits():
        yield Loop(lambda name: LocalFolder(str(root / name)), start.run, start.before)


@contextmanager
def loop_in_bucket(start, endpoint):
    """The same in a bucket."""
    with bucket_of(endpoint) as bucket:
        yield Loop(bucket.child, start.run, start.before)


@contextmanager
def bucket_of(endpoint):
    """Give a new folder of a bucket; who is asked by fsspec alone finds the server too."""
    with no_waits(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        patch.setitem(fsspec.config.conf, "s3", options(endpoint))
        yield RemoteFolder(new_prefix())


@contextmanager
def no_waits():
    """Let nobody wait before another attempt at storage; whoever else sleeps still does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "wait", lambda seconds: None)
        yield
