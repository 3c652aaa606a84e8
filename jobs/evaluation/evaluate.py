"""lookalike evaluate: matches and labels to measures with intervals."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.config.settings import EvaluateSettings
from jobs.evaluation.format_results import (
    class_lines,
    comparison_lines,
    flat,
    flat_tables,
    interval,
    known,
    lines,
    threshold_lines,
)
from jobs.evaluation.ground_truth import open_truth
from jobs.evaluation.judge_matches import Evaluation, evaluate, judged_results
from jobs.runtime.check_output import check_file
from jobs.runtime.result import Result
from retrieval.core.errors import BelowBound, InputError, Mismatch, UsageError
from retrieval.core.records import Certificate
from retrieval.evaluation import measures
from retrieval.evaluation.comparison import compare
from retrieval.evaluation.ground_truth import Truth
from retrieval.evaluation.results import Results
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, file_at, open_folder

_MOST_CUTS = 20
_SAME_RANKING = ("queries", "queries_sha256", "top_k", "filter", "exclude_self", "min_score",
                 "expand_queries")  # fmt: skip
_LOSSES = ("top1", "map")


def start(settings: EvaluateSettings) -> Result:
    """Evaluate matches and say what they are worth; exit 5 below a bound that was asked for."""
    cuts = _cuts(settings.cutoffs)
    bounds = _bounds(settings.fail_below, cuts)
    if settings.per_query is not None and not settings.per_query.endswith((".csv", ".parquet")):
        raise UsageError(
            f"--per-query {settings.per_query}: name a file that ends with .csv or .parquet"
        )
    if settings.per_query is not None:
        check_file("--per-query", settings.per_query)
    folder = open_folder(settings.matches)
    manifest = finished_output.read_manifest(folder, kind="matches")
    truth = open_truth(folder, manifest, settings)
    evaluation = evaluate(folder, manifest, truth, cuts, settings.intervals_over)
    said = [
        *lines(evaluation, all_measures=settings.all_measures),
        Certificate(**manifest.counts["certificate"]).sentence(),
        *class_lines(evaluation), *threshold_lines(evaluation, manifest.counts["metric"]),
    ]  # fmt: skip
    values = {**flat(evaluation), **flat_tables(evaluation)}
    for more, told in (
        _compared(settings, evaluation.results, cuts),
        _split(settings, folder, evaluation.results, truth, cuts),
    ):
        values |= more
        said += told
    if settings.per_query is not None:
        _put_queries(settings.per_query, evaluation.results)
        said.append(f"a line a query: {settings.per_query}")
    below = _below(evaluation, bounds)
    return Result(values, (*said, *below), BelowBound.exit_code if below else 0)


def _cuts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 0 < int(part) < 10**6 for part in parts):
        raise UsageError(f"--cutoffs {text!r}: write ranks from 1 on, as 1,10,100")
    if len(parts) > _MOST_CUTS:
        raise UsageError(f"--cutoffs names {len(parts)} ranks; name at most {_MOST_CUTS}")
    return sorted({int(part) for part in parts})


def _bounds(text: str | None, cuts: list[int]) -> dict[str, float]:
    """Read what --fail-below asks for: bounds by the key of their measure."""
    bounds = {}
    measured = [measures.measure_of(key) for key in measures.keys(cuts)]
    keys = {text: each.key for each in measured for text in (each.key, each.name)}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, bound = (piece.strip() for piece in part.partition("="))
        if (key := keys.get(name)) is None:
            raise UsageError(
                f"--fail-below {part.strip()!r}: write MEASURE=BOUND with one of "
                f"{', '.join(each.key for each in measured)} (--cutoffs adds ranks), or the name "
                "that is printed"
            )
        try:
            bounds[key] = float(bound)
        except ValueError:
            bounds[key] = -1.0
        if not 0 <= bounds[key] <= 1:
            raise UsageError(f"--fail-below {part.strip()!r}: write a bound between 0 and 1")
    if text is not None and not bounds:
        raise UsageError(f"--fail-below {text!r}: write MEASURE=BOUND, as map=0.6")
    return bounds


def _below(evaluation: Evaluation, bounds: dict[str, float]) -> list[str]:
    return [
        f"{each.name} {each.value:.4f} is below {bounds[each.key]:g}, which --fail-below asks for"
        for each in evaluation.measures
        if each.key in bounds and not each.value >= bounds[each.key]
    ]


def _compared(
    settings: EvaluateSettings, results: Results, cuts: list[int]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Compare with other matches of the same queries."""
    if settings.compare is None:
        return {}, ()
    other = _other_results(settings.compare, settings, cuts)
    comparison = compare(results, other, settings.intervals_over)
    if comparison.queries == 0:
        raise Mismatch(
            f"--compare {settings.compare} has none of the queries of {settings.matches}; compare "
            "rankings of the same queries"
        )
    values: dict[str, Any] = {"compared": comparison.queries}
    for each in comparison.differences:
        values |= {
            f"{each.name}_diff": each.value, f"{each.name}_diff_low": known(each.low),
            f"{each.name}_diff_high": known(each.high),
        }  # fmt: skip
    values["changed"] = comparison.changed.slice(0, 100).to_pylist()
    return values, comparison_lines(
        comparison, settings.matches, settings.compare, all_measures=settings.all_measures
    )


