"""What the page of a report says of all queries, and of what they were made from."""

from __future__ import annotations

from typing import Any

from jobs.evaluation.judge_matches import Evaluation
from retrieval.core.errors import LookalikeError
from retrieval.core.records import Certificate
from retrieval.report.chart import Chart
from retrieval.report.page import Page
from retrieval.report.rows import SHOWN_MATCHES, Shown
from retrieval.storage import finished_output
from retrieval.storage.checksum import read_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder


def page_of(
    folder: Folder,
    manifest: Manifest,
    evaluation: Evaluation | None,
    charts: tuple[Chart, ...],
    *,
    title: str,
    shown: Shown,
    queries: int,
) -> Page:
    """Say what the page shows above its queries, of which there are `queries` in all."""
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
        charts=charts,
    )


def _images_of(queries: str) -> str:
    """Give the folder of images behind a store of queries, where there is one."""
    try:
        return str(finished_output.read_settings(open_folder(queries))["input"])
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
    counts, settings = manifest.counts, finished_output.read_settings(folder)
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
        store = open_folder(finished_output.read_settings(index)["embeddings"])
        source = finished_output.read_settings(store)["input"]
        facts[0] = ("gallery", f"{counts['gallery']} images in {source}")
        bundle = read_json(index.child("model").read("bundle.json")) or {}
        network = f"{bundle['backbone']}, {bundle['pooling']} pooling"
        facts.insert(2, ("network", f"{network}, {bundle['dimension']} numbers an image"))
    except (OSError, KeyError, LookalikeError):  # the index may have moved; the matches still stand
        pass
    return tuple(facts)
