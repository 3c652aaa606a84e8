"""Two runs at once on one output: both end well, and what they made is what one alone makes.

Each race is told by its schedule (`tests/races.py`); `make test` takes a sample of them.
"""

import errno
import os
import shutil
from functools import partial

import pytest

from retrieval.storage import exclusive
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.jobs.embedding.test_store_sync import Source, check, picture
from tests.jobs.here import without_ray
from tests.jobs.starts import STARTS, grown
from tests.loops import bucket_of
from tests.races import Race, schedules
from tests.retrieval.storage.faults import operations
from tests.retrieval.storage.test_local import refuse
from tests.trees import tree

SAMPLE, ALL = 5, 240
IN_BUCKET, ALL_IN_BUCKET = 2, 40


@pytest.fixture(autouse=True)
def here(monkeypatch):
    with without_ray():
        yield


def race(start, count, tmp_path):
    """Race on copies of a start; gives how many races there were."""
    alone = tmp_path / "alone"
    start.begin(alone)
    moments = len(operations(lambda: start.run(alone)))
    wanted = tree(alone)
    done = 0
    for schedule in schedules(moments, count):
        output = tmp_path / "output"
        start.begin(output)
        try:
            Race(schedule).run(*[partial(start.run, output)] * 2)
            assert {verdict.state for verdict in verify(open_folder(str(output)))} == {"finished"}
            left = tree(output)
            assert left.keys() == wanted.keys()
            assert left == wanted
        except BaseException as error:
            error.add_note(f"schedule {schedule}")
            raise
        shutil.rmtree(output)
        done += 1
    return done


@pytest.mark.parametrize("name", STARTS)
def test_a_sample_of_races_ends_as_one_run_alone(name, tmp_path):
    assert race(STARTS[name](tmp_path), SAMPLE, tmp_path) == SAMPLE


def test_races_where_there_are_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(exclusive, "_rename_without_replacing", refuse(errno.EINVAL))
    assert race(STARTS["new"](tmp_path), 2, tmp_path) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("name", STARTS)
def test_all_races_end_as_one_run_alone(name, tmp_path):
    assert race(STARTS[name](tmp_path), ALL, tmp_path) == ALL


def race_in_bucket(start, count, tmp_path, endpoint):
    """Race with two writers on a real S3 server, where nothing but conditional puts decides."""
    alone = tmp_path / "alone"
    start.begin(alone)
    before = tree(alone) if alone.exists() else {}
    moments = len(operations(lambda: start.run(alone)))
    wanted = tree(alone)
    with bucket_of(endpoint) as bucket:
        for number, schedule in enumerate(schedules(moments, count)):
            output = bucket.child(str(number))
            for path, data in before.items():
                output.put(path, data)
            Race(schedule).run(*[partial(start.run, output.uri())] * 2)
            assert {verdict.state for verdict in verify(output)} == {"finished"}, schedule
            assert {e.path: output.read(e.path) for e in output.entries()
                    if e.path != "run.json"} == wanted, schedule  # fmt: skip
    return count


@pytest.mark.parametrize("name", ["new", "rank"])
def test_two_writers_of_a_bucket(name, tmp_path, s3):
    assert race_in_bucket(STARTS[name](tmp_path), IN_BUCKET, tmp_path, s3) == IN_BUCKET


@pytest.mark.nightly
@pytest.mark.parametrize("name", STARTS)
def test_all_races_of_a_bucket(name, tmp_path, s3):
    assert race_in_bucket(STARTS[name](tmp_path), ALL_IN_BUCKET, tmp_path, s3) == ALL_IN_BUCKET


def race_over_a_change(count, tmp_path):
    """The second run finds another source than the first; whoever comes then, what it is now."""
    for number in range(count):
        root = tmp_path / str(number)
        start = grown(root)
        source = Source(start.source)
        source.files = {
            path.relative_to(source.root).as_posix(): path.read_bytes()
            for path in source.root.rglob("*.*")
        }
        source.clock += 1000

        def change_and_run(start=start, source=source, output=root / "before"):
            source.put("late.jpg", picture(1))
            source.delete("b/d.jpg")
            start.run(output)

        schedule = [1 + number * 260 // count, 10**9]
        Race(schedule).run(partial(start.run, root / "before"), change_and_run)
        start.run(root / "before")
        check(source, root / "before")
    return count


def test_two_runs_that_list_different_sources(tmp_path):
    assert race_over_a_change(SAMPLE, tmp_path) == SAMPLE


@pytest.mark.nightly
def test_many_runs_that_list_different_sources(tmp_path):
    assert race_over_a_change(ALL // 2, tmp_path) == ALL // 2
