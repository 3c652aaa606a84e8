"""Tests of folders: atomic writes, and the files left after every injected fault."""

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
from tests.retrieval.storage.faults import FailAt, inject_faults, raise_io_error, record_operations


def file_writer(data):
    """Return a function for `put_new_file`, which writes `data` to the path it is called with."""
    return lambda name: Path(name).write_bytes(data)


WRITES = {
    "put": lambda folder, path, data: folder.put(path, data),
    "put_new": lambda folder, path, data: folder.put_new(path, data),
    "put_new_file": lambda folder, path, data: folder.put_new_file(path, file_writer(data)),
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


def read_or_none(folder, path):
    """Return the bytes of a file, or None if it does not exist."""
    try:
        return folder.read(path)
    except FileNotFoundError:
        return None


class FolderTests(ABC):
    """Contract of every kind of folder."""

    @abstractmethod
    def folder(self):
        """Return an empty folder that does not exist yet (a fixture)."""

    @abstractmethod
    def expect_error(self):
        """Return the context manager for a write during which a single error occurs."""

    @every_write
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
    def test_written_data_is_read_back(self, folder, write, data):
        write(folder, "a/b c/Zürich – 猫.bin", data)
        assert folder.read("a/b c/Zürich – 猫.bin") == data
        assert list(folder.entries()) == [Entry("a/b c/Zürich – 猫.bin", len(data))]
        with folder.open("a/b c/Zürich – 猫.bin") as file:
            assert file.seek(0, os.SEEK_END) == len(data)

    def test_put_replaces_existing_file(self, folder):
        folder.put("a", b"old and longer")
        folder.put("a", b"new")
        assert folder.read("a") == b"new"

    def test_put_new_returns_false_and_keeps_existing_file(self, folder):
        assert folder.put_new("a", b"first")
        assert not folder.put_new("a", b"second")
        assert folder.read("a") == b"first"
        assert not folder.put_new_file("a", file_writer(b"third"))
        assert folder.read("a") == b"first"
        assert folder.put_new_file("b", file_writer(b"fourth"))
        assert not folder.put_new("b", b"fifth")
        assert folder.read("b") == b"fourth"

    def test_operations_on_missing_files(self, folder):
        for path in ("a", "a/b"):
            assert not folder.exists(path)
            with pytest.raises(FileNotFoundError):
                folder.read(path)
            with pytest.raises(FileNotFoundError):
                folder.open(path)
            folder.delete(path)
        assert list(folder.entries()) == list(folder.entries("a")) == []

    def test_entries_lists_files_recursively(self, folder):
        for path in ("x", "a/x", "a/b/c/x", "ab/x"):
            folder.put(path, path.encode())
        assert sorted(entry.path for entry in folder.entries()) == ["a/b/c/x", "a/x", "ab/x", "x"]
        assert sorted(folder.entries("a"), key=lambda entry: entry.path) == [
            Entry("a/b/c/x", 7),
            Entry("a/x", 3),
        ]

    def test_delete_removes_file_and_empty_parent_folders(self, folder):
        folder.put("a/b/x", b"1")
        folder.put("a/y", b"2")
        folder.delete("a/b/x")
        assert [entry.path for entry in folder.entries()] == ["a/y"]
        assert not folder.exists("a/b/x")
        folder.put("a/b", b"a file where a folder was")
        assert folder.read("a/b") == b"a file where a folder was"

    def test_child_is_subfolder(self, folder):
        folder.child("a/b").put("x", b"1")
        assert folder.read("a/b/x") == b"1"
        assert folder.child("a").child("b").read("x") == b"1"
        assert folder.child("a/b").uri("x") == folder.uri("a/b/x")
        assert [entry.path for entry in folder.child("a").entries()] == ["b/x"]

    def test_uri_round_trip(self, folder):
        folder.put("a/x y%20.bin", b"1")
        assert open_folder(folder.uri()) == folder
        assert read_uri(folder.uri("a/x y%20.bin")) == b"1"

    @every_write
    def test_failed_write_leaves_complete_file_or_none_and_can_be_repeated(self, folder, write):
        data = b"new" * 1000
        events = record_operations(lambda: write(folder, "a/rehearsal", data))
        assert len(events) >= 2
        for number in range(len(events)):
            path = f"a/{number}"
            with inject_faults(FailAt(number, raise_io_error)), self.expect_error():
                write(folder, path, data)
            assert read_or_none(folder, path) in (None, data)
            assert not any(TEMPORARY_PREFIX in entry.path for entry in folder.entries())
            write(folder, path, data)
            assert read_or_none(folder, path) == data

    def test_failed_replacement_leaves_old_or_new_file(self, folder):
        events = record_operations(lambda: folder.put("a/x", b"new"))
        for number in range(len(events)):
            folder.put("a/x", b"old")
            with inject_faults(FailAt(number, raise_io_error)), self.expect_error():
                folder.put("a/x", b"new")
            assert folder.read("a/x") in (b"old", b"new")
            assert [entry.path for entry in folder.entries()] == ["a/x"]

    @every_write
    def test_write_is_atomic_for_readers(self, folder, write):
        contents = []

        def read_during_write(when, operation, path):
            if operation != "read":
                contents.append(read_or_none(folder, "a/x"))

        data = b"new" * 1000
        with inject_faults(read_during_write):
            write(folder, "a/x", data)
        assert set(contents) == {None, data}
        assert contents == sorted(contents, key=lambda content: content is not None)


class TestLocalFolder(FolderTests):
    def expect_error(self):
        return pytest.raises(StorageFailure, match=r"Input/output error.*repair the disk")

    @pytest.fixture
    def folder(self, tmp_path):
        return LocalFolder(str(tmp_path / "out"))

    @every_write
    def test_write_on_full_disk_leaves_no_file(self, folder, write):
        def write_partially(when, operation, path):
            Path(path).write_bytes(b"hal")
            raise OSError(28, "No space left on device", path)

        events = record_operations(lambda: write(folder, "rehearsal", b"half"))
        folder.delete("rehearsal")
        # put_new_file does not write the file itself; its first operation is the fsync
        number = next(index for index, event in enumerate(events) if event[1] in ("write", "sync"))
        with (
            inject_faults(FailAt(number, write_partially)),
            pytest.raises(StorageFailure, match=r"No space.*make room"),
        ):
            write(folder, "x", b"half")
        assert list(folder.entries()) == []

    def test_open_file_is_unaffected_by_replacement(self, folder):
        folder.put("x", b"old")
        with folder.open("x") as file:
            folder.put("x", b"new")
            assert file.read() == b"old"

    def test_concurrent_put_new_succeeds_exactly_once(self, folder):
        candidates = [bytes([number]) * 100_000 for number in range(8)]
        start = threading.Barrier(len(candidates))
        written = []

        def write_candidate(data):
            start.wait()
            if folder.put_new("a/x", data):
                written.append(data)

        threads = [threading.Thread(target=write_candidate, args=(data,)) for data in candidates]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [folder.read("a/x")] == written
        assert [entry.path for entry in folder.entries()] == ["a/x"]

    def test_delete_keeps_root_folder(self, folder):
        folder.put("a/b/c/x", b"1")
        folder.delete("a/b/c/x")
        assert os.listdir(folder.uri()) == []

    def test_path_below_file_does_not_exist(self, folder):
        folder.put("x", b"1")
        assert not folder.exists("x/y")
        assert not folder.child("x").exists("y")

    def test_dangling_link_counts_as_existing(self, folder):
        folder.put("x", b"1")
        os.symlink("nowhere", folder.uri("dangling"))
        assert not folder.put_new("dangling", b"2")
        assert not os.path.exists(folder.uri("nowhere"))
        os.symlink("itself", folder.uri("itself"))
        assert sorted(entry.path for entry in folder.entries()) == ["dangling", "itself", "x"]


def unsupported(error_number):
    """Return a function that fails as a system call that the file system does not support."""

    def call(*arguments, **_):
        raise OSError(error_number, os.strerror(error_number), arguments[0])

    return call


class TestLocalFolderWithoutHardLinks(TestLocalFolder):
    """As on exFAT, which supports a rename that replaces no file."""

    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch):
        monkeypatch.setattr(os, "link", unsupported(errno.EPERM))


