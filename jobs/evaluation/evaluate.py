"""The `evaluate` command: compute measures with intervals from finished matches and labels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.config.options import parse_comma_list
from jobs.config.settings import EvaluateSettings
from jobs.evaluation.calibrate import (
    calibrate,
    check_calibration_file,
    format_calibration,
    format_open_set,
    format_reliability,
    open_set_json,
)
from jobs.evaluation.evaluate_matches import Evaluation, evaluate_matches, measure_matches
from jobs.evaluation.format_results import (
    evaluation_json,
    format_classes,
    format_comparison,
    format_interval,
    format_measures,
    format_thresholds,
    nan_to_none,
    tables_json,
)
from jobs.evaluation.ground_truth import open_ground_truth
from jobs.runtime.check_output import check_file
from jobs.runtime.result import Result
from retrieval.core.errors import BelowBound, InputError, Mismatch, UsageError
from retrieval.core.records import Certificate
from retrieval.evaluation import measures
from retrieval.evaluation.comparison import compare_results
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.evaluation.results import Results
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder, split_file_url

_MAX_CUTOFFS = 20
_COMPARED_SETTINGS = ("queries", "queries_sha256", "top_k", "filter", "exclude_self", "min_score",
                 "rerank", "calibration", "min_probability")  # fmt: skip
_LOSS_MEASURES = ("top1", "map")


def start(settings: EvaluateSettings) -> Result:
    """Evaluate finished matches; exit code 5 if a measure is below its --fail-below bound."""
    cutoffs = _parse_cutoffs(settings.cutoffs)
    bounds = _parse_bounds(settings.fail_below, cutoffs)
    if settings.per_query is not None and not settings.per_query.endswith((".csv", ".parquet")):
        raise UsageError(
            f"--per-query {settings.per_query}: specify a file that ends with .csv or .parquet"
        )
    if settings.per_query is not None:
        check_file("--per-query", settings.per_query)
    check_calibration_file(settings.calibrate)
    folder = open_folder(settings.matches)
    manifest = finished_output.read_manifest(folder, kind="matches")
    ground_truth = open_ground_truth(folder, manifest, settings)
    evaluation = evaluate_matches(folder, manifest, ground_truth, cutoffs, settings.intervals_over)
    text_lines = [
        *format_measures(evaluation, all_measures=settings.all_measures),
        Certificate(**manifest.counts["certificate"]).sentence(),
        *format_classes(evaluation), *format_thresholds(evaluation, manifest.counts["metric"]),
    ]  # fmt: skip
    values = {**evaluation_json(evaluation), **tables_json(evaluation)}
    for section_values, section_lines in (
        _certainty(evaluation),
        _calibrate(settings, folder, manifest, ground_truth, evaluation.results),
        _compare(settings, evaluation.results, cutoffs),
        _split_loss(settings, folder, evaluation.results, ground_truth, cutoffs),
    ):
        values |= section_values
        text_lines += section_lines
    if settings.per_query is not None:
        _write_per_query(settings.per_query, evaluation.results)
        text_lines.append(f"measures per query: {settings.per_query}")
    missed_bounds = _missed_bounds(evaluation, bounds)
    return Result(
        values, (*text_lines, *missed_bounds), BelowBound.exit_code if missed_bounds else 0
    )


def _parse_cutoffs(text: str) -> list[int]:
    parts = parse_comma_list(text)
    if not parts or not all(part.isdecimal() and 0 < int(part) < 10**6 for part in parts):
        raise UsageError(
            f"--cutoffs {text!r}: use ranks of 1 or more, separated by commas, as in 1,10,100"
        )
    if len(parts) > _MAX_CUTOFFS:
        raise UsageError(f"--cutoffs has {len(parts)} ranks; use at most {_MAX_CUTOFFS}")
    return sorted({int(part) for part in parts})


def _parse_bounds(text: str | None, cutoffs: list[int]) -> dict[str, float]:
    """Parse --fail-below into lower bounds by measure key."""
    bounds = {}
    available = [measures.find_measure(key) for key in measures.measure_keys(cutoffs)]
    keys = {name: measure.key for measure in available for name in (measure.key, measure.name)}
    for part in parse_comma_list(text):
        name, _, bound = (piece.strip() for piece in part.partition("="))
        if (key := keys.get(name)) is None:
            raise UsageError(
                f"--fail-below {part!r}: write MEASURE=BOUND with one of "
                f"{', '.join(measure.key for measure in available)} (--cutoffs adds ranks), or a "
                "printed measure name"
            )
        try:
            bounds[key] = float(bound)
        except ValueError:
            bounds[key] = -1.0
        if not 0 <= bounds[key] <= 1:
            raise UsageError(f"--fail-below {part!r}: write a bound between 0 and 1")
    if text is not None and not bounds:
        raise UsageError(f"--fail-below {text!r}: write MEASURE=BOUND, as map=0.6")
    return bounds


def _missed_bounds(evaluation: Evaluation, bounds: dict[str, float]) -> list[str]:
    return [
        f"{measure.name} {measure.value:.4f} is below {bounds[measure.key]:g}, the bound of "
        "--fail-below"
        for measure in evaluation.measures
        if measure.key in bounds and not measure.value >= bounds[measure.key]
    ]


def _certainty(evaluation: Evaluation) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the reliability of probabilities and open-set measures, for --json and as lines."""
    values: dict[str, Any] = open_set_json(evaluation.open_set)
    text_lines: tuple[str, ...] = ()
    if evaluation.reliability is not None:
        values["reliability"] = evaluation.reliability.to_json()
        text_lines += format_reliability(evaluation.reliability, "on these matches")
    if evaluation.open_set is not None:
        text_lines += format_open_set(evaluation.open_set)
    return values, text_lines


