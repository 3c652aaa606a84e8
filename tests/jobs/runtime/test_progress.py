"""What is said and counted while a stage runs."""

import pytest

from jobs.runtime import metrics, progress
from jobs.runtime.metrics import DONE, FAILED, TO_DO
from jobs.runtime.result import Result


class Cluster:
    at_work = 3


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_stage_done_rate_time_left_failures_and_workers(clock, capsys):
    with progress.progress("embed", 100, "images", Cluster()) as shown:
        clock[0] += 5  # start-up is not counted into the time that is left
        shown.advance(10)
        clock[0] += 10
        shown.advance(20, 2)
        clock[0] += 20
        shown.advance(70)
    assert capsys.readouterr().err.splitlines() == [
        "embed: 30/100 images, 2.0/s, 35 s left, 2 failed, 3 at work",
        "embed: 100/100 images, 2.9/s, 35 s, 2 failed",
    ]


def test_without_a_cluster_no_workers_are_told(clock, capsys):
    with progress.progress("merge", 4, "shards") as shown:
        shown.advance(1)
        clock[0] += 20
        shown.advance(1)
    assert "at work" not in capsys.readouterr().err


def test_on_a_terminal_a_name_may_hold_anything(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.progress("embed models[/x]\x1b[2J", 2, "images") as shown:
        shown.advance(1)
        shown.advance(1)
    assert "embed models[/x]\\x1b[2J: 2/2 images" in capsys.readouterr().err


def test_what_is_counted_has_the_stage_and_the_unit(monkeypatch):
    told = []

    class Metric:
        def __init__(self, name):
            self.name = name

        def inc(self, value, tags):
            told.append((self.name, value, tags))

        set = inc

    monkeypatch.setattr(metrics, "_is_connected", lambda: True)
    monkeypatch.setattr(metrics, "_counters", lambda: {n: Metric(n) for n in (DONE, FAILED, TO_DO)})
    shown = progress.Progress("embed", 9, "images")
    shown.advance(4)
    shown.advance(5, 2)
    tags = {"stage": "embed", "unit": "images"}
    assert told == [
        (TO_DO, 9, tags), (DONE, 4, tags), (TO_DO, 9, tags), (DONE, 5, tags), (FAILED, 2, tags),
    ]  # fmt: skip


def test_no_name_moves_a_terminal(capsys):
    name = "owl\x1b[2J\x07\r\x9b1A\tk.jpg"
    progress.say(f"cannot read {name}\nand é ok")
    seen = "owl\\x1b[2J\\x07\\x0d\\x9b1A\tk.jpg"
    assert capsys.readouterr().err == f"cannot read {seen}\nand é ok\n"
    assert Result({}, (name, "second")).as_text() == f"{seen}\nsecond"
