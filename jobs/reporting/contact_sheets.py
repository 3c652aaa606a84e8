"""Pictures of queries with their matches: of one ranking, or of two rankings side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jobs.config.options import MAX_PIXELS
from retrieval.core.schemas import ScoreKind
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.report.charts.contact_print import (
    MAX_MATCHES,
    MAX_QUERIES,
    SIDE_BY_SIDE_MATCHES,
    Photo,
    Ranking,
    Row,
    draw_contact_print,
    format_distance,
)
from retrieval.report.query_outcomes import QueryOutcomes, read_match_rows, read_outcomes
from retrieval.report.thumbnails import read_thumbnails
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

Note = Callable[[str], None]
Match = dict[str, Any]  # a row of table MATCHES, with its grade
Photos = dict[str, bytes]

SAMPLED_QUERIES, WORST_QUERIES, CHANGED_QUERIES = 3 * MAX_QUERIES, 2 * MAX_QUERIES, 3 * MAX_QUERIES
"""Numbers of drawn queries: of a sample, of the worst ones (without ground truth the sample is
larger by as many), and of those that changed most between two rankings."""


def draw_grids(
    folder: Folder, manifest: Manifest, outcomes: QueryOutcomes, ground_truth: GroundTruth | None,
    note: Note, seed: int,
) -> dict[str, bytes]:  # fmt: skip
    """Draw sampled queries, then the worst, with their best matches, a dozen per picture.

    Returns PNG files by name; if no image can be read, none, and calls `note` with the reason.
    """
    metric: ScoreKind = manifest.counts["metric"]
    count = len(outcomes.query_ids)
    sampled = outcomes.sample(
        SAMPLED_QUERIES if outcomes.has_grade.any() else SAMPLED_QUERIES + WORST_QUERIES, seed
    )
    sample_title = (
        f"{len(sampled):,} sampled of {count:,}" if len(sampled) < count else f"{count:,}"
    )
    sheets = [*_sheets(sample_title, sampled)]
    wrong_count = int((outcomes.has_grade & (outcomes.first != 1)).sum())
    worst_title = f"{wrong_count:,} whose first match is wrong, worst first"
    sheets += _sheets(worst_title, outcomes.worst(WORST_QUERIES))
    pictures: dict[str, bytes] = {}
    for number, (title, queries) in enumerate(sheets, 1):
        rows = read_match_rows(folder, manifest, outcomes, queries, ground_truth)
        photos = _photos([rows[query][:MAX_MATCHES] for query in queries])
        if not photos:
            note("no picture grid: the images of queries and matches are not readable")
            return {}
        picture_rows = [
            Row(
                _query(rows[query][0], photos),
                (_matches(rows[query], photos, metric, MAX_MATCHES),),
            )
            for query in queries
        ]
        pictures[f"grid-{number:05d}.png"] = draw_contact_print(
            title, [Ranking("Matches, best first", metric)], picture_rows
        )
    return pictures


def draw_before_after(
    folder: Folder, manifest: Manifest, other_folder: Folder, other_manifest: Manifest,
    ground_truth: GroundTruth | None, names: tuple[str, str], *, note: Note,
) -> dict[str, bytes]:  # fmt: skip
    """Draw two rankings of the same queries side by side, five matches each, below their `names`.

    Returns PNG files by name. Common queries are ordered by the larger change of their precision
    and of the reciprocal rank of their first right match; without ground truth they keep their
    order. Calls `note` with the reason if nothing can be drawn.
    """
    folders, manifests = (folder, other_folder), (manifest, other_manifest)
    outcomes = [
        read_outcomes(folder, manifest, ground_truth)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]
    queries, changed = most_changed_queries(*outcomes)
    if not queries:
        note("no picture before-after: the rankings have no query in common")
    metrics: list[ScoreKind] = [manifest.counts["metric"] for manifest in manifests]
    columns = [
        Ranking(name, metric, SIDE_BY_SIDE_MATCHES)
        for name, metric in zip(names, metrics, strict=True)
    ]
    order = (
        f"{changed:,} changed queries, most changed first"
        if changed
        else "queries of both rankings; none changed"
    )
    pictures: dict[str, bytes] = {}
    for number, (title, part) in enumerate(_sheets(order, queries), 1):
        rankings = [
            read_match_rows(*ranking, part, ground_truth)
            for ranking in zip(folders, manifests, outcomes, strict=True)
        ]
        photos = _photos(
            [rows[query][:SIDE_BY_SIDE_MATCHES] for rows in rankings for query in part]
        )
        if not photos:
            note("no picture before-after: the images are not readable")
            return {}
        picture_rows = [
            Row(_query(rankings[0][query][0], photos), tuple(
                _matches(rows[query], photos, metric, SIDE_BY_SIDE_MATCHES)
                for rows, metric in zip(rankings, metrics, strict=True)
            ))
            for query in part
        ]  # fmt: skip
        pictures[f"before-after-{number:05d}.png"] = draw_contact_print(
            title, columns, picture_rows
        )
    return pictures


def most_changed_queries(before: QueryOutcomes, after: QueryOutcomes) -> tuple[list[str], int]:
    """Return the most changed common queries, at most `CHANGED_QUERIES`, and the changed count.

    If none changed, return the first of the common queries.
    """
    position = {query: number for number, query in enumerate(after.query_ids)}
    rows_before = np.array(
        [n for n, query in enumerate(before.query_ids) if query in position], np.int64
    )
    rows_after = np.array([position[before.query_ids[row]] for row in rows_before], np.int64)
    has_grade = before.has_grade[rows_before] & after.has_grade[rows_after]
    precision_change = np.abs(before.precision[rows_before] - after.precision[rows_after])
    rank_change = np.abs(1 / before.first[rows_before] - 1 / after.first[rows_after])
    change = np.where(has_grade, np.maximum(precision_change, rank_change), 0.0)
    order = np.argsort(-change, kind="stable")
    changed = int((change > 0).sum())
    shown = order[: min(CHANGED_QUERIES, changed or MAX_QUERIES)]
    return [before.query_ids[rows_before[number]] for number in shown], changed


def _sheets(total: str, queries: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield groups of a dozen queries with a title such as "Queries 1 to 12 of 40"."""
    for first in range(0, len(queries), MAX_QUERIES):
        part = queries[first : first + MAX_QUERIES]
        last = first + len(part)
        label = f"Queries {first + 1} to {last}" if len(part) > 1 else f"Query {last}"
        yield f"{label} of {total}", part


def _photos(lists: Sequence[Sequence[Match]]) -> Photos:
    """Return the thumbnails of queries and their matches by path; unreadable ones are omitted."""
    paths = {path for rows in lists for row in rows for path in (row["query_path"], row["path"])}
    return read_thumbnails(paths - {None}, max_pixels=MAX_PIXELS)


def _query(row: Match, photos: Photos) -> Photo:
    file = row["query_id"].rpartition("/")[2]
    label = row["query_label"]
    return Photo(label or file, photos.get(row["query_path"]), file if label else "")


def _matches(
    rows: Sequence[Match], photos: Photos, metric: ScoreKind, limit: int
) -> tuple[Photo, ...]:
    return tuple(
        Photo(
            row["label"] or row["image_id"].rpartition("/")[2], photos.get(row["path"]),
            format_distance(row["score"], metric), row["grade"],
        )
        for row in rows[:limit]
    )  # fmt: skip
