"""Tests of folders: atomic writes, and the state that every injected fault leaves."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest

from retrieval.core.errors import StorageFailure, UsageError
from retrieval.storage import exclusive, object_store, retry
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import Entry, LocalFolder, RemoteFolder, open_folder
from retrieval.storage.temporary import TEMPORARY_PREFIX
from retrieval.storage.transaction import claim_output
from tests.retrieval.storage.faults import FailAt, broken, inject_faults, operations


def copy_of(data):
    """What put_new_file takes: writes `data` under the name it is given."""
    return lambda name: Path(name).write_bytes(data)


WRITES = {
    "put": lambda folder, path, data: folder.put(path, data),
    "put_new": lambda folder, path, data: folder.put_new(path, data),
    "put_new_file": lambda folder, path, data: folder.put_new_file(path, copy_of(data)),
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


def state(folder, path):
    """The bytes of a file, None where there is none."""
    try:
        return folder.read(path)
    except FileNotFoundError:
        return None


class FolderTests(ABC):
    """What every kind of folder promises."""

    @abstractmethod
    def folder(self):
        """A fixture that gives an empty folder, not yet made."""

    @abstractmethod
    def stopped(self):
        """What is expected of a write that meets one error."""

    @every_write
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
    def test_what_was_put_is_read(self, folder, write, data):
        write(folder, "a/b c/Zürich – 猫.bin", data)
        assert folder.read("a/b c/Zürich – 猫.bin") == data
        assert list(folder.entries()) == [Entry("a/b c/Zürich – 猫.bin", len(data))]
        with folder.open("a/b c/Zürich – 猫.bin") as file:
            assert file.seek(0, os.SEEK_END) == len(data)

    def test_put_replaces(self, folder):
        folder.put("a", b"old and longer")
        folder.put("a", b"new")
        assert folder.read("a") == b"new"

    def test_put_new_says_whether_the_file_is_ours_and_never_replaces(self, folder):
        assert folder.put_new("a", b"first")
        assert not folder.put_new("a", b"second")
        assert folder.read("a") == b"first"
        assert not folder.put_new_file("a", copy_of(b"third"))
        assert folder.read("a") == b"first"
        assert folder.put_new_file("b", copy_of(b"fourth"))
        assert not folder.put_new("b", b"fifth")
        assert folder.read("b") == b"fourth"

    def test_what_is_absent(self, folder):
        for path in ("a", "a/b"):
            assert not folder.exists(path)
            with pytest.raises(FileNotFoundError):
                folder.read(path)
            with pytest.raises(FileNotFoundError):
                folder.open(path)
            folder.delete(path)
        assert list(folder.entries()) == list(folder.entries("a")) == []

    def test_entries_are_all_files_at_any_depth_or_those_below_a_folder(self, folder):
        for path in ("x", "a/x", "a/b/c/x", "ab/x"):
            folder.put(path, path.encode())
        assert sorted(e.path for e in folder.entries()) == ["a/b/c/x", "a/x", "ab/x", "x"]
        assert sorted(folder.entries("a"), key=lambda e: e.path) == [
            Entry("a/b/c/x", 7),
            Entry("a/x", 3),
        ]

    def test_delete_removes_one_file_and_no_trace_of_it_stays(self, folder):
        folder.put("a/b/x", b"1")
        folder.put("a/y", b"2")
        folder.delete("a/b/x")
        assert [entry.path for entry in folder.entries()] == ["a/y"]
        assert not folder.exists("a/b/x")
        folder.put("a/b", b"a file where a folder was")
        assert folder.read("a/b") == b"a file where a folder was"

    def test_a_child_is_the_folder_below(self, folder):
        folder.child("a/b").put("x", b"1")
        assert folder.read("a/b/x") == b"1"
        assert folder.child("a").child("b").read("x") == b"1"
        assert folder.child("a/b").uri("x") == folder.uri("a/b/x")
        assert [entry.path for entry in folder.child("a").entries()] == ["b/x"]

    def test_its_uri_opens_it_again(self, folder):
        folder.put("a/x y%20.bin", b"1")
        assert open_folder(folder.uri()) == folder
        assert read_uri(folder.uri("a/x y%20.bin")) == b"1"

    @every_write
    def test_after_a_fault_the_file_is_whole_or_absent_and_can_be_put_again(self, folder, write):
        data = b"new" * 1000
        moments = operations(lambda: write(folder, "a/rehearsal", data))
        assert len(moments) >= 2
        for number in range(len(moments)):
            path = f"a/{number}"
            with inject_faults(FailAt(number, broken)), self.stopped():
                write(folder, path, data)
            assert state(folder, path) in (None, data)
            assert not any(TEMPORARY_PREFIX in entry.path for entry in folder.entries())
            write(folder, path, data)
            assert state(folder, path) == data

    def test_after_a_fault_a_replaced_file_is_the_old_one_or_the_new(self, folder):
        moments = operations(lambda: folder.put("a/x", b"new"))
        for number in range(len(moments)):
            folder.put("a/x", b"old")
            with inject_faults(FailAt(number, broken)), self.stopped():
                folder.put("a/x", b"new")
            assert folder.read("a/x") in (b"old", b"new")
            assert [entry.path for entry in folder.entries()] == ["a/x"]

    @every_write
    def test_at_every_moment_of_a_put_a_reader_sees_all_or_nothing(self, folder, write):
        seen = []

        def look(when, operation, path):
            if operation != "read":
                seen.append(state(folder, "a/x"))

        data = b"new" * 1000
        with inject_faults(look):
            write(folder, "a/x", data)
        assert set(seen) == {None, data}
        assert seen == sorted(seen, key=lambda found: found is not None)


class TestLocalFolder(FolderTests):
    def stopped(self):
        return pytest.raises(StorageFailure, match=r"Input/output error.*repair the disk")

    @pytest.fixture
    def folder(self, tmp_path):
        return LocalFolder(str(tmp_path / "out"))

    @every_write
    def test_a_write_that_was_cut_off_leaves_nothing(self, folder, write):
        def tear(when, operation, path):
            Path(path).write_bytes(b"hal")
            raise OSError(28, "No space left on device", path)

        moments = operations(lambda: write(folder, "rehearsal", b"half"))
        folder.delete("rehearsal")
        # put_new_file has its file written by another; its first own step is the fsync
        at = next(n for n, moment in enumerate(moments) if moment[1] in ("write", "sync"))
        with (
            inject_faults(FailAt(at, tear)),
            pytest.raises(StorageFailure, match=r"No space.*make room"),
        ):
            write(folder, "x", b"half")
        assert list(folder.entries()) == []

    def test_whoever_reads_a_file_while_it_is_replaced_reads_the_old_one_whole(self, folder):
        folder.put("x", b"old")
        with folder.open("x") as file:
            folder.put("x", b"new")
            assert file.read() == b"old"

    def test_one_of_many_writers_wins_and_its_file_is_whole(self, folder):
        offers = [bytes([number]) * 100_000 for number in range(8)]
        start = threading.Barrier(len(offers))
        won = []

        def offer(data):
            start.wait()
            if folder.put_new("a/x", data):
                won.append(data)

        threads = [threading.Thread(target=offer, args=(data,)) for data in offers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [folder.read("a/x")] == won
        assert [entry.path for entry in folder.entries()] == ["a/x"]

    def test_no_empty_folder_stays_but_the_root_does(self, folder):
        folder.put("a/b/c/x", b"1")
        folder.delete("a/b/c/x")
        assert os.listdir(folder.uri()) == []

    def test_below_a_file_there_is_nothing(self, folder):
        folder.put("x", b"1")
        assert not folder.exists("x/y")
        assert not folder.child("x").exists("y")

    def test_a_link_to_nothing_counts_as_there(self, folder):
        folder.put("x", b"1")
        os.symlink("nowhere", folder.uri("dangling"))
        assert not folder.put_new("dangling", b"2")
        assert not os.path.exists(folder.uri("nowhere"))
        os.symlink("itself", folder.uri("itself"))
        assert sorted(entry.path for entry in folder.entries()) == ["dangling", "itself", "x"]


def refuse(number):
    """What a file system without a call answers to it."""

    def call(*words, **_):
        raise OSError(number, os.strerror(number), words[0])

    return call


class TestLocalFolderWithoutHardLinks(TestLocalFolder):
    """As on exFAT, which knows a rename that replaces nothing."""

    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch):
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))


class TestLocalFolderWithLocksAlone(TestLocalFolderWithoutHardLinks):
    """As on a FUSE mount that knows neither links nor that flag of a rename."""

    @pytest.fixture(autouse=True)
    def no_flag(self, monkeypatch):
        monkeypatch.setattr(exclusive, "_rename_without_replacing", refuse(errno.EINVAL))

    def test_a_writer_that_was_killed_leaves_no_lock(self, folder):
        folder.put("a/x", b"1")
        code = (
            "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDONLY);"
            "fcntl.flock(fd, fcntl.LOCK_EX); print(flush=True); time.sleep(600)"
        )
        words = [sys.executable, "-c", code, folder.uri("a")]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
            holder.stdout.readline()
            done = []
            writer = threading.Thread(target=lambda: done.append(folder.put_new("a/y", b"2")))
            writer.start()
            writer.join(0.3)
            assert not done  # it waits for the other one
            holder.kill()
            writer.join(10)
        assert done == [True]
        assert folder.read("a/y") == b"2"

    def test_without_locks_too_it_says_what_is_missing(self, folder, monkeypatch):
        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
        with pytest.raises(UsageError, match=r"no hard links.*nor locks\); name a folder that can"):
            claim_output(folder, "store", {})
        assert list(folder.entries()) == []


PRELOADED = """
#include <errno.h>
#include <stdlib.h>
int link(const char *a, const char *b) { errno = EPERM; return -1; }
int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }
#ifdef NO_FLAG
int renameat2(int a, const char *b, int c, const char *d, unsigned e) { errno = EINVAL; return -1; }
#endif
"""
"""A C library of a file system without hard links."""

WRITERS = """
import sys
from retrieval.storage.local import LocalFolder
folder = LocalFolder(sys.argv[1])
print([folder.put_new(f"a/{n}", sys.argv[2].encode() * 1000) for n in range(60)].count(True))
"""


@pytest.mark.parametrize("flags", [(), ("-DNO_FLAG",)])
def test_processes_race_where_the_system_refuses_links(tmp_path, flags):
    compiler = shutil.which("gcc") or pytest.skip("no C compiler to build a file system's refusal")
    (tmp_path / "refuse.c").write_text(PRELOADED)
    words = [compiler, "-shared", "-fPIC", *flags, "-o", tmp_path / "r.so", tmp_path / "refuse.c"]
    subprocess.run(words, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "r.so")}
    racing = [
        subprocess.Popen([sys.executable, "-c", WRITERS, tmp_path / "out", letter],
                         stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[3])
        for letter in "ab"
    ]  # fmt: skip
    won = [int(writer.communicate(timeout=60)[0]) for writer in racing]
    folder = LocalFolder(str(tmp_path / "out"))
    assert sum(won) == 60
    assert [sum(folder.read(f"a/{n}") == letter * 1000 for n in range(60)) for letter in
            (b"a", b"b")] == won  # fmt: skip
    assert len(list(folder.entries())) == 60


def test_a_file_system_that_cannot_sync_a_folder_is_written_to(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = LocalFolder(str(tmp_path / "out"))
    assert folder.put_new("a", b"1")
    folder.put("a", b"2")
    assert folder.read("a") == b"2"


class TestRemoteFolder(FolderTests):
    @pytest.fixture(autouse=True)
    def no_waits(self, monkeypatch):
        monkeypatch.setattr(retry, "wait", lambda seconds: None)

    def stopped(self):
        return nullcontext()  # an error that comes once is none

    @pytest.fixture
    def folder(self):
        root = f"memory://{uuid.uuid4()}"
        yield RemoteFolder(f"{root}/out")
        system = fsspec.filesystem("memory")
        for path in system.find(root):
            system.rm_file(path)

    def test_a_put_whose_answer_was_lost_is_known_as_ours(self, folder):
        """A store that kept the file but whose answer never came says "exists" the next time."""
        trace = operations(lambda: folder.put_new("rehearsal", b"mine"))
        lost = trace.index(("after", "put new", folder.uri("rehearsal")))
        for write, path in ((folder.put_new, "x"), (self.put_file(folder), "y")):
            with inject_faults(FailAt(lost, broken)):
                assert write(path, b"mine")
            assert write(path, b"mine")
            assert not write(path, b"meant")
            assert not write(path, b"theirs")
            assert folder.read(path) == b"mine"

    def put_file(self, folder):
        return lambda path, data: folder.put_new_file(path, copy_of(data))

    def test_a_file_that_goes_between_refusal_and_comparison_is_put_again(self, folder):
        for write in (folder.put_new, self.put_file(folder)):
            folder.put("x", b"theirs")

            def remove(when, operation, path):
                if (when, operation) == ("after", "put new") and state(folder, "x") == b"theirs":
                    folder.delete("x")

            with inject_faults(remove):
                assert write("x", b"mine")
            assert folder.read("x") == b"mine"

    @pytest.mark.parametrize("block", [1, 3, 1 << 22])
    def test_large_files_are_compared_in_blocks(self, folder, monkeypatch, block):
        monkeypatch.setattr(object_store, "_BLOCK", block)
        write = self.put_file(folder)
        assert write("x", b"abcdefg")
        assert write("x", b"abcdefg")
        for other in (b"abcdefG", b"Abcdefg", b"abcdef", b"abcdefgh", b""):
            assert not write("x", other)

    def test_a_stream_reads_any_range(self, folder):
        data = bytes(range(256)) * 1000
        folder.put("x", data)
        with folder.open("x") as file:
            for first, last in ((0, 10), (200_000, 256_000), (5, 70_000), (255_999, 256_000)):
                assert file.seek(first) == first
                assert file.read(last - first) == data[first:last]
            assert file.read() == b""
            assert file.seek(-5, os.SEEK_END) == len(data) - 5
            assert file.read() == data[-5:]

    @every_write
    def test_a_bucket_that_stays_away_stops_the_job(self, folder, write):
        folder.put("there", b"1")
        actions = (
            lambda: write(folder, "x", b"1"), lambda: folder.read("there"),
            lambda: list(folder.entries()), lambda: folder.delete("there"),
            lambda: folder.exists("there"), lambda: folder.open("there"),
        )  # fmt: skip
        for action in actions:
            with (
                inject_faults(broken),
                pytest.raises(StorageFailure, match=r"4 attempts.*Input/output"),
            ):
                action()
        assert folder.read("there") == b"1"

    def test_a_stream_is_read_with_patience(self, folder):
        folder.put("x", b"12")
        with folder.open("x") as file, inject_faults(FailAt(0, broken)):
            assert file.read() == b"12"

    def test_options_reach_the_file_system_and_stay_out_of_what_is_printed(self):
        folder = open_folder("memory://out/", {"secret": "hunter2"})
        assert folder.options == {"secret": "hunter2"}
        assert "hunter2" not in repr(folder)
        assert "hunter2" not in repr(folder.child("a"))
        assert folder.child("a").options == folder.options


def test_a_local_folder_is_known_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = LocalFolder(str(tmp_path / "out"))
    for name in ("out", "./out/", "~/out", f"file://{tmp_path}/out", f"{tmp_path}/x/../out"):
        assert open_folder(name) == wanted
