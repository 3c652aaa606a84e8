"""Queries with their matches as pictures: of finished matches, or two rankings side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jobs.config.options import MAX_PIXELS
from retrieval.core.schemas import Metric
from retrieval.evaluation.ground_truth import Truth
from retrieval.report.charts.contact_print import (
    BESIDE,
    MATCHES,
    QUERIES,
    Ranking,
    Row,
    Shown,
    contact_print,
    distance,
)
from retrieval.report.standings import Standings, read_standings, rows_of
from retrieval.report.thumbnails import thumbnails
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

Note = Callable[[str], None]
Match = dict[str, Any]  # of table MATCHES, with its grade
Photos = dict[str, bytes]

DRAWN, WORST, CHANGED = 3 * QUERIES, 2 * QUERIES, 3 * QUERIES
"""Queries that are shown: some that are drawn by their ids, and those that fare worst (where
nothing is known, as many more are drawn); of two rankings those that changed most."""


def grids(
    folder: Folder, manifest: Manifest, standings: Standings, truth: Truth | None, note: Note,
    seed: int,
) -> dict[str, bytes]:  # fmt: skip
    """Draw queries with their best matches, a dozen a picture: those drawn, then the worst.

    Worst are those whose first match is wrong (`Standings.worst`). Where no image can be read there
    is no picture, and `note` is told so.
    """
    metric: Metric = manifest.counts["metric"]
    count = len(standings.query_ids)
    drawn = standings.drawn(DRAWN if standings.known.any() else DRAWN + WORST, seed)
    by_chance = f"{len(drawn):,} drawn of {count:,}" if len(drawn) < count else f"{count:,}"
    sheets = [*_sheets(by_chance, drawn)]
    wrong = int((standings.known & (standings.first != 1)).sum())
    of_all = f"{wrong:,} whose first match is wrong, worst first"
    sheets += _sheets(of_all, standings.worst(WORST))
    found: dict[str, bytes] = {}
    for number, (title, queries) in enumerate(sheets, 1):
        rows = rows_of(folder, manifest, standings, queries, truth)
        photos = _photos([rows[query][:MATCHES] for query in queries])
        if not photos:
            note("no picture grid: the images of the queries and their matches cannot be read")
            return {}
        lines = [
            Row(_query(rows[query][0], photos), (_matches(rows[query], photos, metric, MATCHES),))
            for query in queries
        ]
        found[f"grid-{number:05d}.png"] = contact_print(
            title, [Ranking("Matches, best first", metric)], lines
        )
    return found


def before_after(
    folder: Folder, manifest: Manifest, other_folder: Folder, other_manifest: Manifest,
    truth: Truth | None, names: tuple[str, str], *, note: Note,
) -> dict[str, bytes]:  # fmt: skip
    """Draw two rankings of the same queries side by side, five matches each.

    The first matches stand left, the other ones right, below their `names`. Of the queries that
    both have, those come first whose precision or whose place of the first right match changed
    most; where nothing is known of any, some are drawn.
    """
    folders, manifests = (folder, other_folder), (manifest, other_manifest)
    stands = [read_standings(*each, truth) for each in zip(folders, manifests, strict=True)]
    queries, changed = changes(*stands)
    if not queries:
        note("no picture before-after: the two have no query in common")
    metrics: list[Metric] = [each.counts["metric"] for each in manifests]
    heads = [Ranking(name, metric, BESIDE) for name, metric in zip(names, metrics, strict=True)]
    said = (
        f"{changed:,} that changed, most changed first"
        if changed
        else "those that both have; none changed"
    )
    found: dict[str, bytes] = {}
    for number, (title, part) in enumerate(_sheets(said, queries), 1):
        both = [
            rows_of(*each, part, truth) for each in zip(folders, manifests, stands, strict=True)
        ]
        photos = _photos([rows[query][:BESIDE] for rows in both for query in part])
        if not photos:
            note("no picture before-after: the images cannot be read")
            return {}
        lines = [
            Row(_query(both[0][query][0], photos), tuple(
                _matches(rows[query], photos, metric, BESIDE)
                for rows, metric in zip(both, metrics, strict=True)
            ))
            for query in part
        ]  # fmt: skip
        found[f"before-after-{number:05d}.png"] = contact_print(title, heads, lines)
    return found


def changes(before: Standings, after: Standings) -> tuple[list[str], int]:
    """Give the queries of both that changed most, at most `CHANGED`, and how many changed."""
    place = {query: number for number, query in enumerate(after.query_ids)}
    left = np.array([n for n, query in enumerate(before.query_ids) if query in place], np.int64)
    right = np.array([place[before.query_ids[number]] for number in left], np.int64)
    known = before.known[left] & after.known[right]
    precision = np.abs(before.precision[left] - after.precision[right])
    first = np.abs(1 / before.first[left] - 1 / after.first[right])
    change = np.where(known, np.maximum(precision, first), 0.0)
    order = np.argsort(-change, kind="stable")
    changed = int((change > 0).sum())
    shown = order[: min(CHANGED, changed or QUERIES)]
    return [before.query_ids[left[number]] for number in shown], changed


def _sheets(of_all: str, queries: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Cut queries into dozens, each with its title: "Queries 1 to 12 of …"."""
    for first in range(0, len(queries), QUERIES):
        part = queries[first : first + QUERIES]
        last = first + len(part)
        which = f"Queries {first + 1} to {last}" if len(part) > 1 else f"Query {last}"
        yield f"{which} of {of_all}", part


def _photos(lists: Sequence[Sequence[Match]]) -> Photos:
    """Read the images of some queries' matches, and their own; those that can be read."""
    paths = {path for rows in lists for row in rows for path in (row["query_path"], row["path"])}
    return thumbnails(paths - {None}, max_pixels=MAX_PIXELS)


def _query(row: Match, photos: Photos) -> Shown:
    file = row["query_id"].rpartition("/")[2]
    label = row["query_label"]
    return Shown(label or file, photos.get(row["query_path"]), file if label else "")


def _matches(rows: Sequence[Match], photos: Photos, metric: Metric, most: int) -> tuple[Shown, ...]:
    return tuple(
        Shown(
            row["label"] or row["image_id"].rpartition("/")[2], photos.get(row["path"]),
            distance(row["score"], metric), row["grade"],
        )
        for row in rows[:most]
    )  # fmt: skip
