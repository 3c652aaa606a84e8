"""Two runs at once on one output: both end well, and what they made is what one alone makes.

Each race is told by its schedule (`tests/races.py`); `make test` takes a sample of them.
"""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from retrieval.storage.files import open_folder
from retrieval.storage.verify import verify
from tests.flows import draw_source
from tests.jobs.here import embed_now, without_ray
from tests.jobs.test_growth import BROKEN, Source, picture
from tests.races import Race, schedules
from tests.retrieval.storage.faults import FailAt, Killed, operations, seam
from tests.trees import tree

SAMPLE, ALL = 12, 240


@dataclass
class Start:
    """What both runs find: a source and, perhaps, an output that was begun."""

    root: Path
    settings: dict = field(default_factory=dict)

    @property
    def source(self):
        return self.root / "photos"

    def begin(self, output):
        """Make what is there before both runs start."""
        if (self.root / "before").exists():
            shutil.copytree(self.root / "before", output)

    def run(self, output):
        embed_now(self.source, output, **self.settings)


def nothing_yet(root):
    draw_source(root / "photos")
    return Start(root)


def killed_half_way(root):
    start = nothing_yet(root)
    moments = len(operations(lambda: start.run(root / "whole")))

    def kill(*moment):
        raise Killed

    with seam(FailAt(moments * 2 // 3, kill)), pytest.raises(Killed):
        start.run(root / "before")
    return start


def grown(root, **settings):
    source = Source(root / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg"]):
        source.put(name, picture(number) if number else BROKEN)
    embed_now(source.root, root / "before")
    source.put("a.jpg", picture(4))
    source.put("g.jpg", picture(3))
    source.put("h.jpg", BROKEN)
    source.touch("e.png")
    source.delete("f.jpg")
    return Start(root, settings)


def mended(root):
    """What failed reads now, and was listed as it is: only a retry finds out."""
    source = Source(root / "photos")
    for number, name in enumerate(["a.jpg", "b/c.jpg", "b/d.jpg", "e.png", "f.jpg"]):
        source.put(name, picture(number))
    unreadable = {"a.jpg", "f.jpg"}

    def denied(when, operation, path):
        if operation == "read" and Path(path).name in unreadable:
            raise PermissionError(13, "Permission denied", path)

    with seam(denied):
        embed_now(source.root, root / "before")
    return Start(root, {"retry_failed": True})


STARTS = {
    "new": nothing_yet,
    "begun": killed_half_way,
    "grown": grown,
    "mended": mended,
    "compact": lambda root: grown(root, compact=True),
}


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
