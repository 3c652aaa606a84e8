"""An evaluation as a person reads it, and as a program does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from jobs.evaluation.judge_matches import Evaluation
from retrieval.core.confidence import FEWEST
from retrieval.evaluation.comparison import Comparison
from retrieval.evaluation.results import Measured

_CLASSES, _CHANGED = 10, 5  # lines told; --json has all classes, --per-query all queries
_WIDTH = 28  # of a name in a table


def flat(evaluation: Evaluation) -> dict[str, Any]:
    """Return the measures with flat keys, as --json has them, named as ir-measures does."""
    return {
        **measure_values(evaluation.measures), "queries": evaluation.queries,
        "left_out": evaluation.left_out, "notes": list(evaluation.notes),
    }  # fmt: skip


def measure_values(measures: Iterable[Measured]) -> dict[str, float | None]:
    """Return values and the ends of their intervals by name; null where there is no interval."""
    values: dict[str, float | None] = {}
    for measure in measures:
        values |= {
            measure.name: measure.value, f"{measure.name}_low": known(measure.low),
            f"{measure.name}_high": known(measure.high),
        }  # fmt: skip
    return values


def flat_tables(evaluation: Evaluation) -> dict[str, Any]:
    """Return the measures by class, and precision by score, as --json has them."""
    classes = [
        {"label": each.label, "queries": each.queries, **measure_values(each.measures)}
        for each in evaluation.classes
    ]
    thresholds = [
        {name: known(value) for name, value in vars(each).items()} for each in evaluation.thresholds
    ]
    return {"classes": classes, "thresholds": thresholds}


def known(value: float) -> float | None:
    """Return None, JSON's null, for nan: there is no such figure."""
    return None if math.isnan(value) else value


def lines(evaluation: Evaluation, *, all_measures: bool = False) -> tuple[str, ...]:
    """Format the usual measures, or all, as an aligned table, one line per measure."""
    shown = [measure for measure in evaluation.measures if all_measures or measure.usual]
    rows = [
        (measure.name, f"{measure.value:z.4f}", interval(measure.low, measure.high))
        for measure in shown
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    measures = [
        "  ".join(
            (name.rjust(widths[0]), value, ends.ljust(widths[2]), measure.meaning)
        ) if widths[2] else "  ".join((name.rjust(widths[0]), value, measure.meaning))
        for (name, value, ends), measure in zip(rows, shown, strict=True)
    ]  # fmt: skip
    bracketed = "; in brackets: 95 % intervals" if widths[2] else ""
    rest = len(evaluation.measures) - len(shown)
    further = f"; --all-measures prints {rest} more" if rest else ""
    counted = f"{evaluation.queries} queries{bracketed}{further}"
    return (*measures, counted, *(f"note: {note}" for note in evaluation.notes))


def interval(low: float, high: float, form: str = ".4f") -> str:
    """Format an interval; nothing where there is none. No end is written as -0.0000."""
    sign, places = ("+", form[1:]) if form.startswith("+") else ("", form)
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{low:{sign}z{places}}, {high:{sign}z{places}}]"


def class_lines(evaluation: Evaluation) -> tuple[str, ...]:
    """Format the worst classes."""
    classes = evaluation.classes
    if len(classes) < 2:
        return ()
    head = "by class, worst first" if len(classes) <= _CLASSES else (
        f"by class, the {_CLASSES} worst of {len(classes)} (--json has all)"
    )  # fmt: skip
    found = [f"{head}:"]
    for each in classes[:_CLASSES]:
        figures = "  ".join(
            f"{m.name} {m.value:.3f} {interval(m.low, m.high, '.3f')}".rstrip()
            for m in each.measures
        )
        found.append(f"  {_short(each.label):<{_WIDTH}} {each.queries:>5}  {figures}")
    if any(each.queries < FEWEST for each in classes[:_CLASSES]):
        found.append(f"  (no interval for a class of fewer than {FEWEST} queries)")
    return tuple(found)


def threshold_lines(evaluation: Evaluation, metric: str) -> tuple[str, ...]:
    """Format the table of precision against score."""
    if not evaluation.thresholds:
        return ()
    farthest = "at most so far" if metric == "l2" else "at least so close"
    table = (
        f"  --min-score {one.score:<10.6g} precision {one.precision:.3f} "
        f"{interval(one.low, one.high, '.3f') or '[too few queries]'}, keeps {one.matches} matches "
        f"({one.kept:.1%}), {one.found:.1%} of the right ones"
        for one in evaluation.thresholds
    )
    return (f"which --min-score ({farthest}) gives which precision, on these matches:", *table)


def comparison_lines(
    comparison: Comparison, here: str, there: str, *, all_measures: bool = False
) -> tuple[str, ...]:
    """Format the paired differences, and the queries that changed most."""
    found = [f"{here} minus {there}, paired over {comparison.queries} queries:"]
    shown = [each for each in comparison.differences if all_measures or each.usual]
    width = max(len(each.name) for each in shown)
    for each in shown:
        ends = interval(each.low, each.high, "+.4f")
        differs = "  differs" if ends and not each.low <= 0 <= each.high else ""
        found.append(f"  {each.name:>{width}} {each.value:+z.4f}  {ends}{differs}".rstrip())
    if all(math.isnan(each.low) for each in shown):
        found.append("note: these are too few for an interval, so nothing tells them apart")
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
