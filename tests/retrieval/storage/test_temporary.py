"""Tests that temporary files of dead processes are removed, and those of live processes kept."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from retrieval.core.errors import UsageError
from retrieval.storage.local import LocalFolder
from retrieval.storage.temporary import TEMPORARY_PREFIX, make_temp_dir
from tests.retrieval.storage.faults import inject_faults


def current_owner():
    """Return the owner part of a temporary file name of this process."""
    return f"{socket.gethostname()}-{os.getpid()}-{int(psutil.Process().create_time())}-0"


def dead_process():
    """Return the id of a process that has exited."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_temporary_file(folder, owner, *, age=0.0):
    """Write a temporary file of an owner, `age` seconds old; return its path in the folder."""
    path = f"parts/{TEMPORARY_PREFIX}{owner}"
    folder.put(path, b"half")
    os.utime(folder.uri(path), (time.time() - age, time.time() - age))
    return path


DAY = 24 * 3600.0


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


def test_sweep_removes_files_of_dead_processes(folder):
    host, start = socket.gethostname(), int(psutil.Process().create_time())
    write_temporary_file(folder, f"{host}-{dead_process()}-{start}-0")
    write_temporary_file(folder, f"{host}-{os.getpid()}-{start - 1000}-0")  # a reused process id
    write_temporary_file(folder, f"{host}-{1 << 70}-{start}-0")
    folder.put("parts/00000000.parquet", b"complete")
    folder.sweep()
    assert [entry.path for entry in folder.entries()] == ["parts/00000000.parquet"]


def test_sweep_keeps_files_of_live_processes_for_one_day(folder):
    expected = write_temporary_file(folder, current_owner(), age=DAY - 60)
    write_temporary_file(folder, current_owner().replace("-0", "-1"), age=DAY + 60)
    folder.sweep()
    assert [entry.path for entry in folder.entries()] == [expected]


def test_sweep_tolerates_clock_change_of_one_second(folder):
    """The start time of a process is computed from the boot time, which shifts with the clock."""
    host, start = socket.gethostname(), int(psutil.Process().create_time())
    expected = {
        write_temporary_file(folder, f"{host}-{os.getpid()}-{start + shift}-0") for shift in (-1, 1)
    }
    folder.sweep()
    assert {entry.path for entry in folder.entries()} == expected


@pytest.mark.parametrize(
    "owner",
    [
        "elsewhere-1-1-0",  # of another host: the process may be alive
        "",
        "x",
        "1-2-3",
        "{host}-1-2",
        "{host}-one-two-three",
        "{host}--1-2-3",
        "{host}-0x1-2-3",
        "{host}-1-two-3",
    ],
)
def test_sweep_keeps_files_of_unknown_owners_for_one_day(folder, owner):
    path = write_temporary_file(folder, owner.format(host=socket.gethostname()))
    folder.sweep()
    assert folder.exists(path)
    os.utime(folder.uri(path), (time.time() - DAY - 60,) * 2)
    folder.sweep()
    assert not folder.exists(path)


def test_host_name_with_hyphens_is_parsed(folder, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ip-10-0-0-1")
    expected = write_temporary_file(folder, current_owner())
    write_temporary_file(folder, f"ip-10-0-0-1-{dead_process()}-5-0")
    folder.sweep()
    assert [entry.path for entry in folder.entries()] == [expected]


def test_sweep_during_write_keeps_temporary_file(folder):
    with inject_faults(lambda *event: event[1] == "link" and folder.sweep()):
        assert folder.put_new("parts/x", b"1")
    assert folder.read("parts/x") == b"1"


def test_temp_dir_is_created_or_refused_by_name(tmp_path):
    make_temp_dir(None)
    make_temp_dir(f"{tmp_path}/fast/disk")
    make_temp_dir(f"{tmp_path}/fast/disk")
    assert (tmp_path / "fast/disk").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=f"--temp-dir {tmp_path}/file/x cannot be created on .*; specify"
    ):
        make_temp_dir(f"{tmp_path}/file/x")
