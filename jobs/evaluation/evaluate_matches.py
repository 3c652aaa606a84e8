"""Evaluate finished matches, reading them part by part.

The result, an `Evaluation`, holds the measures, the measures by class, the score thresholds, and
notes that must be shown beside them. `evaluate`, `run`, `report` and `demo` use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.settings import RelevanceOptions
from jobs.evaluation.ground_truth import open_ground_truth, stream_tables
from jobs.evaluation.labelled_matches import measure_unknown_queries, read_labelled_matches
from retrieval.core.confidence import MIN_SAMPLE_SIZE
from retrieval.core.errors import InputError, Mismatch
from retrieval.evaluation import measures
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.open_set import OpenSetResult
from retrieval.evaluation.qrels import Qrels
from retrieval.evaluation.relevance import RankingRelevance, grade_rankings, grade_unanswered
from retrieval.evaluation.reliability import Reliability, measure_reliability
from retrieval.evaluation.results import (
    ClassResult,
    IntervalUnit,
    MeasureResult,
    Results,
    measure_rankings,
    summarize,
    summarize_by_class,
)
from retrieval.evaluation.thresholds import Threshold, find_thresholds
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

_COLUMNS = ["query_id", "rank", "image_id", "score", "query_label", "label"]
_NAMED_CLASSES = 3  # in a note or error


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a ranking; `notes` are sentences that must be shown with the measures."""

    results: Results
    measures: tuple[MeasureResult, ...]
    classes: tuple[ClassResult, ...]
    thresholds: tuple[Threshold, ...]
    notes: tuple[str, ...]
    reliability: Reliability | None = None  # of the probabilities of the matches
    open_set: OpenSetResult | None = None  # where some queries have no right match in the gallery

    @property
    def queries(self) -> int:
        """Return the number of judged queries."""
        return len(self.results.queries)

    @property
    def left_out(self) -> int:
        """Return the number of queries without ground truth."""
        return self.results.left_out


def evaluate_matches(
    folder: Folder, manifest: Manifest, ground_truth: GroundTruth, cutoffs: Sequence[int] = (10,),
    over: IntervalUnit = "queries",
) -> Evaluation:  # fmt: skip
    """Evaluate finished matches.

    Args:
        folder: The matches.
        manifest: Their manifest.
        ground_truth: Relevance of the images.
        cutoffs: Ranks k of P@k and other measures.
        over: Population of the intervals: "queries" or "classes".

    Raises:
        InputError: If no query has a relevance grade.
        Mismatch: If qrels have no query in common with the matches.
    """
    results = measure_matches(folder, manifest, ground_truth, cutoffs)
    reliability, open_set = _measure_certainty(folder, manifest, ground_truth, results)
    return Evaluation(
        results,
        summarize(results, over),
        summarize_by_class(results),
        find_thresholds(results.scored, manifest.counts["metric"]),
        (*_notes(folder, manifest, ground_truth, results), *_interval_notes(results, over)),
        reliability, open_set,
    )  # fmt: skip


def _measure_certainty(
    folder: Folder, manifest: Manifest, ground_truth: GroundTruth, results: Results
) -> tuple[Reliability | None, OpenSetResult | None]:
    """Measure the probabilities of matches, and known against unknown queries, where there are any.

    The matches are read a second time for it.
    """
    has_probability = finished_output.read_settings(folder).get("calibration") is not None
    has_unknown = bool((results.queries["relevant"].to_numpy() == 0).any())
    if not has_probability and not has_unknown:
        return None, None
    matches = read_labelled_matches(folder, manifest, ground_truth, results)
    reliability = None
    if has_probability and matches.graded.any():
        graded = matches.graded
        reliability = measure_reliability(
            matches.probabilities[graded], matches.right[graded], matches.queries[graded],
            matches.ranks[graded],
        )  # fmt: skip
    return reliability, measure_unknown_queries(matches, results)


def evaluate_by_labels(
    folder: Folder, manifest: Manifest, over: IntervalUnit = "queries"
) -> tuple[Evaluation | None, tuple[str, ...]]:
    """Evaluate by the labels in the matches; return None and the reason if there are none."""
    try:
        return evaluate_matches(
            folder, manifest, open_ground_truth(folder, manifest, RelevanceOptions()), over=over
        ), ()
    except InputError as error:
        return None, (f"not evaluated: {error}",)


def measure_matches(
    folder: Folder, manifest: Manifest, ground_truth: GroundTruth, cutoffs: Sequence[int]
) -> Results:
    """Measure all queries: with matches, failed, and those that are in the qrels only.

    Raises as `evaluate_matches` does.
    """
    ranked_ids: list[pa.Array] = []

    def parts() -> Iterator[RankingRelevance]:
        for table in stream_tables(folder, manifest, "matches/", _COLUMNS):
            ranked_ids.append(pc.unique(table["query_id"]))
            yield grade_rankings(table, ground_truth, folder.uri())
        for table in stream_tables(folder, manifest, "failures/", ["image_id", "label"]):
            failed = table.rename_columns(["query_id", "query_label"])
            ranked_ids.append(failed["query_id"].combine_chunks())
            yield grade_unanswered(failed, ground_truth)
        if isinstance(ground_truth, Qrels):
            all_ids = pa.chunked_array([pa.array([], pa.string()), *ranked_ids])
            yield grade_unanswered(_qrels_only_queries(ground_truth, all_ids), ground_truth)

    results = measure_rankings(parts(), measures.measure_keys(cutoffs))
    _refuse_unrelated(
        folder, ground_truth, results, pa.chunked_array([pa.array([], pa.string()), *ranked_ids])
    )
    return results


