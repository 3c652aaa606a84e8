"""Calibrations of `evaluate --calibrate`, and the reliability of probabilities as text and JSON."""

from __future__ import annotations

from typing import Any

from jobs.evaluation.format_results import format_interval, format_table, nan_to_none
from jobs.evaluation.labelled_matches import matches_scoring, read_labelled_matches
from jobs.runtime.check_output import check_file
from retrieval.core.errors import UsageError
from retrieval.evaluation.calibration import FEW_QUERIES, FOLDS, Calibration, fit_calibration
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.evaluation.open_set import OpenSetResult
from retrieval.evaluation.reliability import Reliability
from retrieval.evaluation.results import IntervalUnit, Results
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, split_file_url


def check_calibration_file(path: str | None) -> None:
    """Raise UsageError unless a calibration can be written to `path`; None is none."""
    if path is None:
        return
    if not path.endswith(".json"):
        raise UsageError(f"--calibrate {path}: specify a file that ends with .json")
    check_file("--calibrate", path)


def calibrate(
    path: str,
    folder: Folder,
    manifest: Manifest,
    ground_truth: GroundTruth,
    results: Results,
    grouped_by: IntervalUnit,
) -> Calibration:
    """Learn a calibration from finished matches and write it to `path`.

    Raises UsageError if the matches were cut by probability or score, or the file cannot be
    written, and InputError for too few labelled queries.
    """
    job = finished_output.read_settings(folder)
    for option in ("min_probability", "min_score"):
        if job.get(option) is not None:
            raise UsageError(
                f"--calibrate: {folder.uri()} was made with --{option.replace('_', '-')}, so its "
                "unlikely matches are missing; rank without it"
            )
    matches = read_labelled_matches(folder, manifest, ground_truth, results)
    calibration = fit_calibration(matches, matches_scoring(folder), grouped_by)
    try:
        target, name = split_file_url(path)
        target.put(name, calibration.to_json())
    except OSError as error:
        raise UsageError(
            f"--calibrate {path} cannot be written ({error.strerror or error}); choose a writable "
            "file"
        ) from error
    return calibration


def format_calibration(calibration: Calibration, path: str) -> tuple[str, ...]:
    """Format a calibration and its reliability on held-out folds as lines of text."""
    held_out = calibration.held_out
    unit = "query" if calibration.grouped_by == "queries" else "class"
    lines = [
        f"calibration: {path}, from {held_out.matches} matches of {held_out.queries} queries, "
        f"{_evidence(calibration)}",
        *format_reliability(held_out, f"held out in {FOLDS} folds by {unit}"),
    ]
    if held_out.queries < FEW_QUERIES:
        lines.append(
            f"note: {held_out.queries} labelled queries are few for a calibration; with "
            f"{FEW_QUERIES} or more its probabilities are more certain"
        )
    return tuple(lines)


def format_reliability(reliability: Reliability, title: str) -> tuple[str, ...]:
    """Format how far probabilities agree with what is right, with the reliability curve."""
    rows = [
        (f"{each.predicted:.3f}", f"{each.right:.3f}", _ends(each.low, each.high),
         f"{each.matches}")
        for each in reliability.bins
    ]  # fmt: skip
    table = format_table(("probability", "right", "95 % interval", "matches"), rows, 0)
    brier = f"{reliability.brier:.4f} {_ends(reliability.low, reliability.high)}".rstrip()
    return (
        f"probabilities, {title}:",
        f"  all matches: Brier score {brier} (a constant: {reliability.constant_brier:.4f}), "
        "expected calibration error "
        f"{reliability.calibration_error:.4f} (by chance: {reliability.chance_error:.4f})",
        f"  first matches: Brier score {reliability.first_brier:.4f}, expected calibration error "
        f"{reliability.first_calibration_error:.4f} (by chance: "
        f"{reliability.first_chance_error:.4f})",
        *(f"  {line}" for line in table),
    )


def format_open_set(result: OpenSetResult) -> tuple[str, ...]:
    """Format the open-set measures, one line each."""
    return (
        f"open set: {result.known} known queries, {result.unknown} unknown (no right match in the "
        "gallery)",
        f"  AUROC {result.auroc:.4f}  known queries have more evidence than unknown ones",
        *(
            f"  {each.name} {each.identified:.4f} {format_interval(each.low, each.high)}  known "
            f"queries identified where {each.false_positives:.1%} of the unknown get a match "
            f"(evidence at least {each.threshold:.4g})"
            for each in result.identifications
        ),
    )


def open_set_json(result: OpenSetResult | None) -> dict[str, Any]:
    """Return the open-set measures for --json, flat; empty for None."""
    if result is None:
        return {}
    values: dict[str, Any] = {
        "known": result.known, "unknown": result.unknown, "AUROC": result.auroc,
    }  # fmt: skip
    for each in result.identifications:
        values |= {
            each.name: each.identified, f"{each.name}_low": nan_to_none(each.low),
            f"{each.name}_high": nan_to_none(each.high),
            f"{each.name}_threshold": each.threshold,
        }  # fmt: skip
    return values


def _evidence(calibration: Calibration) -> str:
    """Describe what the probability is a function of."""
    if calibration.lead_weight == 0:
        return "by the score alone"
    return (
        f"by score + {calibration.lead_weight:g} x lead at temperature "
        f"{calibration.temperature:.3g}"
    )


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else format_interval(low, high, ".3f")