def _calibrate(
    settings: EvaluateSettings, folder: Folder, manifest: Manifest, ground_truth: GroundTruth,
    results: Results,
) -> tuple[dict[str, Any], tuple[str, ...]]:  # fmt: skip
    """Write the file of --calibrate; return its reliability for --json and text lines."""
    if settings.calibrate is None:
        return {}, ()
    calibration = calibrate(
        settings.calibrate, folder, manifest, ground_truth, results, settings.intervals_over
    )
    values = {
        "calibration": settings.calibrate, "lead_weight": calibration.lead_weight,
        "held_out": calibration.held_out.to_json(),
    }  # fmt: skip
    return values, format_calibration(calibration, settings.calibrate)


def _compare(
    settings: EvaluateSettings, results: Results, cutoffs: list[int]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Compare with the matches of --compare; return values for --json and text lines.

    Raises Mismatch if the two rankings have no query in common.
    """
    if settings.compare is None:
        return {}, ()
    other = _other_results(settings.compare, settings, cutoffs)
    comparison = compare_results(results, other, settings.intervals_over)
    if comparison.queries == 0:
        raise Mismatch(
            f"--compare {settings.compare} has none of the queries of {settings.matches}; compare "
            "rankings of the same queries"
        )
    values: dict[str, Any] = {"compared": comparison.queries}
    for difference in comparison.differences:
        values |= {
            f"{difference.name}_diff": difference.value,
            f"{difference.name}_diff_low": nan_to_none(difference.low),
            f"{difference.name}_diff_high": nan_to_none(difference.high),
        }
    values["changed"] = comparison.changed.slice(0, 100).to_pylist()
    return values, format_comparison(
        comparison, settings.matches, settings.compare, all_measures=settings.all_measures
    )


def _other_results(path: str, settings: EvaluateSettings, cutoffs: list[int]) -> Results:
    """Measure the matches of --compare with the same options for the ground truth."""
    folder, manifest = _open_matches(path, "--compare")
    return measure_matches(folder, manifest, open_ground_truth(folder, manifest, settings), cutoffs)


def _open_matches(path: str, option: str) -> tuple[Folder, Manifest]:
    """Open the finished matches that an option names; errors name the option."""
    folder = open_folder(path)
    try:
        return folder, finished_output.read_manifest(folder, kind="matches")
    except (InputError, Mismatch) as error:
        raise type(error)(f"{option}: {error}") from error


def _split_loss(
    settings: EvaluateSettings,
    folder: Folder,
    results: Results,
    ground_truth: GroundTruth,
    cutoffs: list[int],
) -> tuple[dict[str, Any], list[str]]:
    """Split the loss in each measure between the backbone and the approximate index.

    Returns values for --json and text lines. Raises Mismatch if --exact-matches is not the same
    ranking, or not exact.
    """
    if settings.exact_matches is None:
        return {}, []
    exact, manifest = _open_matches(settings.exact_matches, "--exact-matches")
    ann_settings = finished_output.read_settings(folder)
    exact_settings = finished_output.read_settings(exact)
    if different := [
        name for name in _COMPARED_SETTINGS if ann_settings.get(name) != exact_settings.get(name)
    ]:
        raise Mismatch(
            f"--exact-matches {settings.exact_matches} differs from {settings.matches} in "
            f"{', '.join(different)}; "
            "rank the same with --recall exact"
        )
    if manifest.counts["certificate"]["low"] < 1:
        raise Mismatch(
            f"--exact-matches {settings.exact_matches} is not exact; rank again with --recall exact"
        )
    exact_results = measure_matches(exact, manifest, ground_truth, cutoffs)
    comparison = compare_results(exact_results, results, settings.intervals_over)
    values: dict[str, Any] = {}
    text_lines = ["loss (difference to 1) caused by the backbone and by the index:"]
    for difference in comparison.differences:
        name = difference.name
        backbone_loss = 1 - float(exact_results.values(difference.key).mean())
        values |= {
            f"{name}_lost_by_backbone": backbone_loss,
            f"{name}_lost_by_index": difference.value,
        }
        if difference.key in _LOSS_MEASURES:
            ends = format_interval(difference.low, difference.high)
            text_lines.append(
                f"  {name}: {backbone_loss:z.4f} by the backbone, "
                f"{' '.join((f'{difference.value:z.4f}', ends)).rstrip()} by the index"
            )
    return values, text_lines


def _write_per_query(path: str, results: Results) -> None:
    """Write the measures of each query as CSV or Parquet; raise UsageError where that fails."""
    sink = pa.BufferOutputStream()
    if path.endswith(".parquet"):
        pq.write_table(results.queries.combine_chunks(), sink)
    else:
        pa.csv.write_csv(results.queries.combine_chunks(), sink)
    try:
        folder, name = split_file_url(path)
        folder.put(name, sink.getvalue().to_pybytes())
    except OSError as error:
        raise UsageError(
            f"--per-query {path} cannot be written ({error.strerror or error}); choose a writable "
            "file"
        ) from error
