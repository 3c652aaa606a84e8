"""Test that two concurrent runs on one output end with the files of a single run.

Each race follows a schedule (`tests/interleaving.py`); `make test` takes a sample of them.
"""

import errno
import os
import shutil
from functools import partial

import pytest

from retrieval.storage import exclusive
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.fault_loop import temporary_bucket
from tests.file_tree import read_tree
from tests.interleaving import Race, schedules
from tests.jobs.embedding.test_store_sync import Source, check_store, make_picture
from tests.jobs.in_process import without_ray
from tests.jobs.initial_states import INITIAL_STATES, changed_source
from tests.retrieval.storage.faults import record_operations
from tests.retrieval.storage.test_local import unsupported

SAMPLE, FULL = 3, 240
S3_SAMPLE, S3_FULL = 2, 40


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    with without_ray():
        yield


def run_races(state, count, tmp_path):
    """Run `count` races on copies of an initial state, and return their number."""
    single_run = tmp_path / "alone"
    state.create(single_run)
    operation_count = len(record_operations(lambda: state.run(single_run)))
    expected = read_tree(single_run)
    completed = 0
    for schedule in schedules(operation_count, count):
        output = tmp_path / "output"
        state.create(output)
        try:
            Race(schedule).run(*[partial(state.run, output)] * 2)
            assert {verdict.state for verdict in verify(open_folder(str(output)))} == {"finished"}
            files = read_tree(output)
            assert files.keys() == expected.keys()
            assert files == expected
        except BaseException as error:
            error.add_note(f"schedule {schedule}")
            raise
        shutil.rmtree(output)
        completed += 1
    return completed


@pytest.mark.parametrize("name", INITIAL_STATES)
def test_sampled_races_end_as_a_single_run(name, tmp_path):
    assert run_races(INITIAL_STATES[name](tmp_path), SAMPLE, tmp_path) == SAMPLE


def test_races_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", unsupported(errno.EPERM))
    monkeypatch.setattr(exclusive, "_rename_without_replacing", unsupported(errno.EINVAL))
    assert run_races(INITIAL_STATES["empty"](tmp_path), 2, tmp_path) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("name", INITIAL_STATES)
def test_all_races_end_as_a_single_run(name, tmp_path):
    assert run_races(INITIAL_STATES[name](tmp_path), FULL, tmp_path) == FULL


def run_races_in_bucket(state, count, tmp_path, endpoint):
    """Run races on a real S3 server, where only conditional puts exclude each other."""
    single_run = tmp_path / "alone"
    state.create(single_run)
    initial_files = read_tree(single_run) if single_run.exists() else {}
    operation_count = len(record_operations(lambda: state.run(single_run)))
    expected = read_tree(single_run)
    with temporary_bucket(endpoint) as bucket:
        for number, schedule in enumerate(schedules(operation_count, count)):
            output = bucket.child(str(number))
            for path, data in initial_files.items():
                output.put(path, data)
            Race(schedule).run(*[partial(state.run, output.uri())] * 2)
            assert {verdict.state for verdict in verify(output)} == {"finished"}, schedule
            assert {e.path: output.read(e.path) for e in output.entries()
                    if e.path != "run.json"} == expected, schedule  # fmt: skip
    return count


@pytest.mark.parametrize("name", ["empty", "rank"])
def test_sampled_races_in_a_bucket(name, tmp_path, s3):
    assert run_races_in_bucket(INITIAL_STATES[name](tmp_path), S3_SAMPLE, tmp_path, s3) == S3_SAMPLE


@pytest.mark.nightly
@pytest.mark.parametrize("name", INITIAL_STATES)
def test_all_races_in_a_bucket(name, tmp_path, s3):
    assert run_races_in_bucket(INITIAL_STATES[name](tmp_path), S3_FULL, tmp_path, s3) == S3_FULL


def run_races_with_changed_source(count, tmp_path):
    """Change the source between two concurrent runs; a third run must match the current source."""
    for number in range(count):
        root = tmp_path / str(number)
        state = changed_source(root)
        source = Source(state.source)
        source.files = {
            path.relative_to(source.root).as_posix(): path.read_bytes()
            for path in source.root.rglob("*.*")
        }
        source.clock += 1000

        def change_and_run(state=state, source=source, output=root / "before"):
            source.put("late.jpg", make_picture(1))
            source.delete("b/d.jpg")
            state.run(output)

        schedule = [1 + number * 260 // count, 10**9]
        Race(schedule).run(partial(state.run, root / "before"), change_and_run)
        state.run(root / "before")
        check_store(source, root / "before")
    return count


def test_sampled_races_with_a_changed_source(tmp_path):
    assert run_races_with_changed_source(SAMPLE, tmp_path) == SAMPLE


@pytest.mark.nightly
def test_all_races_with_a_changed_source(tmp_path):
    assert run_races_with_changed_source(FULL // 2, tmp_path) == FULL // 2
