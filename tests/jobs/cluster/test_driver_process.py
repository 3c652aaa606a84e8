"""Test that small work on vectors is done in the process of the command, as on Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from jobs.cluster import stall_detector
from jobs.cluster.driver_process import DRIVER_SECONDS, DriverProcess, choose_process
from jobs.cluster.resources import Cluster
from jobs.cluster.tasks import run_tasks
from jobs.indexing.training_workers import training_workers
from retrieval.core.errors import InputError, Stalled
from tests.commands import run_command, run_command_in_process
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray

ROOT = Path(__file__).parents[3]


@pytest.fixture
def process():
    return DriverProcess(Cluster(None, 2))


def thread_counts(_):
    np.ones((2, 2)) @ np.ones((2, 2))
    return {library["num_threads"] for library in threadpool_info()}


def test_tasks_run_here_in_one_thread(process):
    before = thread_counts(None)
    pids = list(run_tasks(process, lambda number: (number, os.getpid()), range(3)))
    assert pids == [(number, os.getpid()) for number in range(3)]
    assert list(run_tasks(process, thread_counts, [0])) == [{1}]
    assert thread_counts(None) == before


def test_peak_memory_is_recorded_for_the_cluster():
    cluster = Cluster(None, 2)
    list(run_tasks(DriverProcess(cluster), str, [1]))
    assert cluster.peak > 1 << 20


def test_training_workers_keep_the_order(process):
    workers = training_workers(process)
    shared = workers.broadcast(10)
    assert list(workers.map(lambda n, factor: n * factor, [(n, shared) for n in range(4)])) == [
        0,
        10,
        20,
        30,
    ]
    assert workers.map_stored(lambda n: (n, -n), [(1,), (2,)]) == [(1, -1), (2, -2)]


def test_errors_are_raised_unchanged(process):
    def fail(_):
        raise InputError("no vectors")

    with pytest.raises(InputError, match="no vectors"):
        list(run_tasks(process, fail, [1]))


def test_stall_is_raised(process, monkeypatch):
    monkeypatch.setattr(stall_detector, "STALL_SECONDS", 0.5)
    with pytest.raises(Stalled, match="an input or output that does not answer"):
        list(run_tasks(process, time.sleep, [5]))


@pytest.mark.parametrize(
    ("address", "seconds", "here"),
    [
        (None, DRIVER_SECONDS, True),
        (None, DRIVER_SECONDS + 1, False),
        ("local", 0.0, False),
        ("10.0.0.1:6379", 0.0, False),
    ],
)
def test_choice_of_the_process(monkeypatch, address, seconds, here):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster(address, None)
    assert (choose_process(cluster, seconds) is not cluster) == here


# --- complete commands ---


@pytest.fixture
def vectors(tmp_path):
    """Write 600 gallery vectors, one of which is invalid, and 40 query vectors."""
    generator = np.random.default_rng(0)
    for name, rows in (("gallery", 600), ("queries", 40)):
        array = generator.normal(size=(rows, 24)).astype(np.float32)
        array[1] = np.nan if name == "gallery" else array[1]
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def commands(root, output):
    yield "index", "--embeddings", root / "gallery.npy", "--output", output / "index"
    yield ("rank", "--index", output / "index", "--queries", root / "queries.npy",
           "--output", output / "matches", "--format", "html,csv")  # fmt: skip
    yield "verify", output / "matches"


def test_small_commands_on_vectors_do_not_import_ray(vectors):
    broken = vectors / "path" / "ray"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise AssertionError('ray was imported')")
    for command in commands(vectors, vectors / "out"):
        result = run_command(*command, env={"PYTHONPATH": str(broken.parent)})
        assert result.exit_code == 0, result.stderr
    here = read_tree(vectors / "out")
    with without_ray():
        for command in commands(vectors, vectors / "out"):
            if command[0] != "verify":
                result = run_command_in_process(*command, "--overwrite", "--ray-address", "here:1")
                assert result.exit_code == 0, result.stderr
    assert read_tree(vectors / "out") == here


_SLOW_IMPORT = """
import os, sys, time
from retrieval.embedding import import_vectors

def wait(*arguments):
    open(os.environ["MARKER"], "w").close()
    time.sleep(100)

import_vectors.import_chunk = wait
from jobs import cli
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_work_in_this_process(vectors, number, code):
    marker = vectors / "begun"
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_IMPORT, "index", "--embeddings", str(vectors / "gallery.npy"),
         "--output", str(vectors / "out")],
        cwd=ROOT, env={**os.environ, "MARKER": str(marker)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not marker.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert "finished work is kept" in stderr
