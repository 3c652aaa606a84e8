"""What is published, by which command, and does it still hold?

`claims.yaml` has a *measurement* a command: what it asks, on which machine and day it was run, and
its *claims*. A claim is a sentence, a figure and where that stands in the JSON that the command
prints. A figure is a number, [median, least, greatest], or numbers by name. The tables of README.md
here and the figures in the other pages' *phrases* are made from it (`make docs`), and `make bench`
runs the commands again and compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).with_name("claims.yaml")
_TOLERANCE = 0.25
Figure = float | list[float] | dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A figure that is published. `at` is its place in the JSON, None where no program reads it."""

    name: str
    says: str
    figure: Figure
    at: str | None
    unit: str
    goal: float | None
    tolerance: float  # a share of the (median) figure

    def differs(self, found: Any) -> list[tuple[str, float, float]]:
        """Give the figures that lie beyond the tolerance: name, claimed, found.

        `found` is the whole JSON; a place that is not there counts as NaN.
        """
        assert self.at is not None
        claimed, measured = _leaves(self.figure), _leaves(_at(found, self.at))
        pairs = [(name, value, measured.get(name, float("nan"))) for name, value in claimed.items()]
        return [p for p in pairs if not abs(p[2] - p[1]) <= self.tolerance * abs(p[1])]


@dataclass(frozen=True)
class Measurement:
    """A command, what it asks, and what is claimed by it."""

    name: str
    asks: str
    command: str
    machine: str
    date: str
    quick: bool
    claims: tuple[Claim, ...]
    columns: dict[str, str] = field(default_factory=dict)  # of figures by name: name, heading
    interval: bool = False  # a figure of three is a mean and its interval

    def needs(self) -> list[str]:
        """Give the variables that the command names, such as PHOTOS."""
        return sorted(set(re.findall(r"\$([A-Z_]+)", self.command)))

    def runs(self) -> bool:
        """Tell whether its command can be run and read by a program."""
        return any(claim.at for claim in self.claims)


def measurements(path: Path = PATH) -> list[Measurement]:
    """Read all of them, in their order."""
    told = yaml.safe_load(path.read_text())
    return [_measurement(name, one, told["machines"]) for name, one in told["measured"].items()]


def phrases(path: Path = PATH) -> dict[str, list[str]]:
    """Give, a page, what it says with figures in it: `{measurement.claim}` stands for one."""
    found: dict[str, list[str]] = yaml.safe_load(path.read_text())["phrases"]
    return found


def _measurement(name: str, told: Mapping[str, Any], machines: Mapping[str, str]) -> Measurement:
    for key, one in told["claims"].items():
        if odd := set(one) - {"says", "figure", "at", "unit", "goal", "tolerance"}:
            raise ValueError(f"{name}.{key}: {', '.join(map(str, odd))} is nothing a claim has")
    claims = tuple(
        Claim(
            key, one["says"], one["figure"], one.get("at"), one.get("unit", ""), one.get("goal"),
            one.get("tolerance", told.get("tolerance", _TOLERANCE)),
        )
        for key, one in told["claims"].items()
    )  # fmt: skip
    return Measurement(
        name, told["asks"], told["command"], machines[told["machine"]], str(told["date"]),
        told.get("quick", False), claims, told.get("columns", {}), told.get("spread") == "interval",
    )  # fmt: skip


def _at(found: Any, place: str) -> Any:
    for step in place.split("/"):
        try:
            found = found[int(step) if isinstance(found, list) else step]
        except (KeyError, IndexError, ValueError):
            return None
    return found


def _leaves(figure: Any) -> dict[str, float]:
    """Give the numbers of a figure by name; of a spread its median alone."""
    if isinstance(figure, Mapping):
        deeper = {str(name): _leaves(value) for name, value in figure.items()}
        return {f"{n} {m}".strip(): v for n, part in deeper.items() for m, v in part.items()}
    if isinstance(figure, list):
        return _leaves(figure[0])
    return {} if figure is None else {"": float(figure)}


def written(figure: Figure, *, interval: bool = False) -> str:
    """Write a figure: 5.7; 5.7 (5.6, 5.8), or 0.72 [0.71, 0.73]; 1: 118, 10: 173."""
    if isinstance(figure, dict):
        return ", ".join(f"{n}: {written(v, interval=interval)}" for n, v in figure.items())
    if isinstance(figure, list):
        beside = ", ".join(map(_number, figure[1:]))
        return (
            f"{_number(figure[0])} [{beside}]" if interval else f"{_number(figure[0])} ({beside})"
        )
    return _number(figure)


