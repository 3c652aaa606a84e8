"""Read the recorded results of the benchmarks and format them for benchmarks/README.md.

`results.yaml` has an entry per benchmark: what it measures, its command, machine, date and results.
`make docs` writes the table, `make bench` runs the commands again and compares, and the cost model
in `benchmarks/scale.py` takes its rates from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).with_name("results.yaml")
_TOLERANCE = 0.25
Value = float | list[float] | dict[str, Any]
"""A number; [median, minimum, maximum] or [mean, low, high]; or these by name."""


@dataclass(frozen=True)
class Result:
    """A recorded value of a benchmark."""

    name: str
    label: str
    value: Value
    at: str | None  # path of the value in the benchmark's JSON; None if entered by hand
    unit: str
    target: float | None
    tolerance: float  # accepted relative deviation of a repeated measurement

    def deviations(self, measured: Any) -> list[tuple[str, float, float]]:
        """Return what deviates from the record by more than the tolerance.

        Args:
            measured: the whole JSON of a repeated measurement.

        Returns:
            Name, recorded number and measured number (NaN if absent) of each deviation.
        """
        assert self.at is not None
        recorded, repeated = _numbers(self.value), _numbers(_lookup(measured, self.at))
        pairs = [(name, old, repeated.get(name, float("nan"))) for name, old in recorded.items()]
        return [p for p in pairs if not abs(p[2] - p[1]) <= self.tolerance * abs(p[1])]


@dataclass(frozen=True)
class Benchmark:
    """A command, what it measures, where and when it was run, and its results."""

    name: str
    measures: str
    command: str
    machine: str
    date: str
    quick: bool  # part of `make bench-quick`
    results: tuple[Result, ...]
    columns: dict[str, str]  # names within a value, and how the table calls them
    interval: bool  # values of three numbers are a mean and its interval

    def variables(self) -> list[str]:
        """Return the environment variables that the command needs, such as PHOTOS."""
        return sorted(set(re.findall(r"\$([A-Z_]+)", self.command)))

    def repeatable(self) -> bool:
        """Return whether `python -m benchmarks` can run the command and read its results."""
        return any(result.at for result in self.results)


def machines(path: Path = PATH) -> dict[str, str]:
    """Return a description of each machine by its short name."""
    return {name: str(text) for name, text in yaml.safe_load(path.read_text())["machines"].items()}


def benchmarks(path: Path = PATH) -> list[Benchmark]:
    """Return all benchmarks with their recorded results, in file order."""
    entries = yaml.safe_load(path.read_text())["benchmarks"]
    return [_benchmark(name, entry) for name, entry in entries.items()]


def _benchmark(name: str, entry: Mapping[str, Any]) -> Benchmark:
    for key, fields in entry["results"].items():
        if unknown := set(fields) - {"label", "value", "at", "unit", "target", "tolerance"}:
            raise ValueError(f"{name}.{key}: unknown field {', '.join(sorted(unknown))}")
    results = tuple(
        Result(
            key, fields["label"], fields["value"], fields.get("at"), fields.get("unit", ""),
            fields.get("target"), fields.get("tolerance", entry.get("tolerance", _TOLERANCE)),
        )
        for key, fields in entry["results"].items()
    )  # fmt: skip
    return Benchmark(
        name, entry["measures"], entry["command"], entry["machine"], str(entry["date"]),
        entry.get("quick", False), results, entry.get("columns", {}), entry.get("interval", False),
    )  # fmt: skip


def _lookup(data: Any, path: str) -> Any:
    """Return the value at a path such as `sizes/0/seconds`, or None if it is absent."""
    for step in path.split("/"):
        try:
            data = data[int(step) if isinstance(data, list) else step]
        except (KeyError, IndexError, ValueError):
            return None
    return data


def _numbers(value: Any) -> dict[str, float]:
    """Return the numbers of a value by name; of a list its first, the median or mean."""
    if isinstance(value, Mapping):
        nested = {str(name): _numbers(part) for name, part in value.items()}
        return {f"{n} {m}".strip(): v for n, part in nested.items() for m, v in part.items()}
    if isinstance(value, list):
        return _numbers(value[0])
    return {} if value is None else {"": float(value)}


def recorded(name: str) -> float:
    """Return a recorded number, the median or mean if it has a spread.

    Args:
        name: `benchmark.result`, or `benchmark.result.name` for a value by name.
    """
    return _recorded_numbers()[name]


@cache
def _recorded_numbers() -> dict[str, float]:
    return {
        f"{benchmark.name}.{result.name}.{name}".rstrip("."): number
        for benchmark in benchmarks()
        for result in benchmark.results
        for name, number in _numbers(result.value).items()
    }


def format_value(
    value: Value, *, interval: bool = False, columns: Mapping[str, str] | None = None
) -> str:
    """Format a value: 5.7; 5.7 (5.6, 5.8); 0.72 [0.71, 0.73]; 1: 118, 10: 173."""
    if isinstance(value, dict):
        names = columns or {}
        parts = ((names.get(n, n), format_value(v, interval=interval)) for n, v in value.items())
        return "; ".join(f"{name}: {text}" for name, text in parts)
    if isinstance(value, list):
        spread = ", ".join(map(_format_number, value[1:]))
        return f"{_format_number(value[0])} " + (f"[{spread}]" if interval else f"({spread})")
    return _format_number(value)


def _format_number(value: float) -> str:
    """Format 12,345 and 0.07; byte counts, which are large, as 1.21 GB and 1.3 MB."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} GB"
    if value >= 1e6:
        return f"{value / 1e6:.3g} MB"
    return f"{value:,}" if value >= 1000 else f"{value:g}"


def format_table() -> str:
    """Return all results as one Markdown table."""
    rows = ["| benchmark | result | value | target |", "|---|---|---|---|"]
    for benchmark in benchmarks():
        for number, result in enumerate(benchmark.results):
            name = benchmark.name if number == 0 else ""
            value = format_value(
                result.value, interval=benchmark.interval, columns=benchmark.columns
            )
            unit = f" {result.unit}" if result.unit else ""
            target = "" if result.target is None else _format_number(result.target)
            rows.append(f"| {name} | {result.label} | {value}{unit} | {target} |")
    return "\n".join(rows) + "\n"


def format_descriptions() -> str:
    """Return what each benchmark measures, its command, machine and date, and the machines."""
    rows = ["| benchmark | measures | command | machine | date |", "|---|---|---|---|---|"]
    rows += [
        f"| {b.name} | {b.measures} | `{b.command}` | {b.machine} | {b.date} |"
        for b in benchmarks()
    ]
    rows += ["", "| machine | |", "|---|---|"]
    rows += [f"| {name} | {text} |" for name, text in machines().items()]
    return "\n".join(rows) + "\n"
