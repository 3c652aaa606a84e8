"""Calibration: how likely a match of a score and lead is right, learned from labelled queries.

The lead of a match is how far the matches of its label are ahead of those of all other labels, in
units of the score (`label_leads`); it is negative where others are ahead. Evidence is the best key
(score, negated for l2) of the label's matches plus `lead_weight` times the lead, and the
probability an isotonic function of the evidence: matches of one label of a query are right or wrong
together. The temperature of the lead and its weight are those with the lowest Brier score in
cross-fitting, that of all matches plus that of first matches, which decide whether a query has a
match at all.

A calibration holds for the network, metric and scoring that it was made with, and for queries like
those that it learned from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.errors import Damaged, InputError, Mismatch
from retrieval.core.schemas import MATCHES, Metric
from retrieval.evaluation.isotonic import fit_probabilities
from retrieval.evaluation.labels import DISTRACTOR
from retrieval.evaluation.reliability import Reliability, measure_reliability
from retrieval.evaluation.results import IntervalUnit
from retrieval.index.sampling import hash_image_ids
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.input_files import read_uri
from retrieval.vectors.scoring import keys_to_scores, scores_to_keys

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

VERSION = 1
"""Version of the calibration file; files of another version are rejected."""

LEAD_WEIGHTS = (0.0, 0.25, 1.0, 4.0, 16.0)
"""Weights of the lead that are tried; 0 leaves the lead out."""

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Temperatures that are tried, in standard deviations of the keys of a query's matches."""

_SMALLEST_SHARE = 1e-12
"""Lower limit of the weight of a label, which bounds its lead to about 28 temperatures."""

FOLDS = 5

MIN_QUERIES = 10
"""Smallest number of labelled queries (or classes) that a calibration is learned from."""

FEW_QUERIES = 100
"""Number of labelled queries below which the probabilities are only rough."""


@dataclass(frozen=True)
class Scoring:
    """What gives the scores and leads of matches their meaning; a calibration is valid for it only.

    `bundle` is the digest of the network's bundle, None for imported vectors. The other fields are
    settings of the ranking; `filter` and `rerank` are None without.
    """

    bundle: str | None
    dimension: int
    metric: Metric
    top_k: int
    filter: str | None
    rerank: Any


@dataclass(frozen=True)
class LabelledMatches:
    """All n matches of q labelled queries, in the order of query and rank.

    Attributes:
        queries: (n,) int64, the position of each match's query in `query_ids`.
        ranks: (n,) int64, from 1 within a query.
        keys: (n,) float64, the scores, negated for l2: higher is closer.
        labels: (n,) int64, at least 0; equal for a query's matches that have the same label.
        graded: (n,) bool, whether the match is right or wrong, not junk or unknown.
        right: (n,) bool.
        probabilities: (n,) float64, nan where the matches have none.
        query_ids: The ids of the q queries, those without matches included.
        query_labels: The classes of the q queries, None where unknown.
    """

    queries: Int64
    ranks: Int64
    keys: Float64
    labels: Int64
    graded: NDArray[np.bool_]
    right: NDArray[np.bool_]
    probabilities: Float64
    query_ids: list[str]
    query_labels: list[str | None]


