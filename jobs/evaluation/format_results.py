"""Format an evaluation as text tables for people and as flat values for --json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from jobs.evaluation.evaluate_matches import Evaluation
from retrieval.core.confidence import MIN_SAMPLE_SIZE
from retrieval.evaluation.comparison import Comparison
from retrieval.evaluation.results import MeasureResult

_MAX_CLASSES, _MAX_CHANGED = 10, 5  # rows printed; --json and --per-query have all
_NAME_WIDTH = 28  # characters


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the measures for --json with flat keys, named as in ir-measures."""
    return {
        **measures_json(evaluation.measures), "queries": evaluation.queries,
        "left_out": evaluation.left_out, "notes": list(evaluation.notes),
    }  # fmt: skip


def measures_json(measures: Iterable[MeasureResult]) -> dict[str, float | None]:
    """Return values and interval ends by measure name; None where there is no interval."""
    values: dict[str, float | None] = {}
    for measure in measures:
        values |= {
            measure.name: measure.value, f"{measure.name}_low": nan_to_none(measure.low),
            f"{measure.name}_high": nan_to_none(measure.high),
        }  # fmt: skip
    return values


def tables_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the measures by class and the score thresholds for --json."""
    classes = [
        {"label": result.label, "queries": result.queries, **measures_json(result.measures)}
        for result in evaluation.classes
    ]
    thresholds = [
        {name: nan_to_none(value) for name, value in vars(threshold).items()}
        for threshold in evaluation.thresholds
    ]
    return {"classes": classes, "thresholds": thresholds}


def nan_to_none(value: float) -> float | None:
    """Return the value, or None (JSON's null) for nan."""
    return None if math.isnan(value) else value


def format_measures(evaluation: Evaluation, *, all_measures: bool = False) -> tuple[str, ...]:
    """Format the default measures, or all, as an aligned table, one line per measure."""
    shown = [measure for measure in evaluation.measures if all_measures or measure.shown_by_default]
    rows = [
        (measure.name, f"{measure.value:z.4f}", format_interval(measure.low, measure.high))
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
    hidden = len(evaluation.measures) - len(shown)
    hint = f"; --all-measures prints {hidden} more" if hidden else ""
    summary = f"{evaluation.queries} queries{bracketed}{hint}"
    return (*measures, summary, *(f"note: {note}" for note in evaluation.notes))


def format_interval(low: float, high: float, form: str = ".4f") -> str:
    """Format an interval as "[low, high]", or as "" for nan; -0.0 is written without its sign.

    `form` is the format of a number, such as ".3f" or "+.4f".
    """
    sign, precision = ("+", form[1:]) if form.startswith("+") else ("", form)
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{low:{sign}z{precision}}, {high:{sign}z{precision}}]"


def format_classes(evaluation: Evaluation) -> tuple[str, ...]:
    """Format the measures of the worst classes, one line per class."""
    classes = evaluation.classes
    if len(classes) < 2:
        return ()
    heading = "by class, worst first" if len(classes) <= _MAX_CLASSES else (
        f"by class, the {_MAX_CLASSES} worst of {len(classes)} (--json has all)"
    )  # fmt: skip
    rows = [f"{heading}:"]
    for result in classes[:_MAX_CLASSES]:
        values = "  ".join(
            f"{m.name} {m.value:.3f} {format_interval(m.low, m.high, '.3f')}".rstrip()
            for m in result.measures
        )
        rows.append(f"  {_short(result.label):<{_NAME_WIDTH}} {result.queries:>5}  {values}")
    if any(result.queries < MIN_SAMPLE_SIZE for result in classes[:_MAX_CLASSES]):
        rows.append(f"  (no interval for a class of fewer than {MIN_SAMPLE_SIZE} queries)")
    return tuple(rows)


def format_thresholds(evaluation: Evaluation, metric: str) -> tuple[str, ...]:
    """Format the score thresholds, one line per precision target."""
    if not evaluation.thresholds:
        return ()
    bound = "upper bound" if metric == "l2" else "lower bound"
    rows = (
        f"  --min-score {threshold.score:<10.6g} precision {threshold.precision:.3f} "
        f"{format_interval(threshold.low, threshold.high, '.3f') or '[too few queries]'}, "
        f"keeps {threshold.matches} matches "
        f"({threshold.kept:.1%}), {threshold.found:.1%} of the right ones"
        for threshold in evaluation.thresholds
    )
    return (
        f"--min-score ({bound}) for each precision, measured on these matches:",
        *rows,
    )


def format_comparison(
    comparison: Comparison, name: str, other_name: str, *, all_measures: bool = False
) -> tuple[str, ...]:
    """Format the paired differences of two rankings, and the queries that changed most."""
    rows = [f"{name} minus {other_name}, paired over {comparison.queries} queries:"]
    shown = [
        difference
        for difference in comparison.differences
        if all_measures or difference.shown_by_default
    ]
    width = max(len(difference.name) for difference in shown)
    for difference in shown:
        ends = format_interval(difference.low, difference.high, "+.4f")
        mark = "  differs" if ends and not difference.low <= 0 <= difference.high else ""
        rows.append(f"  {difference.name:>{width}} {difference.value:+z.4f}  {ends}{mark}".rstrip())
    if all(math.isnan(difference.low) for difference in shown):
        rows.append("note: too few queries for an interval, so no difference is significant")
    if unpaired := comparison.only_first + comparison.only_second:
        rows.append(f"note: {unpaired} queries are judged in only one ranking and not compared")
    if len(comparison.changed):
        rows.append(
            f"{len(comparison.changed)} queries changed in average precision; the most changed:"
        )
    for row in comparison.changed.slice(0, _MAX_CHANGED).to_pylist():
        label = f" ({row['label']})" if row["label"] else ""
        rows.append(f"  {row['there']:.3f} to {row['here']:.3f}  {row['query_id']}{label}")
    return tuple(rows)


def format_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], name_columns: int = 1
) -> list[str]:
    """Format an aligned table: the first `name_columns` columns left-aligned, others right."""
    table_rows = [headings, *rows]
    widths = [max(len(cells[column]) for cells in table_rows) for column in range(len(headings))]
    return [
        "  ".join(
            cell.rjust(width) if column >= name_columns else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table_rows
    ]


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"
