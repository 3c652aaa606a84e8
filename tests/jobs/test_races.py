"""Two runs at once on one output: both end well, and what they made is what one alone makes.

Each race is told by its schedule (`tests/races.py`); `make test` takes a sample of them.
"""

import shutil
from functools import partial

import pytest

from retrieval.storage.files import open_folder
from retrieval.storage.verify import verify
from tests.jobs.here import without_ray
from tests.jobs.starts import STARTS
from tests.races import Race, schedules
from tests.retrieval.storage.faults import operations
from tests.trees import tree

SAMPLE, ALL = 12, 240


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


@pytest.mark.nightly
@pytest.mark.parametrize("name", STARTS)
def test_all_races_end_as_one_run_alone(name, tmp_path):
    assert race(STARTS[name](tmp_path), ALL, tmp_path) == ALL
