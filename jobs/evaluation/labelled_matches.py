"""Read the graded matches of finished matches: for calibrations, reliability, open-set measures."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.evaluation.ground_truth import stream_tables
from retrieval.core.errors import InputError, LookalikeError
from retrieval.core.schemas import Metric
from retrieval.evaluation.calibration import LabelledMatches, Scoring, label_numbers, read_scoring
from retrieval.evaluation.ground_truth import WRONG, GroundTruth
from retrieval.evaluation.open_set import OpenSetResult, measure_open_set
from retrieval.evaluation.results import Results
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.vectors.scoring import scores_to_keys

_LABELLED = [
    ("queries", pa.int64()), ("ranks", pa.int64()), ("keys", pa.float64()), ("labels", pa.int64()),
    ("graded", pa.bool_()), ("right", pa.bool_()), ("probabilities", pa.float64()),
]  # fmt: skip
"""Columns of `LabelledMatches` with a row per match."""

_COLUMNS = ["query_id", "rank", "image_id", "score", "query_label", "label", "probability"]


def read_labelled_matches(
    folder: Folder, manifest: Manifest, ground_truth: GroundTruth, results: Results
) -> LabelledMatches:
    """Return the matches of all queries that `results` judges.

    Takes about 50 bytes per match. Queries are numbered by the rows of `results.queries`.
    """
    metric = manifest.counts["metric"]
    judged = results.queries["query_id"].combine_chunks()
    parts = [_labelled_part(part, judged, ground_truth, metric) for part in stream_tables(
        folder, manifest, "matches/", _COLUMNS
    )]  # fmt: skip
    schema = pa.schema(_LABELLED)
    table = pa.concat_tables([schema.empty_table(), *parts])
    columns = {name: table[name].to_numpy() for name in schema.names}
    return LabelledMatches(
        **columns, query_ids=judged.to_pylist(), query_labels=results.queries["label"].to_pylist()
    )


def _labelled_part(
    part: pa.Table, judged: pa.Array, ground_truth: GroundTruth, metric: Metric
) -> pa.Table:
    """Return the columns `_LABELLED` of a part of the matches, for the judged queries."""
    position = pc.index_in(part["query_id"], value_set=judged)
    table = part.filter(pc.is_valid(position))
    grades = ground_truth.grades(table)
    columns = [
        position.drop_null().cast(pa.int64()), table["rank"].cast(pa.int64()),
        scores_to_keys(table["score"].to_numpy(), metric), label_numbers(table["label"]),
        grades >= WRONG, grades > 0, pc.fill_null(table["probability"], np.nan),
    ]  # fmt: skip
    return pa.table(columns, schema=pa.schema(_LABELLED))


def matches_scoring(folder: Folder) -> Scoring:
    """Return how finished matches are scored; raise InputError if their index was removed."""
    job = finished_output.read_settings(folder)
    try:
        index_folder = open_folder(job["index"])
        index = finished_output.read_manifest(index_folder, kind="index")
        index_job = finished_output.read_settings(index_folder)
    except (OSError, LookalikeError) as error:
        raise InputError(
            f"the index of {folder.uri()} is needed to record its network, and cannot be read "
            f"({error})"
        ) from error
    return read_scoring(job, index_job, index.counts["dimension"])


def measure_unknown_queries(matches: LabelledMatches, results: Results) -> OpenSetResult | None:
    """Return the open-set measures; None where all queries are known or all are unknown.

    The evidence of a query is the probability of its most probable match, or the key of its first
    match where matches have no probability.
    """
    has_probability = len(matches.keys) and not np.isnan(matches.probabilities).any()
    evidence = matches.probabilities if has_probability else matches.keys
    graded = np.flatnonzero(matches.graded)
    order = graded[np.lexsort((matches.ranks[graded], -evidence[graded], matches.queries[graded]))]
    queries, first = np.unique(matches.queries[order], return_index=True)
    best = order[first]
    best_evidence = np.full(len(results.queries), -np.inf)
    best_right = np.zeros(len(results.queries), bool)
    best_evidence[queries], best_right[queries] = evidence[best], matches.right[best]
    known = results.queries["relevant"].to_numpy() > 0
    return measure_open_set(best_evidence, best_right, known)