class TestLocalFolderWithLocksAlone(TestLocalFolderWithoutHardLinks):
    """As on a FUSE mount that supports neither links nor that flag of a rename."""

    @pytest.fixture(autouse=True)
    def no_flag(self, monkeypatch):
        monkeypatch.setattr(exclusive, "_rename_without_replacing", unsupported(errno.EINVAL))

    def test_lock_of_killed_writer_is_released(self, folder):
        folder.put("a/x", b"1")
        code = (
            "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDONLY);"
            "fcntl.flock(fd, fcntl.LOCK_EX); print(flush=True); time.sleep(600)"
        )
        command = [sys.executable, "-c", code, folder.uri("a")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as lock_holder:
            lock_holder.stdout.readline()
            results = []
            writer = threading.Thread(target=lambda: results.append(folder.put_new("a/y", b"2")))
            writer.start()
            writer.join(0.3)
            assert not results  # the writer waits for the lock
            lock_holder.kill()
            writer.join(10)
        assert results == [True]
        assert folder.read("a/y") == b"2"

    def test_file_system_without_links_and_locks_is_refused(self, folder, monkeypatch):
        monkeypatch.setattr(fcntl, "flock", unsupported(errno.ENOLCK))
        with pytest.raises(UsageError, match=r"neither hard links.*nor locks\); specify"):
            claim_output(folder, "store", {})
        assert list(folder.entries()) == []


NO_LINK_LIBRARY = """
#include <errno.h>
#include <stdlib.h>
int link(const char *a, const char *b) { errno = EPERM; return -1; }
int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }
#ifdef NO_FLAG
int renameat2(int a, const char *b, int c, const char *d, unsigned e) { errno = EINVAL; return -1; }
#endif
"""
"""C source of a preloaded library, under which the file system seems to lack hard links."""

WRITER_PROGRAM = """
import sys
from retrieval.storage.local import LocalFolder
folder = LocalFolder(sys.argv[1])
print([folder.put_new(f"a/{n}", sys.argv[2].encode() * 1000) for n in range(60)].count(True))
"""


@pytest.mark.parametrize("flags", [(), ("-DNO_FLAG",)])
def test_concurrent_processes_without_hard_links_write_each_file_once(tmp_path, flags):
    compiler = shutil.which("gcc") or pytest.skip("no C compiler to build the preloaded library")
    (tmp_path / "refuse.c").write_text(NO_LINK_LIBRARY)
    command = [compiler, "-shared", "-fPIC", *flags, "-o", tmp_path / "r.so", tmp_path / "refuse.c"]
    subprocess.run(command, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "r.so")}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER_PROGRAM, tmp_path / "out", letter],
                         stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[3])
        for letter in "ab"
    ]  # fmt: skip
    counts = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    folder = LocalFolder(str(tmp_path / "out"))
    assert sum(counts) == 60
    assert [sum(folder.read(f"a/{n}") == letter * 1000 for n in range(60)) for letter in
            (b"a", b"b")] == counts  # fmt: skip
    assert len(list(folder.entries())) == 60