@dataclass(frozen=True)
class Calibration:
    """A function from score and lead to the probability that a match is right.

    `knots` and `probabilities` are (m,) float64: between two knots of the evidence the probability
    is linear, outside of them constant. `held_out` is the reliability in cross-fitting, where each
    query (or class, for `grouped_by` "classes") is judged by a function learned from others.
    """

    scoring: Scoring
    temperature: float
    lead_weight: float
    knots: Float64
    probabilities: Float64
    grouped_by: IntervalUnit
    held_out: Reliability

    def probability(self, scores: Float64, leads: Float64) -> Float64:
        """Return the probability of each of n matches, (n,) float64, between 0 and 1.

        `scores` (n,) are the best scores of the labels and `leads` (n,) their leads, both as
        `scores_and_leads` returns them.
        """
        evidence = scores_to_keys(scores, self.scoring.metric) + self.lead_weight * leads
        probabilities: Float64 = np.interp(evidence, self.knots, self.probabilities)
        return probabilities

    def scores_and_leads(self, matches: pa.Table) -> tuple[Float64, Float64]:
        """Return the best score of the label of each of n matches, and its lead, (n,) float64 each.

        `matches` has the columns of MATCHES, ordered by query, then rank; all matches of a query
        must be there.
        """
        metric = self.scoring.metric
        keys = scores_to_keys(matches["score"].to_numpy(), metric)
        queries = matches["query_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        labels = label_numbers(matches["label"])
        leads = label_leads(keys, queries, labels, self.temperature)
        return keys_to_scores(best_keys(keys, queries, labels), metric), leads

    def check_scoring(self, scoring: Scoring, path: str) -> None:
        """Raise Mismatch, naming the file `path`, unless matches are scored as here."""
        ours, theirs = vars(self.scoring), vars(scoring)
        if different := [name for name in ours if ours[name] != theirs[name]]:
            name = different[0]
            raise Mismatch(
                f"--calibration {path} was made with {name} {ours[name]}, not {theirs[name]}; make "
                "one with evaluate --calibrate from matches of the same network and options"
            )

    def to_json(self) -> bytes:
        """Return the calibration file: checksummed JSON."""
        return checksummed_json({
            "version": VERSION, "scoring": vars(self.scoring),
            "temperature": self.temperature, "lead_weight": self.lead_weight,
            "knots": self.knots.tolist(), "probabilities": self.probabilities.tolist(),
            "grouped_by": self.grouped_by, "held_out": self.held_out.to_json(),
        })  # fmt: skip

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the calibration file, hex."""
        return hashlib.sha256(self.to_json()).hexdigest()


def read_calibration(path: str) -> Calibration:
    """Read a calibration file, a path or URI.

    Raises InputError if it is missing, Damaged if it was altered, and Mismatch if another version
    of this program wrote it.
    """
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--calibration {path} cannot be read ({error})") from error
    return parse_calibration(data, path)


def parse_calibration(data: bytes, path: str) -> Calibration:
    """Parse the bytes of a calibration file; raises as `read_calibration` does."""
    values = parse_checksummed_json(data)
    if values is None or "lead_weight" not in values:
        raise Damaged(
            f"{path} is not a calibration or was altered; write it again with --calibrate"
        )
    if values["version"] != VERSION:
        raise Mismatch(
            f"{path} has version {values['version']}, this program reads {VERSION}; write it again "
            "with evaluate --calibrate"
        )
    return Calibration(
        Scoring(**values["scoring"]), values["temperature"], values["lead_weight"],
        np.array(values["knots"]), np.array(values["probabilities"]), values["grouped_by"],
        Reliability.from_json(values["held_out"]),
    )  # fmt: skip


def label_leads(keys: Float64, queries: Int64, labels: Int64, temperature: float) -> Float64:
    """Return the lead of each of n matches, (n,) float64, in units of the keys.

    Each match weighs exp(key / temperature). The lead of a label is the temperature times the
    logarithm of the weight of its matches over that of all others; matches of one label of a query
    have the same lead. A low temperature compares the best match of each label, a high one counts
    them. Images beyond the last match count as one of another label with the last key.

    Args:
        keys: (n,) float64, higher is closer; those of a query are contiguous, best first.
        queries: (n,) int64, from 0, ascending or by first occurrence.
        labels: (n,) int64, at least 0; equal for matches of a query that have the same label.
        temperature: Above 0, in units of the keys.
    """
    if len(keys) == 0:
        return np.empty(0)
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    lengths = np.diff(starts, append=len(keys))
    query = np.repeat(np.arange(len(starts)), lengths)
    weights = np.exp((keys - keys[starts][query]) / temperature)
    beyond = np.maximum(weights[starts + lengths - 1], _SMALLEST_SHARE)[query]
    group = _label_groups(query, labels)
    of_label = np.bincount(group, weights)[group]
    others = np.maximum(np.bincount(query, weights)[query] - of_label, 0.0) + beyond
    leads: Float64 = temperature * np.log(np.maximum(of_label, _SMALLEST_SHARE) / others)
    return leads


def best_keys(keys: Float64, queries: Int64, labels: Int64) -> Float64:
    """Return the best key of the matches of each match's label and query, (n,) float64.

    The arguments are those of `label_leads`.
    """
    group = _label_groups(queries, labels)
    best = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(best, group, keys)
    return best[group]


def _label_groups(queries: Int64, labels: Int64) -> Int64:
    """Return a number for each pair of query and label, (n,) int64."""
    pairs = queries.astype(np.int64) * (labels.max(initial=0) + 1) + labels
    groups: Int64 = np.unique(pairs, return_inverse=True)[1]
    return groups


def label_numbers(labels: pa.ChunkedArray) -> Int64:
    """Return a number from 0 for each of n labels, (n,) int64.

    Each image without a label and each distractor has a number of its own.
    """
    coded = labels.combine_chunks().dictionary_encode()
    numbers = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    names = coded.dictionary.to_pylist()
    alone = [-1, *(number for number, name in enumerate(names) if name in ("", DISTRACTOR))]
    return np.where(np.isin(numbers, alone), len(names) + np.arange(len(numbers)), numbers)


def add_probabilities(
    matches: pa.Table, calibration: Calibration, min_probability: float | None = None
) -> pa.Table:
    """Return a table MATCHES with the probability of each match, without those below a minimum.

    The remaining matches of a query keep their order and get the ranks from 1. `matches` is ordered
    by query, then rank.
    """
    probabilities = calibration.probability(*calibration.scores_and_leads(matches))
    column = MATCHES.schema.get_field_index("probability")
    table = matches.set_column(column, MATCHES.schema.field(column), pa.array(probabilities))
    if min_probability is None:
        return table
    table = table.filter(pa.array(table["probability"].to_numpy() >= min_probability))
    if len(table) == 0:
        return table
    queries = table["query_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    ranks = np.arange(len(table)) - np.repeat(starts, np.diff(starts, append=len(table))) + 1
    column = MATCHES.schema.get_field_index("rank")
    return table.set_column(column, MATCHES.schema.field(column), pa.array(ranks, pa.int32()))


def fit_calibration(
    matches: LabelledMatches,
    scoring: Scoring,
    grouped_by: IntervalUnit = "queries",
) -> Calibration:
    """Learn a calibration, and measure its reliability on held-out folds.

    Args:
        matches: The matches of labelled queries.
        scoring: How they were scored.
        grouped_by: What a fold holds out: "queries" (further queries of the same classes) or
            "classes" (queries of further classes).

    Raises:
        InputError: If there are fewer than `MIN_QUERIES` queries (or classes) with matches.
    """
    folds = _folds(matches, grouped_by)
    best = min(_trials(matches, folds), key=lambda trial: trial.error)
    graded = matches.graded
    right = matches.right[graded]
    knots, heights = fit_probabilities(best.evidence, right)
    held_out = measure_reliability(
        best.probabilities, right, matches.queries[graded], matches.ranks[graded]
    )
    return Calibration(
        scoring, best.temperature, best.lead_weight, knots, heights, grouped_by, held_out
    )


@dataclass(frozen=True)
class _Trial:
    """A definition of the evidence, tried by cross-fitting on the n graded matches.

    `error` is the Brier score of all of them plus that of first matches. `evidence` and
    `probabilities`, of functions that were fitted without the match's fold, are (n,) float64.
    """

    error: float
    temperature: float
    lead_weight: float
    evidence: Float64
    probabilities: Float64


def _trials(matches: LabelledMatches, folds: Int64) -> Iterator[_Trial]:
    graded = matches.graded
    right, is_first = matches.right[graded], matches.ranks[graded] == 1
    for temperature, lead_weight, evidence in _evidence_choices(matches):
        probabilities = _cross_fit(evidence[graded], right, folds[graded])
        errors = np.square(probabilities - right)
        first_error = errors[is_first].sum() / max(1, is_first.sum())
        yield _Trial(
            float(errors.mean() + first_error), temperature, lead_weight, evidence[graded],
            probabilities,
        )  # fmt: skip


def _evidence_choices(matches: LabelledMatches) -> Iterator[tuple[float, float, Float64]]:
    """Yield each temperature and weight of the lead that is tried, with the evidence (n,)."""
    keys = best_keys(matches.keys, matches.queries, matches.labels)
    yield 1.0, 0.0, keys
    deviation = _deviation_within_queries(matches)
    if deviation == 0:  # all matches of a query have the same score, so no label leads
        return
    for multiple in TEMPERATURES:
        temperature = multiple * deviation
        leads = label_leads(matches.keys, matches.queries, matches.labels, temperature)
        for weight in LEAD_WEIGHTS[1:]:
            yield temperature, weight, keys + weight * leads


def _deviation_within_queries(matches: LabelledMatches) -> float:
    """Return the standard deviation of the keys about the mean of their query."""
    counts = np.maximum(np.bincount(matches.queries), 1)
    means = np.bincount(matches.queries, matches.keys) / counts
    return float(np.sqrt(np.square(matches.keys - means[matches.queries]).mean()))


def _folds(matches: LabelledMatches, grouped_by: IntervalUnit) -> Int64:
    """Return the fold of each match, (n,) int64: equal for all matches of a query (or class)."""
    present = np.unique(matches.queries[matches.graded]).tolist()
    names = {query: matches.query_ids[query] for query in present}
    if grouped_by == "classes":
        names = {query: matches.query_labels[query] or "" for query in present}
    groups = sorted(set(names.values()))
    if len(groups) < MIN_QUERIES:
        raise InputError(
            f"--calibrate: {len(groups)} labelled {grouped_by} with matches are too few; label at "
            f"least {MIN_QUERIES}, better {FEW_QUERIES}"
        )
    order = np.argsort(hash_image_ids(groups, 0, "calibrate"), kind="stable")
    fold_of = {groups[position]: place % FOLDS for place, position in enumerate(order)}
    folds = np.zeros(len(matches.query_ids), np.int64)
    for query, name in names.items():
        folds[query] = fold_of[name]
    return folds[matches.queries]


def _cross_fit(evidence: Float64, right: NDArray[np.bool_], folds: Int64) -> Float64:
    """Return the probability of each match by a function that was fitted without its fold."""
    probabilities = np.empty(len(evidence))
    for fold in range(FOLDS):
        held = folds == fold
        knots, heights = fit_probabilities(evidence[~held], right[~held])
        probabilities[held] = np.interp(evidence[held], knots, heights)
    return probabilities


def read_scoring(job: Mapping[str, Any], index_job: Mapping[str, Any], dimension: int) -> Scoring:
    """Return how matches are scored.

    `job` and `index_job` are the settings of the matches and of their index, `dimension` that of
    the vectors.
    """
    names = ("filter", "rerank")
    return Scoring(
        index_job["bundle"], dimension, index_job["metric"], job["top_k"],
        *(job.get(name) for name in names),
    )  # fmt: skip
