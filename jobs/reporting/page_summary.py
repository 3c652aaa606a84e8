"""Summary of a report page: measures over all queries, and facts about their origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation.evaluate_matches import Evaluation
from retrieval.core.errors import LookalikeError
from retrieval.core.output_layout import CALIBRATION
from retrieval.core.records import Certificate
from retrieval.evaluation.calibration import parse_calibration
from retrieval.report.chart import Chart
from retrieval.report.charts.reliability import draw_reliability
from retrieval.report.page import Page
from retrieval.report.rows import SHOWN_MATCHES, ShownQueries
from retrieval.storage import finished_output
from retrieval.storage.checksum import parse_checksummed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder


def build_page(
    folder: Folder,
    manifest: Manifest,
    evaluation: Evaluation | None,
    charts: tuple[Chart, ...],
    *,
    title: str,
    shown: ShownQueries,
    queries: int,
) -> Page:
    """Return the content of the page above its queries; `queries` counts all queries."""
    return Page(
        title=title,
        metric=manifest.counts["metric"],
        facts=_facts(folder, manifest),
        recall=Certificate(**manifest.counts["certificate"]).sentence(),
        counts=shown.counts(),
        shown_of=(len(shown), queries),
        measures=evaluation.measures if evaluation else (),
        classes=evaluation.classes if evaluation else (),
        thresholds=evaluation.thresholds if evaluation else (),
        notes=evaluation.notes if evaluation else (),
        charts=(*charts, *_reliability_charts(folder, evaluation)),
    )


def _reliability_charts(folder: Folder, evaluation: Evaluation | None) -> tuple[Chart, ...]:
    """Return the chart of the reliability of probabilities; none for matches without them.

    The curves are that of the calibration on its held-out folds, and that of these matches if they
    have labels.
    """
    if not folder.exists(CALIBRATION):
        return ()
    calibration = parse_calibration(folder.read(CALIBRATION), folder.uri(CALIBRATION))
    curves = {"held-out folds": calibration.held_out}
    if evaluation and evaluation.reliability:
        curves["these matches"] = evaluation.reliability
    drawing = draw_reliability(curves)
    return (drawing.chart(),) if drawing else ()


def _query_images(queries: str) -> str:
    """Return the image folder that the queries were embedded from, or `queries` if unknown."""
    try:
        return str(finished_output.read_settings(open_folder(queries))["input"])
    except (OSError, KeyError, LookalikeError):
        return queries


def _format_top_k(top_k: int) -> str:
    return (
        f"{top_k}, of which this page shows {SHOWN_MATCHES}"
        if top_k > SHOWN_MATCHES
        else f"{top_k}"
    )


def _conditions(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that restrict matches or change queries, as (name, value)."""
    conditions = []
    if settings.get("filter") is not None:
        conditions.append(("filter", settings["filter"]))
    if settings.get("exclude_self"):
        conditions.append(("excluded", "each query's own image"))
    if settings.get("min_score") is not None:
        conditions.append(("minimum score", f"{settings['min_score']:g}"))
    if settings.get("min_probability") is not None:
        conditions.append(("minimum probability", f"{settings['min_probability']:g}"))
    if reranking := settings.get("rerank"):
        conditions.append(_reranking(reranking))
    return conditions


def _reranking(reranking: dict[str, Any]) -> tuple[str, str]:
    """Return how the ranking was improved from the first matches, as (name, value)."""
    method, count = reranking["method"], reranking["count"]
    if reranking["alpha"] is None:
        return "re-ranked", f"the top {count} matches, by {method}"
    weight = f"weighted by score to the power {reranking['alpha']:g}"
    return "queries expanded", f"with the top {count} matches, {weight}"


def _leaks(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how many images both sets contain, as (name, value), if that was counted."""
    if "leaks" not in counts:
        return []
    images = f"{counts['leaked_queries']} queries and {counts['leaked_images']} gallery images"
    return [("leaks", f"{counts['leaks']} pairs of {images}, in leaks.parquet")]


def _facts(folder: Folder, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return the origin of the matches as (name, value): gallery, queries, network, settings."""
    counts, settings = manifest.counts, finished_output.read_settings(folder)
    facts = [
        ("gallery", f"{counts['gallery']} images"),
        ("queries", f"{counts['queries']} images in {_query_images(settings['queries'])}"),
        ("failed queries", str(counts["failures"])),
        ("matches per query", _format_top_k(settings["top_k"])),
        ("index", settings["index"]),
        *_conditions(settings),
        *_leaks(counts),
    ]
    index = open_folder(settings["index"])
    try:
        store = open_folder(finished_output.read_settings(index)["embeddings"])
        source = finished_output.read_settings(store)["input"]
        facts[0] = ("gallery", f"{counts['gallery']} images in {source}")
        bundle = parse_checksummed_json(index.child("model").read("bundle.json")) or {}
        network = f"{bundle['backbone']}, {bundle['pooling']} pooling"
        facts.insert(2, ("network", f"{network}, {bundle['dimension']} dimensions"))
    except (OSError, KeyError, LookalikeError):  # the index may have been moved or deleted
        pass
    return tuple(facts)
