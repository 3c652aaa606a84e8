"""Check that published figures are read, compared and formatted correctly."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import claims
from benchmarks.claims import (
    Claim,
    figure,
    measurements,
    phrases,
    with_phrases,
)
from retrieval.planning import costs

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "benchmarks/README.md")
UNMEASURED = {"gpu"}  # no GPU was at hand since it was written


@pytest.mark.parametrize("one", measurements(), ids=lambda one: one.name)
def test_a_measurement_has_a_command_that_is_there(one: claims.Measurement) -> None:
    words = one.command.split()
    if words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), one.command
    else:
        assert words[0] in ("lookalike", "du"), one.command
        assert not one.runs(), "only what prints JSON can be read again"
    assert one.claims, "it claims nothing"
    assert f"<!-- claims: {one.name} -->" in (ROOT / "benchmarks/README.md").read_text()


def test_every_benchmark_that_tells_is_claimed() -> None:
    telling = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if re.search(r"^ +tell\(", path.read_text(), re.MULTILINE)
    }
    claimed = {one.command.split()[2].removeprefix("benchmarks.") for one in measurements()
               if one.command.startswith("python -m benchmarks.")}  # fmt: skip
    assert telling - claimed == UNMEASURED


def claim(figure: claims.Figure, at: str = "a/0/b", tolerance: float = 0.25) -> Claim:
    return Claim("it", "it", figure, at, "", None, tolerance)


def test_a_figure_beyond_its_tolerance_is_told() -> None:
    found = {"a": [{"b": 4.0}]}
    assert claim(5.0).differs(found) == []
    assert claim(5.0, tolerance=0.1).differs(found) == [("", 5.0, 4.0)]
    assert claim([5.0, 1.0, 9.0], tolerance=0.1).differs(found) == [("", 5.0, 4.0)]


def test_figures_by_name_are_compared_by_name() -> None:
    found = {"a": [{"b": {"1": [10.0, 9, 11], "2": 20.0}}]}
    assert claim({"1": 10.0, "2": 40.0}).differs(found) == [("2", 40.0, 20.0)]


def test_a_figure_that_is_gone_differs() -> None:
    ((name, claimed, now),) = claim(5.0).differs({"a": []})
    assert (name, claimed) == ("", 5.0)
    assert now != now


def test_a_claimed_nothing_bears_nothing() -> None:
    assert claim(0).differs({"a": [{"b": 0}]}) == []
    assert claim(0).differs({"a": [{"b": 1}]}) == [("", 0.0, 1.0)]


@pytest.mark.parametrize(
    ("figure", "interval", "text"),
    [
        (0.07, False, "0.07"),
        (12345, False, "12,345"),
        (2330000000, False, "2.33 GB"),
        (1300000, False, "1.3 MB"),
        ([5.7, 5.6, 5.8], False, "5.7 (5.6, 5.8)"),
        ([0.72, 0.71, 0.73], True, "0.72 [0.71, 0.73]"),
        ({"1": 118, "10": [1.5, 1, 2]}, False, "1: 118, 10: 1.5 (1, 2)"),
    ],
)
def test_how_a_figure_is_written(figure: claims.Figure, interval: bool, text: str) -> None:
    assert claims.written(figure, interval=interval) == text


def test_a_phrase_takes_the_figure_of_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_figures", lambda: {"m.c": "0.9 [0.8, 1]", "m.d": "5"})
    text = "It\nrose by 0.1\n[0.05, 0.2], to 4. The end."
    assert with_phrases(text, ["rose by {m.c}, to {m.d}. The"]) == (
        "It\nrose by 0.9 [0.8, 1], to 5. The end."
    )
    with pytest.raises(ValueError, match="0 times"):
        with_phrases("It fell.", ["rose by {m.c}"])


def test_phrases_belong_to_generated_pages() -> None:
    assert set(phrases()) <= set(PAGES)


def test_a_claim_has_only_what_claims_have(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(
        "machines: {here: this one}\nmeasured:\n  one:\n    asks: what\n    command: ls\n"
        "    machine: here\n    date: 2026-01-01\n"
        "    claims: {c: {says: this, that, figure: 1}}\n"
    )
    with pytest.raises(ValueError, match=r"one\.c: that is nothing a claim has"):
        measurements(path)


def test_what_a_plan_reckons_with_is_claimed() -> None:
    part = sum(figure(f"part.{step}") for step in ("checksum", "parquet", "names")) / 1000
    assert pytest.approx(costs.PART_READ, rel=0.2) == part / (4096 * 512)
    assert pytest.approx(costs.JUDGED, rel=0.01) == 10**7 / figure("evaluate.seconds")