def _number(value: float) -> str:
    """Write 12,345 and 0.07; counts of bytes, which are large, as 1.21 GB and 1.3 MB."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} GB"
    if value >= 1e6:
        return f"{value / 1e6:.3g} MB"
    return f"{value:,}" if value >= 1000 else f"{value:g}"


def table(measurement: Measurement) -> str:
    """Draw the claims of a measurement, with its command, machine and day."""
    goals = any(claim.goal is not None for claim in measurement.claims)
    heads = list(measurement.columns.values()) or ["figure"]
    lines = [
        f"### {measurement.name}",
        "",
        f"{measurement.asks} `{measurement.command}`; {measurement.machine}; {measurement.date}.",
        "",
        f"| what | {' | '.join(heads)} |" + " asked |" * goals,
        "|---|" + "---|" * (len(heads) + goals),
    ]
    for claim in measurement.claims:
        cells = [claim.says, *_cells(measurement, claim)]
        if goals:
            cells.append("" if claim.goal is None else _number(claim.goal))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(measurement: Measurement, claim: Claim) -> list[str]:
    unit = f" {claim.unit}" if claim.unit else ""
    if measurement.columns and isinstance(claim.figure, dict):
        values = [claim.figure.get(name) for name in measurement.columns]
        return ["" if v is None else written(v, interval=measurement.interval) for v in values]
    only = written(claim.figure, interval=measurement.interval) + unit
    return [only, *[""] * (max(1, len(measurement.columns)) - 1)]


def with_tables(text: str) -> str:
    """Put the tables where a page asks for them: between `<!-- claims: NAME -->` and `end`."""
    known = {one.name: one for one in measurements()}
    return re.sub(
        r"(<!-- claims: ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + table(known[found[2]]) + found[3],
        text,
        flags=re.DOTALL,
    )


def with_phrases(text: str, said: list[str]) -> str:
    """Put the figures into a page's phrases, each of which must stand there once."""
    for phrase in said:
        found = list(_pattern(phrase).finditer(text))
        if len(found) != 1:
            raise ValueError(f"this phrase stands there {len(found)} times: {phrase}")
        text = text[: found[0].start()] + _filled(phrase, found[0]) + text[found[0].end() :]
    return text


def figure(name: str) -> float:
    """Give a claimed number: `measurement.claim`, or `….name`; of a spread its median."""
    value = _known()[name][0]
    return float(value[0] if isinstance(value, list) else value)  # type: ignore[arg-type]


def _figures() -> dict[str, str]:
    return {name: written(value, interval=spread) for name, (value, spread) in _known().items()}


def _known() -> dict[str, tuple[Figure, bool]]:
    """Give each figure by `measurement.claim` and `….name`, and whether it has an interval."""
    found: dict[str, tuple[Figure, bool]] = {}
    for one in measurements():
        for claim in one.claims:
            name = f"{one.name}.{claim.name}"
            found[name] = claim.figure, one.interval
            if isinstance(claim.figure, dict):
                found |= {f"{name}.{n}": (v, one.interval) for n, v in claim.figure.items()}
    return found


_FIGURE = r"([-+]?[\d.,]*\d(?:\s(?:\([-+\d.,\s]+\)|\[[-+\d.,\s]+\]))?)"
_PLACE = re.compile(r"\{([\w-]+\.[\w-]+(?:\.[\w-]+)?)\}")


def _parts(phrase: str) -> Iterator[tuple[str, bool]]:
    """Give a phrase's parts: texts, and names of claims (True)."""
    for number, part in enumerate(_PLACE.split(phrase)):
        yield part, number % 2 == 1


def _pattern(phrase: str) -> re.Pattern[str]:
    """Find a phrase, whatever its figures and wherever its lines break."""
    parts = [
        _FIGURE if is_claim else r"\s+".join(map(re.escape, part.split(" ")))
        for part, is_claim in _parts(phrase)
    ]
    return re.compile("".join(parts))


def _filled(phrase: str, found: re.Match[str]) -> str:
    """Give the phrase as the page breaks it, with the figures of its claims."""
    known = _figures()
    names = _PLACE.findall(phrase)
    text, offset = found[0], found.start()
    for number in reversed(range(len(names))):
        first, last = (place - offset for place in found.span(number + 1))
        text = text[:first] + known[names[number]] + text[last:]
    return text
