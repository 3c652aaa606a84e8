"""Test that recorded benchmark results are complete, compared with tolerance, and formatted."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.results import (
    Benchmark,
    Result,
    Value,
    benchmarks,
    format_value,
    machines,
    recorded,
)
from retrieval.planning import costs

ROOT = Path(__file__).parents[1]
WITHOUT_RECORD = {"gpu", "import_vectors", "search", "startup"}  # not measured since they changed


@pytest.mark.parametrize("benchmark", benchmarks(), ids=lambda benchmark: benchmark.name)
def test_benchmark_has_command_machine_and_results(
    benchmark: Benchmark,
) -> None:
    arguments = benchmark.command.split()
    if arguments[:2] == ["python", "-m"]:
        assert find_spec(arguments[2]), benchmark.command
    else:
        assert arguments[0] in ("lookalike", "du"), benchmark.command
        assert not benchmark.repeatable(), "only commands that print JSON can be compared"
    assert benchmark.machine in machines()
    assert benchmark.results


def test_all_benchmark_modules_have_a_record() -> None:
    modules = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if re.search(r"^ +write_result\(", path.read_text(), re.MULTILINE)
    }
    prefix = "python -m benchmarks."
    commands = [b.command for b in benchmarks() if b.command.startswith(prefix)]
    assert modules - {c.removeprefix(prefix).split()[0] for c in commands} == WITHOUT_RECORD


def make_result(value: Value, path: str = "a/0/b", tolerance: float = 0.25) -> Result:
    """Return a recorded result."""
    return Result("r", "r", value, path, "", None, tolerance)


def test_value_beyond_its_tolerance_deviates() -> None:
    measured = {"a": [{"b": 4.0}]}
    assert make_result(5.0).deviations(measured) == []
    assert make_result(5.0, tolerance=0.1).deviations(measured) == [("", 5.0, 4.0)]
    assert make_result([5.0, 1.0, 9.0], tolerance=0.1).deviations(measured) == [("", 5.0, 4.0)]


def test_named_values_are_compared_by_name() -> None:
    measured = {"a": [{"b": {"1": [10.0, 9, 11], "2": 20.0}}]}
    assert make_result({"1": 10.0, "2": 40.0}).deviations(measured) == [("2", 40.0, 20.0)]


def test_missing_value_deviates() -> None:
    ((name, old, new),) = make_result(5.0).deviations({"a": []})
    assert (name, old) == ("", 5.0)
    assert math.isnan(new)


def test_recorded_zero_has_no_tolerance() -> None:
    assert make_result(0).deviations({"a": [{"b": 0}]}) == []
    assert make_result(0).deviations({"a": [{"b": 1}]}) == [("", 0.0, 1.0)]


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.07, False, "0.07"),
        (12345, False, "12,345"),
        (2330000000, False, "2.33 GB"),
        (1300000, False, "1.3 MB"),
        ([5.7, 5.6, 5.8], False, "5.7 (5.6, 5.8)"),
        ([0.72, 0.71, 0.73], True, "0.72 [0.71, 0.73]"),
        ({"1": 118, "10": [1.5, 1, 2]}, False, "1: 118; 10: 1.5 (1, 2)"),
    ],
)
def test_values_are_formatted_with_their_spread(value: Value, interval: bool, text: str) -> None:
    assert format_value(value, interval=interval) == text


def test_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.yaml"
    path.write_text(
        "machines: {here: this one}\nbenchmarks:\n  one:\n    measures: x\n    command: ls\n"
        "    machine: here\n    date: 2026-01-01\n"
        "    results: {c: {label: this, that, value: 1}}\n"
    )
    with pytest.raises(ValueError, match=r"one\.c: unknown field that"):
        benchmarks(path)


def test_cost_model_of_plan_agrees_with_recorded_results() -> None:
    part = sum(recorded(f"part.{step}") for step in ("checksum", "parquet", "names")) / 1000
    assert pytest.approx(costs.PART_READ_SECONDS, rel=0.2) == part / (4096 * 512)
    assert pytest.approx(costs.EVALUATION_RATE, rel=0.01) == 10**7 / recorded("evaluate.seconds")
