"""An evaluation as a person reads it, and as a program does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.judging import Evaluation
from retrieval.evaluation.comparison import Comparison

_CLASSES, _CHANGED = 10, 5  # lines told; --json has all classes, --per-query all queries
_WIDTH = 28  # of a name in a table


def flat(evaluation: Evaluation) -> dict[str, Any]:
    """Give the measures with flat keys, as --json has them; classes and thresholds are lists."""
    values: dict[str, Any] = {}
    for measured in evaluation.measures:
        values[measured.name] = measured.value
        values[measured.name + "_low"] = _number(measured.low)
        values[measured.name + "_high"] = _number(measured.high)
    return {**values, "queries": evaluation.queries, "left_out": evaluation.left_out,
            "notes": list(evaluation.notes)}  # fmt: skip


def flat_tables(evaluation: Evaluation) -> dict[str, Any]:
    """Give what is told by class and by score."""
    classes = []
    for one in evaluation.classes:
        values: dict[str, Any] = {"label": one.label, "queries": one.queries}
        for measured in one.measures:
            values[measured.name] = measured.value
            values[measured.name + "_low"] = _number(measured.low)
            values[measured.name + "_high"] = _number(measured.high)
        classes.append(values)
    thresholds = [
        {name: _number(value) for name, value in vars(one).items()} for one in evaluation.thresholds
    ]
    return {"classes": classes, "thresholds": thresholds}


def _number(value: float) -> float | None:
    """Give what JSON has no word for as null."""
    return None if value != value else value  # noqa: PLR0124 - nan


def lines(evaluation: Evaluation) -> tuple[str, ...]:
    """Give the measures as a person reads them."""
    width = max(6, *(len(m.name) for m in evaluation.measures))
    table = [
        f"{m.name:>{width}} {m.value:.4f}  {interval(m.low, m.high)}  {m.meaning}"
        for m in evaluation.measures
    ]
    counted = f"{evaluation.queries} queries; in brackets: 95 % bootstrap intervals"
    return (*table, counted, *(f"note: {note}" for note in evaluation.notes))


def interval(low: float, high: float, form: str = ".4f") -> str:
    """Write an interval; one query has none."""
    return f"[{low:{form}}, {high:{form}}]" if low == low else "[one query]"  # noqa: PLR0124


def class_lines(evaluation: Evaluation) -> tuple[str, ...]:
    """Give the worst classes."""
    classes = evaluation.classes
    if len(classes) < 2:
        return ()
    head = "by class, worst first" if len(classes) <= _CLASSES else (
        f"by class, the {_CLASSES} worst of {len(classes)} (--json has all)"
    )  # fmt: skip
    found = [f"{head}:"]
    for one in classes[:_CLASSES]:
        told = "  ".join(
            f"{m.name} {m.value:.3f} {interval(m.low, m.high, '.3f')}" for m in one.measures
        )
        found.append(f"  {_short(one.label):<{_WIDTH}} {one.queries:>5}  {told}")
    return tuple(found)


def threshold_lines(evaluation: Evaluation, metric: str) -> tuple[str, ...]:
    """Give the table of precision against score."""
    if not evaluation.thresholds:
        return ()
    farthest = "at most so far" if metric == "l2" else "at least so close"
    table = (
        f"  --min-score {one.score:<10.6g} precision {one.precision:.3f} "
        f"{interval(one.low, one.high, '.3f')}, keeps {one.matches} matches "
        f"({one.kept:.1%}), {one.found:.1%} of the right ones"
        for one in evaluation.thresholds
    )
    return (f"which --min-score ({farthest}) gives which precision, on these matches:", *table)


def comparison_lines(comparison: Comparison, here: str, there: str) -> tuple[str, ...]:
    """Give the paired differences, and the queries that changed most."""
    found = [f"{here} minus {there}, paired over {comparison.queries} queries:"]
    width = max(len(one.name) for one in comparison.differences)
    for one in comparison.differences:
        sure = "" if comparison.queries < 2 or one.low <= 0 <= one.high else "  differs"
        found.append(
            f"  {one.name:>{width}} {one.value:+.4f}  [{one.low:+.4f}, {one.high:+.4f}]{sure}"
        )
    if alone := comparison.only_here + comparison.only_there:
        found.append(f"note: {alone} queries are judged in one of them only, and left out of this")
    if len(comparison.changed):
        found.append(f"{len(comparison.changed)} queries changed, by average precision; most:")
    for row in comparison.changed.slice(0, _CHANGED).to_pylist():
        label = f" ({row['label']})" if row["label"] else ""
        found.append(f"  {row['there']:.3f} to {row['here']:.3f}  {row['query_id']}{label}")
    return tuple(found)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> list[str]:
    """Align the first columns, the names, left and numbers right, each as wide as it must be."""
    lines = [headings, *rows]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(headings))]
    return [
        "  ".join(
            cell.rjust(width) if column >= names else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    ]


def _short(name: str) -> str:
    return name if len(name) <= _WIDTH else name[: _WIDTH - 1] + "…"
