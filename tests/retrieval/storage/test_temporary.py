"""Tests that temporary files of dead processes are removed, and those of live ones kept."""

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


def mine():
    return f"{socket.gethostname()}-{os.getpid()}-{int(psutil.Process().create_time())}-0"


def dead_process():
    """The number of a process that has just ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def lay(folder, owner, *, age=0.0):
    """Lay a temporary file of an owner into a folder; give its path below it."""
    path = f"parts/{TEMPORARY_PREFIX}{owner}"
    folder.put(path, b"half")
    os.utime(folder.uri(path), (time.time() - age, time.time() - age))
    return path


DAY = 24 * 3600.0


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(str(tmp_path / "out"))


def test_sweep_removes_what_dead_processes_left(folder):
    host, start = socket.gethostname(), int(psutil.Process().create_time())
    lay(folder, f"{host}-{dead_process()}-{start}-0")
    lay(folder, f"{host}-{os.getpid()}-{start - 1000}-0")  # its number is ours by now
    lay(folder, f"{host}-{1 << 70}-{start}-0")
    folder.put("parts/00000000.parquet", b"whole")
    folder.sweep()
    assert [entry.path for entry in folder.entries()] == ["parts/00000000.parquet"]


def test_sweep_keeps_what_living_processes_write_until_it_is_a_day_old(folder):
    kept = lay(folder, mine(), age=DAY - 60)
    lay(folder, mine().replace("-0", "-1"), age=DAY + 60)
    folder.sweep()
    assert [entry.path for entry in folder.entries()] == [kept]


def test_a_clock_that_was_set_makes_no_living_process_dead(folder):
    """A process's start is counted from the boot, whose time moves when the clock is set."""
    host, start = socket.gethostname(), int(psutil.Process().create_time())
    kept = {lay(folder, f"{host}-{os.getpid()}-{start + shift}-0") for shift in (-1, 1)}
    folder.sweep()
    assert {entry.path for entry in folder.entries()} == kept


@pytest.mark.parametrize(
    "owner",
    [
        "elsewhere-1-1-0",  # of another host: it may live
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
def test_sweep_keeps_what_it_cannot_judge_until_it_is_a_day_old(folder, owner):
    path = lay(folder, owner.format(host=socket.gethostname()))
    folder.sweep()
    assert folder.exists(path)
    os.utime(folder.uri(path), (time.time() - DAY - 60,) * 2)
    folder.sweep()
    assert not folder.exists(path)


def test_hosts_may_have_hyphens(folder, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ip-10-0-0-1")
    kept = lay(folder, mine())
    lay(folder, f"ip-10-0-0-1-{dead_process()}-5-0")
    folder.sweep()
    assert [entry.path for entry in folder.entries()] == [kept]


def test_a_writer_at_work_is_not_swept(folder):
    with inject_faults(lambda *moment: moment[1] == "link" and folder.sweep()):
        assert folder.put_new("parts/x", b"1")
    assert folder.read("parts/x") == b"1"


def test_the_folder_of_scratch_is_made_or_refused_by_name(tmp_path):
    make_temp_dir(None)
    make_temp_dir(f"{tmp_path}/fast/disk")
    make_temp_dir(f"{tmp_path}/fast/disk")
    assert (tmp_path / "fast/disk").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=f"--temp-dir {tmp_path}/file/x cannot be made on .*; name"
    ):
        make_temp_dir(f"{tmp_path}/file/x")