def test_unsupported_fsync_of_folder_is_ignored(tmp_path, monkeypatch):
    original_fsync = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        original_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = LocalFolder(str(tmp_path / "out"))
    assert folder.put_new("a", b"1")
    folder.put("a", b"2")
    assert folder.read("a") == b"2"


class TestRemoteFolder(FolderTests):
    @pytest.fixture(autouse=True)
    def no_retry_delays(self, monkeypatch):
        monkeypatch.setattr(retry, "wait", lambda seconds: None)

    def expect_error(self):
        return nullcontext()  # a single error is retried

    @pytest.fixture
    def folder(self):
        root = f"memory://{uuid.uuid4()}"
        yield RemoteFolder(f"{root}/out")
        system = fsspec.filesystem("memory")
        for path in system.find(root):
            system.rm_file(path)

    def test_put_after_lost_response_recognizes_its_own_file(self, folder):
        """If the response of a successful write is lost, the retry finds an existing file."""
        events = record_operations(lambda: folder.put_new("rehearsal", b"mine"))
        event_number = events.index(("after", "put new", folder.uri("rehearsal")))
        for write, path in ((folder.put_new, "x"), (self.bytes_writer(folder), "y")):
            with inject_faults(FailAt(event_number, raise_io_error)):
                assert write(path, b"mine")
            assert write(path, b"mine")
            assert not write(path, b"meant")
            assert not write(path, b"theirs")
            assert folder.read(path) == b"mine"

    def bytes_writer(self, folder):
        """Return `put_new_file` of the folder, as a function of (path, data)."""
        return lambda path, data: folder.put_new_file(path, file_writer(data))

    def test_file_deleted_before_comparison_is_written_again(self, folder):
        for write in (folder.put_new, self.bytes_writer(folder)):
            folder.put("x", b"theirs")

            def remove(when, operation, path):
                if (when, operation) == ("after", "put new") and read_or_none(
                    folder, "x"
                ) == b"theirs":
                    folder.delete("x")

            with inject_faults(remove):
                assert write("x", b"mine")
            assert folder.read("x") == b"mine"

    @pytest.mark.parametrize("block", [1, 3, 1 << 22])
    def test_existing_file_is_compared_in_blocks(self, folder, monkeypatch, block):
        monkeypatch.setattr(object_store, "_BLOCK", block)
        write = self.bytes_writer(folder)
        assert write("x", b"abcdefg")
        assert write("x", b"abcdefg")
        for other in (b"abcdefG", b"Abcdefg", b"abcdef", b"abcdefgh", b""):
            assert not write("x", other)

    def test_stream_reads_any_range(self, folder):
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
    def test_persistent_errors_raise_storage_failure(self, folder, write):
        folder.put("existing", b"1")
        actions = (
            lambda: write(folder, "x", b"1"), lambda: folder.read("existing"),
            lambda: list(folder.entries()), lambda: folder.delete("existing"),
            lambda: folder.exists("existing"), lambda: folder.open("existing"),
        )  # fmt: skip
        for action in actions:
            with (
                inject_faults(raise_io_error),
                pytest.raises(StorageFailure, match=r"4 attempts.*Input/output"),
            ):
                action()
        assert folder.read("existing") == b"1"

    def test_stream_reads_are_retried(self, folder):
        folder.put("x", b"12")
        with folder.open("x") as file, inject_faults(FailAt(0, raise_io_error)):
            assert file.read() == b"12"

    def test_storage_options_are_kept_and_excluded_from_repr(self):
        folder = open_folder("memory://out/", {"secret": "hunter2"})
        assert folder.options == {"secret": "hunter2"}
        assert "hunter2" not in repr(folder)
        assert "hunter2" not in repr(folder.child("a"))
        assert folder.child("a").options == folder.options


def test_local_folders_compare_by_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = LocalFolder(str(tmp_path / "out"))
    for name in ("out", "./out/", "~/out", f"file://{tmp_path}/out", f"{tmp_path}/x/../out"):
        assert open_folder(name) == expected