def _qrels_only_queries(ground_truth: Qrels, ranked_ids: pa.ChunkedArray) -> pa.Table:
    """Return the queries of the qrels that the ranking does not contain."""
    queries = ground_truth.judged_queries()
    missing = queries.filter(pc.invert(pc.is_in(queries, value_set=ranked_ids)))
    return pa.table({"query_id": missing, "query_label": pa.nulls(len(missing), pa.string())})


def _refuse_unrelated(
    folder: Folder, ground_truth: GroundTruth, results: Results, ranked_ids: pa.ChunkedArray
) -> None:
    """Raise if ground truth and matches have no query or label in common."""
    first = repr(ranked_ids[0].as_py()) if len(ranked_ids) else "none"
    if isinstance(ground_truth, Qrels):
        judged_ids = ground_truth.judged_queries()
        if not pc.any(pc.is_in(judged_ids, value_set=ranked_ids)).as_py():
            raise Mismatch(
                f"--qrels contains none of the queries of {folder.uri()} (its first is "
                f"{judged_ids[0].as_py()!r}, theirs {first}); use qrels of the same queries, "
                "with ids as --format trec writes them"
            )
        return
    if len(results.queries) == 0:
        hint = "; specify a labels file with --labels"
        if isinstance(ground_truth, Labels) and ground_truth.query_labels is not None:
            names = ground_truth.query_labels["image_id"]
            hint = (
                f": --labels contains other ids (its first is "
                f"{names[0].as_py() if len(names) else 'none'!r}, theirs {first})"
            )
        raise InputError(
            f"no query of {folder.uri()} has a label, so nothing can be evaluated{hint}"
        )
    if not results.queries["relevant"].to_numpy().any():
        names = pc.unique(results.queries["label"]).slice(0, _NAMED_CLASSES).to_pylist()
        raise InputError(
            f"no image of the gallery of {folder.uri()} has the label of any query "
            f"({', '.join(names)}); use the same labels for queries and gallery"
        )


def _notes(
    folder: Folder, manifest: Manifest, ground_truth: GroundTruth, results: Results
) -> tuple[str, ...]:
    relevant, match_counts = (results.queries[n].to_numpy() for n in ("relevant", "matches"))
    top_k = int(finished_output.read_settings(folder)["top_k"])
    notes = []
    if results.left_out:
        reason = (
            "without a relevant image in --qrels"
            if isinstance(ground_truth, Qrels)
            else "without label"
        )
        notes.append(f"{results.left_out} queries {reason} are left out")
    if unanswered := int((match_counts == 0).sum()):
        notes.append(f"{unanswered} queries without an answer count as wrong")
    if results.junk:
        notes.append(f"{results.junk} matches were ignored as junk")
    if unmatchable := results.queries.filter(pa.array(relevant == 0)):
        notes.append(_unmatchable(unmatchable))
    if isinstance(ground_truth, Labels):
        labelled = pc.sum(ground_truth.gallery["images"]).as_py() or 0
        unlabelled = int(manifest.counts["gallery"]) - labelled
        if unlabelled > 0 and not _filtered(folder):
            notes.append(f"{unlabelled} gallery images without label count as wrong")
    elif not results.scored["right"].to_numpy().any():
        notes.append(
            "no match is among the images that --qrels grades as relevant; check that "
            "it is for this gallery"
        )
    max_map = float(np.mean(np.minimum(relevant, top_k) / np.maximum(relevant, 1)))
    if max_map < 0.995 and len(unmatchable) < len(relevant):
        notes.append(
            f"with --top-k {top_k} and {relevant.mean():.4g} relevant images per query on average, "
            f"mAP can be {max_map:.3f} at most"
        )
    return tuple(notes)


def _interval_notes(results: Results, over: IntervalUnit) -> Iterator[str]:
    """Yield notes on the population of the intervals and on missing intervals."""
    count = len(results.queries) if over == "queries" else len(pc.unique(results.queries["label"]))
    if over == "classes":
        yield f"intervals are about further classes like these {count}, not about further queries"
    if count < MIN_SAMPLE_SIZE:
        yield f"{count} {over} are too few for an interval, which needs at least {MIN_SAMPLE_SIZE}"


def _filtered(folder: Folder) -> bool:
    return finished_output.read_settings(folder)["filter"] is not None


def _unmatchable(queries: pa.Table) -> str:
    """Return the note on queries without a relevant gallery image."""
    names = pc.unique(queries["label"]).to_pylist()
    suffix = f" and {len(names) - _NAMED_CLASSES} more" if len(names) > _NAMED_CLASSES else ""
    return (
        f"{len(queries)} queries are of classes that no gallery image has "
        f"({', '.join(names[:_NAMED_CLASSES])}{suffix}): they count as wrong"
    )
