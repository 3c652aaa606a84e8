"""Finished matches judged, part by part: what they are worth, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.groups import Judging
from jobs.truth import open_truth, stream_tables
from retrieval.errors import InputError, Mismatch
from retrieval.evaluation import measures
from retrieval.evaluation.judged import Judged, judge, judge_unanswered
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.qrels import Qrels
from retrieval.evaluation.results import (
    ClassMeasured,
    Measured,
    Over,
    Results,
    by_class,
    gather,
    measured,
)
from retrieval.evaluation.thresholds import Threshold, thresholds
from retrieval.evaluation.truth import Truth
from retrieval.intervals import FEWEST
from retrieval.storage import finished
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest

_COLUMNS = ["query_id", "rank", "image_id", "score", "query_label", "label"]
_NAMED = 3  # classes named in a sentence


@dataclass(frozen=True)
class Evaluation:
    """What a ranking is worth. `notes` are sentences that must stand beside the figures."""

    results: Results
    measures: tuple[Measured, ...]
    classes: tuple[ClassMeasured, ...]
    thresholds: tuple[Threshold, ...]
    notes: tuple[str, ...]

    @property
    def queries(self) -> int:
        """Count the queries that were judged."""
        return len(self.results.queries)

    @property
    def left_out(self) -> int:
        """Count those that were not, since nothing is known of them."""
        return self.results.left_out


def evaluate(
    folder: Folder, manifest: Manifest, truth: Truth, cuts: Sequence[int] = (10,),
    over: Over = "queries",
) -> Evaluation:  # fmt: skip
    """Judge finished matches; InputError where there is nothing to judge by."""
    results = judged_results(folder, manifest, truth, cuts)
    return Evaluation(
        results,
        measured(results, over),
        by_class(results),
        thresholds(results.scored, manifest.counts["metric"]),
        (*_notes(folder, manifest, truth, results), *_interval_notes(results, over)),
    )


def evaluate_by_labels(
    folder: Folder, manifest: Manifest, over: Over = "queries"
) -> tuple[Evaluation | None, tuple[str, ...]]:
    """Evaluate by the labels in the matches; where that cannot be, give the reason as a line."""
    try:
        return evaluate(folder, manifest, open_truth(folder, manifest, Judging()), over=over), ()
    except InputError as error:
        return None, (f"not evaluated: {error}",)


def judged_results(
    folder: Folder, manifest: Manifest, truth: Truth, cuts: Sequence[int]
) -> Results:
    """Judge all queries: those with matches, those that failed, and those of qrels alone."""
    asked: list[pa.Array] = []

    def parts() -> Iterator[Judged]:
        for table in stream_tables(folder, manifest, "matches/", _COLUMNS):
            asked.append(pc.unique(table["query_id"]))
            yield judge(table, truth, folder.uri())
        for table in stream_tables(folder, manifest, "failures/", ["image_id", "label"]):
            failed = table.rename_columns(["query_id", "query_label"])
            asked.append(failed["query_id"].combine_chunks())
            yield judge_unanswered(failed, truth)
        if isinstance(truth, Qrels):
            known = pa.chunked_array([pa.array([], pa.string()), *asked])
            yield judge_unanswered(_never_asked(truth, known), truth)

    results = gather(parts(), measures.keys(cuts))
    _refuse_nothing(folder, truth, results, pa.chunked_array([pa.array([], pa.string()), *asked]))
    return results


def _never_asked(truth: Qrels, asked: pa.ChunkedArray) -> pa.Table:
    """Give the queries of a qrels file that the ranking knows nothing of."""
    queries = truth.judged_queries()
    missing = queries.filter(pc.invert(pc.is_in(queries, value_set=asked)))
    return pa.table({"query_id": missing, "query_label": pa.nulls(len(missing), pa.string())})


def _refuse_nothing(folder: Folder, truth: Truth, results: Results, asked: pa.ChunkedArray) -> None:
    """Refuse what would only come to nought since truth and matches know nothing of each other."""
    first = repr(asked[0].as_py()) if len(asked) else "none"
    if isinstance(truth, Qrels):
        known = truth.judged_queries()
        if not pc.any(pc.is_in(known, value_set=asked)).as_py():
            raise Mismatch(
                f"--qrels names none of the queries of {folder.uri()} (its first is "
                f"{known[0].as_py()!r}, theirs {first}); it is of another run, or names them "
                "otherwise than --format trec does"
            )
        return
    if len(results.queries) == 0:
        said = "; name a file with --labels"
        if isinstance(truth, Labels) and truth.of_queries is not None:
            names = truth.of_queries["image_id"]
            said = (
                f": --labels names others (its first is "
                f"{names[0].as_py() if len(names) else 'none'!r}, theirs {first})"
            )
        raise InputError(
            f"no query of {folder.uri()} has a label, so nothing can be evaluated{said}"
        )
    if not results.queries["relevant"].to_numpy().any():
        names = pc.unique(results.queries["label"]).slice(0, _NAMED).to_pylist()
        raise InputError(
            f"no image of the gallery of {folder.uri()} has the label of any query "
            f"({', '.join(names)}); labels of queries and gallery must be of one kind"
        )


def _notes(folder: Folder, manifest: Manifest, truth: Truth, results: Results) -> tuple[str, ...]:
    relevant, filled = (results.queries[n].to_numpy() for n in ("relevant", "matches"))
    top_k = int(finished.read_settings(folder)["top_k"])
    notes = []
    if results.left_out:
        why = "without a relevant image in --qrels" if isinstance(truth, Qrels) else "without label"
        notes.append(f"{results.left_out} queries {why} are left out")
    if unanswered := int((filled == 0).sum()):
        notes.append(f"{unanswered} queries without an answer count as wrong")
    if results.junk:
        notes.append(f"{results.junk} matches were passed over as junk")
    if hopeless := results.queries.filter(pa.array(relevant == 0)):
        notes.append(_hopeless(hopeless))
    if isinstance(truth, Labels):
        labelled = pc.sum(truth.gallery["images"]).as_py() or 0
        if (rest := int(manifest.counts["gallery"]) - labelled) > 0 and not _filtered(folder):
            notes.append(f"{rest} gallery images without label count as wrong")
    elif not results.scored["right"].to_numpy().any():
        notes.append(
            "no match is among the images that --qrels grades as relevant: is it of this gallery?"
        )
    most = float(np.mean(np.minimum(relevant, top_k) / np.maximum(relevant, 1)))
    if most < 0.995 and len(hopeless) < len(relevant):
        notes.append(
            f"with --top-k {top_k} and {relevant.mean():.4g} relevant images a query on average, "
            f"mAP can be {most:.3f} at most"
        )
    return tuple(notes)


def _interval_notes(results: Results, over: Over) -> Iterator[str]:
    """Yield notes on intervals over classes, and on intervals that are left out."""
    count = len(results.queries) if over == "queries" else len(pc.unique(results.queries["label"]))
    if over == "classes":
        yield f"intervals speak of further classes like these {count}, not of further queries"
    if count < FEWEST:
        yield f"{count} {over} are too few for an interval: it takes {FEWEST}"


def _filtered(folder: Folder) -> bool:
    return finished.read_settings(folder)["filter"] is not None


def _hopeless(queries: pa.Table) -> str:
    """Say which queries have nothing to be found."""
    names = pc.unique(queries["label"]).to_pylist()
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"{len(queries)} queries are of classes that no gallery image has "
        f"({', '.join(names[:_NAMED])}{rest}): they count as wrong"
    )
