"""Test progress lines and metrics of a running stage."""

import pytest

from jobs.runtime import metrics, progress
from jobs.runtime.metrics import DONE, FAILED, TO_DO
from jobs.runtime.result import Result


class FakeCluster:
    busy_workers = 3


@pytest.fixture
def clock(monkeypatch):
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_progress_line(clock, capsys):
    with progress.progress("embed", 100, "images", FakeCluster()) as bar:
        clock[0] += 5  # startup is excluded from the estimated remaining time
        bar.advance(10)
        clock[0] += 10
        bar.advance(20, 2)
        clock[0] += 20
        bar.advance(70)
    assert capsys.readouterr().err.splitlines() == [
        "embed: 30/100 images, 2.0/s, 35 s left, 2 failed, 3 at work",
        "embed: 100/100 images, 2.9/s, 35 s, 2 failed",
    ]


def test_progress_line_without_a_cluster_omits_workers(clock, capsys):
    with progress.progress("merge", 4, "shards") as bar:
        bar.advance(1)
        clock[0] += 20
        bar.advance(1)
    assert "at work" not in capsys.readouterr().err


def test_control_characters_are_escaped_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.progress("embed models[/x]\x1b[2J", 2, "images") as bar:
        bar.advance(1)
        bar.advance(1)
    assert "embed models[/x]\\x1b[2J: 2/2 images" in capsys.readouterr().err


def test_metrics_have_stage_and_unit_tags(monkeypatch):
    calls = []

    class Metric:
        def __init__(self, name):
            self.name = name

        def inc(self, value, tags):
            calls.append((self.name, value, tags))

        set = inc

    monkeypatch.setattr(metrics, "_is_connected", lambda: True)
    monkeypatch.setattr(metrics, "_counters", lambda: {n: Metric(n) for n in (DONE, FAILED, TO_DO)})
    bar = progress.Progress("embed", 9, "images")
    bar.advance(4)
    bar.advance(5, 2)
    tags = {"stage": "embed", "unit": "images"}
    assert calls == [
        (TO_DO, 9, tags), (DONE, 4, tags), (TO_DO, 9, tags), (DONE, 5, tags), (FAILED, 2, tags),
    ]  # fmt: skip


def test_control_characters_in_messages_are_escaped(capsys):
    name = "owl\x1b[2J\x07\r\x9b1A\tk.jpg"
    progress.print_message(f"cannot read {name}\nand é ok")
    escaped = "owl\\x1b[2J\\x07\\x0d\\x9b1A\tk.jpg"
    assert capsys.readouterr().err == f"cannot read {escaped}\nand é ok\n"
    assert Result({}, (name, "second")).as_text() == f"{escaped}\nsecond"