def _other_results(path: str, settings: EvaluateSettings, cuts: list[int]) -> Results:
    """Judge other matches by the same labels."""
    folder, manifest = _opened(path, "--compare")
    return judged_results(folder, manifest, open_truth(folder, manifest, settings), cuts)


def _opened(path: str, option: str) -> tuple[Folder, Manifest]:
    """Open the matches that an option names."""
    folder = open_folder(path)
    try:
        return folder, finished_output.read_manifest(folder, kind="matches")
    except (InputError, Mismatch) as error:
        raise type(error)(f"{option}: {error}") from error


def _split(
    settings: EvaluateSettings, folder: Folder, results: Results, truth: Truth, cuts: list[int]
) -> tuple[dict[str, Any], list[str]]:
    """Split what is lost between the backbone, which ranks so, and the index, which misses some."""
    if settings.exact is None:
        return {}, []
    exact, manifest = _opened(settings.exact, "--exact")
    ours, theirs = finished_output.read_settings(folder), finished_output.read_settings(exact)
    if different := [name for name in _SAME_RANKING if ours[name] != theirs[name]]:
        raise Mismatch(
            f"--exact {settings.exact} differs from {settings.matches} in {', '.join(different)}; "
            "rank the same with --recall exact"
        )
    if manifest.counts["certificate"]["low"] < 1:
        raise Mismatch(f"--exact {settings.exact} is not exact; rank again with --recall exact")
    best = judged_results(exact, manifest, truth, cuts)
    comparison = compare(best, results, settings.intervals_over)
    values: dict[str, Any] = {}
    said = ["what is lost (1 is perfect), by whom:"]
    for missed in comparison.differences:
        name, lost = missed.name, 1 - float(best.values(missed.key).mean())
        values |= {f"{name}_lost_by_backbone": lost, f"{name}_lost_by_index": missed.value}
        if missed.key in _LOSSES:
            ends = interval(missed.low, missed.high)
            said.append(
                f"  {name}: {lost:z.4f} by the backbone, "
                f"{' '.join((f'{missed.value:z.4f}', ends)).rstrip()} by the index"
            )
    return values, said


def _put_queries(path: str, results: Results) -> None:
    """Write a line a query."""
    sink = pa.BufferOutputStream()
    if path.endswith(".parquet"):
        pq.write_table(results.queries.combine_chunks(), sink)
    else:
        pa.csv.write_csv(results.queries.combine_chunks(), sink)
    try:
        folder, name = file_at(path)
        folder.put(name, sink.getvalue().to_pybytes())
    except OSError as error:
        raise UsageError(
            f"--per-query {path} cannot be written ({error.strerror or error}); name a file that "
            "can"
        ) from error
