"""A comparison of networks: its table, its page, and what is told of it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.comparison.dataset import Labelled
from jobs.evaluation.format_results import interval, table
from jobs.runtime.result import Result
from retrieval.core.confidence import FEWEST
from retrieval.core.schemas import COMPARISON
from retrieval.evaluation.combinations import MEASURES
from retrieval.evaluation.measures import measure_of
from retrieval.report.comparison_page import Comparison, best_of_each, render
from retrieval.storage import finished_output
from retrieval.storage.checksum import sealed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder

TABLE, PAGE = "compare.parquet", "compare.html"
_HEADINGS = ("backbone", "pooling", "pca", "metric", "dimension", "top-1", "top-3", "top-10", "mAP",
             "95 % interval", "img/s", "MB")  # fmt: skip
_NAMES = 4  # columns of names
METHOD = (
    "Each query is an image of a class of two or more, ranked against all other images, itself "
    "left out; what has its label is right. Rankings are exact and whole.",
    "pca: fitted on the compared images themselves, as run --pca is on its gallery, so it has "
    "seen what it is measured on.",
    "cosine compares directions; ip and l2 are measured on vectors as the network gave them "
    "(embed --no-normalize). Of vectors of unit length, as they are after pca, the three rank "
    "alike, and stand in one line as cosine.",
    f"Intervals speak of further images of these classes; there is none for fewer than {FEWEST} "
    "queries.",
    "img/s: embedded by one worker, decoding included, while this ran; it differs from run to run, "
    "all else does not. MB: parameters without the classifier.",
)


def combined(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Make the table COMPARISON, the best first."""
    ordered = sorted(
        rows,
        key=lambda row: (-row["map"], row["backbone"], row["pooling"], row["pca"] or 0,
                         row["metric"]),
    )  # fmt: skip
    return pa.Table.from_pylist(ordered, COMPARISON.schema)


def put_page(folder: Folder, made: pa.Table, labelled: Labelled, notes: Sequence[str]) -> None:
    """Put the table and the page, over what a killed run left."""
    said = labelled.sentences()
    page = Comparison(said[0], made.to_pylist(), (*said[1:], *notes), METHOD)
    folder.put(TABLE, sealed_parquet(made))
    folder.put(PAGE, render(page))


def result_of(
    output: str, folder: Folder, manifest: Manifest, labelled: Labelled, *, shorten: bool
) -> Result:
    """Tell a finished comparison; with `shorten` the best line of each network alone."""
    data = finished_output.read_checked(folder, manifest.files[TABLE])
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    shown = best_of_each(rows) if shorten else rows
    notes = [*labelled.sentences()[1:], *manifest.counts["notes"]]
    lines = [
        labelled.sentences()[0],
        *table(_HEADINGS, [_cells(row) for row in shown], _NAMES),
        *([f"the best of each network; all {len(rows)} combinations: {output}/{PAGE}, or --json"]
          if len(shown) < len(rows) else []),
        *(f"note: {note}" for note in notes), *METHOD, f"page: {output}/{PAGE}",
    ]  # fmt: skip
    values = {"output": output, "page": f"{output}/{PAGE}", "images": labelled.images,
              "classes": labelled.classes, "combinations": [_named(row) for row in rows],
              "notes": notes}  # fmt: skip
    return Result(values, tuple(lines))


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """Name the measures of a row of COMPARISON as ir-measures does."""
    ends = ("", "_low", "_high")
    names = {f"{key}{end}": f"{measure_of(key).name}{end}" for key in MEASURES for end in ends}
    return {names.get(column, column): value for column, value in row.items()}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    rate = row["images_per_second"]
    return (
        row["backbone"], row["pooling"], str(row["pca"] or "–"), row["metric"],
        str(row["dimension"]), *(f"{row[name]:.3f}" for name in ("top1", "top3", "top10", "map")),
        "–" if row["map_low"] is None else interval(row["map_low"], row["map_high"], ".3f"),
        "–" if rate is None else f"{rate:.1f}",
        f"{row['weight_bytes'] / 1e6:.1f}",
    )  # fmt: skip
