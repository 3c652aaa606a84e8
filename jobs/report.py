"""lookalike report: matches to one page with pictures."""

from __future__ import annotations

from typing import Any

from jobs.judging import Evaluation, evaluate_by_labels
from jobs.result import Result
from jobs.settings import ReportSettings
from jobs.truth import read_tables
from retrieval.errors import LookalikeError, UsageError
from retrieval.evaluation.labels import DISTRACTOR
from retrieval.records import Certificate
from retrieval.report.contact_sheet import MatchCell, Measure, Page, QueryRow, render
from retrieval.report.thumbnails import thumbnails
from retrieval.storage import finished
from retrieval.storage.files import Folder, open_folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import read_json
from retrieval.tables import FAILURES, MATCHES

SHOWN_QUERIES = 200
SHOWN_MATCHES = 20
_MAX_PIXELS = 178956970


def start(settings: ReportSettings) -> Result:
    """Write the page, replacing one that is there."""
    folder = open_folder(settings.matches)
    manifest = finished.read_manifest(folder, kind="matches")
    evaluation, _ = evaluate_by_labels(folder, manifest, settings.seed)
    page = build_page(
        folder, manifest, evaluation, title=settings.title, shown=settings.max_queries
    )
    head, _, name = settings.output.rpartition("/")
    try:
        open_folder(head or ("/" if settings.output.startswith("/") else ".")).put(name, page)
    except OSError as error:
        raise UsageError(
            f"--output {settings.output} cannot be written ({error.strerror or error}); "
            "name a file that can"
        ) from error
    return Result({"report": settings.output}, (f"report: {settings.output}",))


def build_page(
    folder: Folder,
    manifest: Manifest,
    evaluation: Evaluation | None,
    *,
    title: str,
    shown: int = SHOWN_QUERIES,
) -> bytes:
    """Make the page of finished matches; failed queries are always on it."""
    matches = read_tables(folder, manifest, "matches/", MATCHES.schema)
    failed = read_tables(folder, manifest, "failures/", FAILURES.schema).to_pylist()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in matches.to_pylist():
        if row["query_id"] in rows or len(rows) < shown:
            rows.setdefault(row["query_id"], []).append(row)
    queries = [_query_row(name, rows[name][:SHOWN_MATCHES]) for name in rows]
    queries += [
        QueryRow(f["image_id"], f["path"], f["label"], (), f"{f['error']}: {f['message']}")
        for f in failed[:shown]
    ]
    queries.sort(key=lambda query: query.query_id)
    paths = {query.path for query in queries}
    paths |= {cell.path for query in queries for cell in query.matches}
    page = Page(
        title=title,
        metric=manifest.counts["metric"],
        facts=_facts(folder, manifest),
        measures=_measures(evaluation),
        recall=Certificate(**manifest.counts["certificate"]).sentence(),
        queries=tuple(queries),
        shown_of=(len(queries), manifest.counts["queries"] + len(failed)),
    )
    return render(page, thumbnails(sorted(paths), max_pixels=_MAX_PIXELS))


def _query_row(name: str, rows: list[dict[str, Any]]) -> QueryRow:
    first = rows[0]
    cells = tuple(
        MatchCell(
            row["rank"], row["image_id"], row["path"], row["score"], row["label"],
            _right(row["query_label"], row["label"]),
        )
        for row in rows
    )  # fmt: skip
    return QueryRow(name, first["query_path"], first["query_label"], cells, None)


def _right(query: str | None, match: str | None) -> bool | None:
    """Judge a match; None where one of the labels says nothing."""
    return None if {query, match} & {None, "", DISTRACTOR} else query == match


def _measures(evaluation: Evaluation | None) -> tuple[Measure, ...]:
    if evaluation is None:
        return ()
    return tuple(Measure(m.title, m.value, m.low, m.high, m.meaning) for m in evaluation.measures)


def _images_of(queries: str) -> str:
    """Give the folder of images behind a store of queries, where there is one."""
    try:
        return str(finished.read_settings(open_folder(queries))["input"])
    except (OSError, KeyError, LookalikeError):
        return queries


def _shown(top_k: int) -> str:
    return (
        f"{top_k}, of which the page shows {SHOWN_MATCHES}" if top_k > SHOWN_MATCHES else f"{top_k}"
    )


def _conditions(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Tell what a match had to be, and how queries were changed; nothing where it was nothing."""
    said = []
    if settings.get("filter") is not None:
        said.append(("only images with", settings["filter"]))
    if settings.get("exclude_self"):
        said.append(("left out", "each query's own image"))
    if settings.get("min_score") is not None:
        said.append(("least score", f"{settings['min_score']:g}"))
    if expansion := settings.get("expand_queries"):
        said.append((
            "queries expanded",
            f"by the {expansion['count']} images that each found first, weighed by their score to "
            f"the power {expansion['alpha']:g}",
        ))  # fmt: skip
    return said


def _facts(folder: Folder, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Tell what the matches were made from."""
    counts, settings = manifest.counts, finished.read_settings(folder)
    facts = [
        ("gallery", f"{counts['gallery']} images"),
        ("queries", f"{counts['queries']} images in {_images_of(settings['queries'])}"),
        ("failed queries", str(counts["failures"])),
        ("matches a query", _shown(settings["top_k"])),
        ("index", settings["index"]),
        *_conditions(settings),
    ]
    index = open_folder(settings["index"])
    try:
        store = open_folder(finished.read_settings(index)["embeddings"])
        facts[0] = (
            "gallery", f"{counts['gallery']} images in {finished.read_settings(store)['input']}"
        )  # fmt: skip
        bundle = read_json(index.child("model").read("bundle.json")) or {}
        network = f"{bundle['backbone']}, {bundle['pooling']} pooling"
        facts.insert(2, ("network", f"{network}, {bundle['dimension']} numbers an image"))
    except (OSError, KeyError, LookalikeError):  # the index may have moved; the matches still stand
        pass
    return tuple(facts)
