"""lookalike evaluate: matches and labels to measures with intervals."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.listed import read_labels_file
from jobs.result import Result
from jobs.settings import EvaluateSettings
from retrieval.evaluation.measures import Measured, measure
from retrieval.evaluation.truth import judge
from retrieval.records import Certificate
from retrieval.storage import finished
from retrieval.storage.files import Folder, open_folder
from retrieval.storage.finished import Manifest
from retrieval.tables import FAILURES, MATCHES


@dataclass(frozen=True)
class Evaluation:
    """What a ranking is worth."""

    measures: tuple[Measured, ...]
    queries: int
    left_out: int


def start(settings: EvaluateSettings) -> Result:
    """Evaluate matches and say what they are worth."""
    folder = open_folder(settings.matches)
    manifest = finished.read_manifest(folder, kind="matches")
    evaluation = evaluate(folder, manifest, settings.labels, settings.seed)
    sentence = Certificate(**manifest.counts["certificate"]).sentence()
    return Result(flat(evaluation), (*lines(evaluation), sentence))


def evaluate(
    folder: Folder,
    manifest: Manifest,
    labels: str | None,
    seed: int,
    only: frozenset[str] | None = None,
) -> Evaluation:
    """Judge matches by the labels in them, or by those of a file; `only` queries of some labels."""
    matches = read_tables(folder, manifest, "matches/", MATCHES.schema)
    failed = read_tables(folder, manifest, "failures/", FAILURES.schema)
    counts = read_tables(folder, manifest, "labels.parquet", None)
    gallery = dict(zip(*(counts[name].to_pylist() for name in ("label", "images")), strict=True))
    of_queries = of_images = None
    if labels is not None:
        of_queries = _labels(labels, "queries")
        of_images = _labels(labels, "gallery")
        gallery = {}
        for label in of_images.values():
            gallery[label] = gallery.get(label, 0) + 1
    judged = judge(matches, failed, gallery, of_queries, of_images, only)
    measures = tuple(measure(judged, seed=seed))
    return Evaluation(measures, len(judged.query_ids), judged.left_out)


def _labels(path: str, split: str) -> dict[str, str | None]:
    table = read_labels_file(path, split)
    return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def read_tables(
    folder: Folder, manifest: Manifest, prefix: str, schema: pa.Schema | None
) -> pa.Table:
    """Read all Parquet files of a finished output whose path begins so, checked, in order."""
    tables = [] if schema is None else [schema.empty_table()]
    for path in sorted(manifest.files):
        if path.startswith(prefix):
            data = finished.read_checked(folder, manifest.files[path])
            tables.append(pq.read_table(io.BytesIO(data)))
    return pa.concat_tables(tables)


def flat(evaluation: Evaluation) -> dict[str, Any]:
    """Give the measures with flat keys, as --json has them."""
    values: dict[str, Any] = {}
    for measured in evaluation.measures:
        values[measured.name] = measured.value
        values[measured.name + "_low"] = measured.low
        values[measured.name + "_high"] = measured.high
    return {**values, "queries": evaluation.queries, "left_out": evaluation.left_out}


def lines(evaluation: Evaluation) -> tuple[str, ...]:
    """Give the measures as a person reads them."""
    table = [
        f"{m.name:>6} {m.value:.4f}  [{m.low:.4f}, {m.high:.4f}]  {m.meaning}"
        for m in evaluation.measures
    ]
    left = f", {evaluation.left_out} without label left out" if evaluation.left_out else ""
    return (*table, f"{evaluation.queries} queries{left}; in brackets: 95 % bootstrap intervals")
