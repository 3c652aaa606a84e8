"""Inject a fault at each storage operation of a run, then check that a second run recovers.

This is how SQLite is tested: the N-th operation fails, for N = 0, 1, 2, …. After each fault
`verify` must find no problem, and the same run without faults must end with exactly the files of
an undisturbed run, temporary files included. A run is any callable that writes an output into a
folder and resumes an unfinished one; it needs no Ray.
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
from tests.file_tree import read_tree
from tests.retrieval.storage.faults import (
    FailAt,
    Killed,
    inject_faults,
    raise_io_error,
    record_operations,
)
from tests.retrieval.storage.s3 import new_prefix, options


def read_contents(folder):
    """Return the bytes of each file of a folder by path, with temporary files, without run.json."""
    if isinstance(folder, LocalFolder):
        return read_tree(Path(folder.uri()))
    paths = [entry.path for entry in folder.entries()]
    return {path: folder.read(path) for path in paths if not path.endswith("run.json")}


@contextmanager
def stale_temporary_names():
    """Name temporary files as those of a process that no longer exists."""
    temporary_name = local.temporary_name

    def stale_name():
        host, pid, _, serial = temporary_name().rsplit("-", 3)
        return f"{host}-{pid}-1-{serial}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "temporary_name", stale_name)
        yield


class Fault(ABC):
    """A kind of fault, injected at the N-th storage operation."""

    @abstractmethod
    def inject_at(self, number):
        """Return a context manager that injects the fault at the operation of this number."""

    def expected_errors(self):
        """Return a context manager that suppresses the errors that the fault may cause."""
        return suppress(OSError, LookalikeError)


class SingleFailure(Fault):
    """One operation fails, as with a lost connection."""

    def inject_at(self, number):
        return inject_faults(FailAt(number, raise_io_error))


class PermanentFailure(Fault):
    """All operations from the N-th on fail, as with a full disk or an unreachable server."""

    def inject_at(self, number):
        remaining = [number]

        def fail(*operation_args):
            remaining[0] -= 1
            if remaining[0] < 0:
                raise_io_error(*operation_args)

        return inject_faults(fail)


class ProcessDeath(Fault):
    """The process is killed: no later operation is executed, no clean-up either."""

    @contextmanager
    def inject_at(self, number):
        remaining = [number]

        def die(when, operation, path):
            remaining[0] -= 1
            if remaining[0] == -1 and (when, operation) == ("before", "write"):
                Path(path).write_bytes(b"half of i")
            if remaining[0] < 0:
                raise Killed

        with stale_temporary_names(), pytest.MonkeyPatch.context() as patch, inject_faults(die):
            patch.setattr(local, "unlink", _unlink_unless(lambda: remaining[0] < 0))
            yield

    def expected_errors(self):
        return suppress(Killed)


def _unlink_unless(killed):
    """Return `local.unlink`, disabled once `killed()` holds, since `finally` blocks do not run."""
    unlink = local.unlink

    def unlink_if_alive(name):
        if not killed():
            unlink(name)

    return unlink_if_alive


FAULTS = {
    "single failure": SingleFailure(),
    "permanent failure": PermanentFailure(),
    "process death": ProcessDeath(),
}


class FaultLoop:
    """Runs with a fault at one storage operation after another.

    `make_folder(name)` returns a new folder, `run(folder)` writes the output there, starting from
    `initial_files` (path -> bytes). `operations` are those of an undisturbed run, `expected` its
    files. A point is a pair of a fault and the number of an operation.
    """

    def __init__(self, make_folder, run, initial_files=()):
        self.make_folder, self.run, self.initial_files = make_folder, run, dict(initial_files)
        folder = self._create_folder("undisturbed")
        self.operations = record_operations(lambda: run(folder))
        self.expected = read_contents(folder)
        self.counts = Counter()
        assert {verdict.state for verdict in verify(folder)} == {"finished"}

    def points(self, max_points=None):
        """Return all points, or at most `max_points` evenly spread ones."""
        count = len(self.operations)
        per_fault = count if max_points is None else min(count, max_points // len(FAULTS))
        return [
            (name, position * count // per_fault)
            for name in FAULTS
            for position in range(per_fault)
        ]

    def run_with_fault(self, name, number):
        """Run with one fault, verify the output, run again, and compare the files."""
        fault, folder = FAULTS[name], self._create_folder(f"{name}-{number}".replace(" ", "-"))
        with fault.inject_at(number), fault.expected_errors():
            self.run(folder)
        self._check_sound(folder)
        self.run(folder)
        self._check_sound(folder)
        files = read_contents(folder)
        assert files.keys() == self.expected.keys(), (name, number, self.operations[number])
        assert files == self.expected, (name, number, self.operations[number])
        self.counts[name] += 1
        for path in files:
            folder.delete(path)

    def _create_folder(self, name):
        folder = self.make_folder(name)
        for path, data in self.initial_files.items():
            folder.put(path, data)
        return folder

    def _check_sound(self, folder):
        if any(True for _ in folder.entries()):
            problems = [problem for verdict in verify(folder) for problem in verdict.problems]
            assert not problems, problems


def run_fault_points(loop, points, record_property):
    """Run some points of a loop, record their number as a test property, and return it."""
    before = loop.counts.total()
    for point in points:
        loop.run_with_fault(*point)
    count = loop.counts.total() - before
    print(f"{count} points: {dict(loop.counts)}")  # noqa: T201 - read with -rP
    record_property("points", count)
    assert loop.counts.keys() == FAULTS.keys()
    return count


@contextmanager
def local_fault_loop(scenario, root):
    """Yield a fault loop below a local folder; `scenario` has `run` and `initial_files`."""
    with without_retry_delays():
        yield FaultLoop(
            lambda name: LocalFolder(str(root / name)), scenario.run, scenario.initial_files
        )


@contextmanager
def bucket_fault_loop(scenario, endpoint):
    """Yield a fault loop in a bucket; `scenario` has `run` and `initial_files`."""
    with temporary_bucket(endpoint) as bucket:
        yield FaultLoop(bucket.child, scenario.run, scenario.initial_files)


@contextmanager
def temporary_bucket(endpoint):
    """Yield a new folder of a bucket, and set fsspec's default S3 options to the test server."""
    with without_retry_delays(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        patch.setitem(fsspec.config.conf, "s3", options(endpoint))
        yield RemoteFolder(new_prefix())


@contextmanager
def without_retry_delays():
    """Retry storage operations without delay; other sleeps are unaffected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "wait", lambda seconds: None)
        yield


class FaultLoopTests:
    """Tests of the fault loops of some scenarios, on disk and in a bucket.

    A subclass sets the counts and the names of the scenarios; its module has a fixture `scenario`
    of module scope, whose parameter is one of the names. `make test` takes a sample of the points,
    a multiple of the number of faults, in a bucket for the last scenario only; `make nightly`
    takes all points of all scenarios.
    """

    SCENARIOS: tuple[str, ...] = ()
    LOCAL_SAMPLE, S3_SAMPLE = 9, 3
    LOCAL_MIN_POINTS: int  # of the nightly tests
    S3_MIN_POINTS: int

    def pytest_generate_tests(self, metafunc):
        """Run each test for all scenarios, or for the last one."""
        if self.SCENARIOS:
            only_last = metafunc.function.__name__ == "test_sampled_faults_in_a_bucket"
            names = self.SCENARIOS[-1:] if only_last else self.SCENARIOS
            metafunc.parametrize("scenario", names, indirect=True, scope="module")

    @pytest.fixture(scope="class")
    def local_loop(self, scenario, tmp_path_factory):
        with local_fault_loop(scenario, tmp_path_factory.mktemp("loop")) as loop:
            yield loop

    @pytest.fixture(scope="class")
    def bucket_loop(self, scenario, s3):
        with bucket_fault_loop(scenario, s3) as loop:
            yield loop

    def test_sampled_faults_on_disk(self, local_loop, record_property):
        points = local_loop.points(self.LOCAL_SAMPLE)
        assert run_fault_points(local_loop, points, record_property) == self.LOCAL_SAMPLE

    @pytest.mark.timeout(300)
    def test_sampled_faults_in_a_bucket(self, bucket_loop, record_property):
        points = bucket_loop.points(self.S3_SAMPLE)
        assert run_fault_points(bucket_loop, points, record_property) == self.S3_SAMPLE

    @pytest.mark.nightly
    def test_all_faults_on_disk(self, local_loop, record_property):
        points = local_loop.points()
        assert run_fault_points(local_loop, points, record_property) >= self.LOCAL_MIN_POINTS

    @pytest.mark.nightly
    def test_all_faults_in_a_bucket(self, bucket_loop, record_property):
        points = bucket_loop.points()
        assert run_fault_points(bucket_loop, points, record_property) >= self.S3_MIN_POINTS
