"""Output of a comparison: its table, its HTML page and its summary."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.comparison.dataset import LabelledDataset
from jobs.evaluation.format_results import format_interval, format_table
from jobs.runtime.result import Result
from retrieval.core.confidence import MIN_SAMPLE_SIZE
from retrieval.core.schemas import COMPARISON
from retrieval.evaluation.combinations import MEASURES
from retrieval.evaluation.measures import find_measure
from retrieval.report.comparison_page import ComparisonPage, best_per_network, render
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

TABLE, PAGE = "compare.parquet", "compare.html"
_HEADINGS = ("backbone", "pooling", "pca", "metric", "dimension", "top-1", "top-3", "top-10", "mAP",
             "95 % interval", "img/s", "MB")  # fmt: skip
_NAME_COLUMNS = 4  # columns of names
METHOD = (
    "Each query is an image of a class with at least two images, ranked against all other images; "
    "images with its label are right. Rankings are exact and complete.",
    "pca: fitted on the compared images themselves, as run --pca fits it on its gallery, so it is "
    "measured on its training data.",
    "cosine compares directions; ip and l2 are measured on vectors that are not normalized (embed "
    "--no-normalize). For vectors of unit length, as after pca, the three give the same ranking, "
    "shown as cosine.",
    "Intervals apply to further images of these classes; there is none for fewer than "
    f"{MIN_SAMPLE_SIZE} queries.",
    "img/s: images embedded per second by one worker, decoding included; only this value differs "
    "from run to run. MB: parameters without the classifier.",
)


def comparison_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return the table COMPARISON of result rows, the highest mAP first."""
    ordered = sorted(
        rows,
        key=lambda row: (-row["map"], row["backbone"], row["pooling"], row["pca"] or 0,
                         row["metric"]),
    )  # fmt: skip
    return pa.Table.from_pylist(ordered, COMPARISON.schema)


def write_comparison(
    folder: Folder, table: pa.Table, dataset: LabelledDataset, notes: Sequence[str]
) -> None:
    """Write the table and the page, replacing those of an interrupted run."""
    sentences = dataset.sentences()
    page = ComparisonPage(sentences[0], table.to_pylist(), (*sentences[1:], *notes), METHOD)
    folder.put(TABLE, checksummed_parquet(table))
    folder.put(PAGE, render(page))


def format_comparison(
    output: str, folder: Folder, manifest: Manifest, dataset: LabelledDataset, *, shorten: bool
) -> Result:
    """Format a finished comparison; with `shorten` only the best row of each network."""
    data = finished_output.read_verified(folder, manifest.files[TABLE])
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    shown = best_per_network(rows) if shorten else rows
    notes = [*dataset.sentences()[1:], *manifest.counts["notes"]]
    lines = [
        dataset.sentences()[0],
        *format_table(_HEADINGS, [_format_row(row) for row in shown], _NAME_COLUMNS),
        *([f"the best of each network; all {len(rows)} combinations: {output}/{PAGE}, or --json"]
          if len(shown) < len(rows) else []),
        *(f"note: {note}" for note in notes), *METHOD, f"page: {output}/{PAGE}",
    ]  # fmt: skip
    values = {"output": output, "page": f"{output}/{PAGE}", "images": dataset.images,
              "classes": dataset.classes,
              "combinations": [_with_measure_names(row) for row in rows],
              "notes": notes}  # fmt: skip
    return Result(values, tuple(lines))


def _with_measure_names(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of COMPARISON with the measures named as in ir-measures."""
    ends = ("", "_low", "_high")
    names = {f"{key}{end}": f"{find_measure(key).name}{end}" for key in MEASURES for end in ends}
    return {names.get(column, column): value for column, value in row.items()}


def _format_row(row: dict[str, Any]) -> tuple[str, ...]:
    rate = row["images_per_second"]
    return (
        row["backbone"], row["pooling"], str(row["pca"] or "–"), row["metric"],
        str(row["dimension"]), *(f"{row[name]:.3f}" for name in ("top1", "top3", "top10", "map")),
        "–" if row["map_low"] is None else format_interval(row["map_low"], row["map_high"], ".3f"),
        "–" if rate is None else f"{rate:.1f}",
        f"{row['weight_bytes'] / 1e6:.1f}",
    )  # fmt: skip
