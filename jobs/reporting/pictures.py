"""Pictures of finished matches: charts for the report page, and PNG files.

Pictures that cannot be drawn, for instance because the index was moved, are omitted, and the reason
is passed to the callback `note`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jobs.config.options import MAX_PIXELS
from jobs.indexing.index import read_table
from jobs.reporting.contact_sheets import Note, draw_grids
from retrieval.core.errors import LookalikeError, Mismatch, StorageFailure
from retrieval.core.output_layout import REPORT_MARK
from retrieval.core.records import Certificate
from retrieval.evaluation.ground_truth import UNKNOWN, WRONG, GroundTruth
from retrieval.report.chart import Chart
from retrieval.report.charts.canvas import ChartDrawing
from retrieval.report.charts.embedding_map import compute_layout, draw_map
from retrieval.report.charts.recall import draw_recall
from retrieval.report.charts.scores import draw_scores
from retrieval.report.gallery_sample import sample_gallery
from retrieval.report.query_outcomes import QueryOutcomes, read_outcomes
from retrieval.report.thumbnails import read_thumbnails
from retrieval.storage import finished_output
from retrieval.storage.checksum import checksummed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import open_store, read_vectors

_MAP_IMAGES = 1200  # images of the gallery on the map
_PICTURE_NAME = re.compile(r"((grid|before-after)-\d{5}|recall|scores|map)\.png")


def draw_pictures(
    folder: Folder,
    manifest: Manifest,
    ground_truth: GroundTruth | None,
    *,
    note: Note,
    seed: int = 0,
) -> dict[str, bytes]:
    """Return PNG files by name: grids of queries with their matches, then the charts."""
    outcomes = read_outcomes(folder, manifest, ground_truth)
    sheets = draw_grids(folder, manifest, outcomes, ground_truth, note, seed)
    charts = _drawings(folder, manifest, outcomes, note, seed)
    return {**sheets, **{f"{drawing.name}.png": drawing.png() for drawing in charts}}


def draw_charts(
    folder: Folder,
    manifest: Manifest,
    ground_truth: GroundTruth | None,
    *,
    note: Note,
    seed: int = 0,
) -> tuple[Chart, ...]:
    """Return the charts of the report page: recall, scores and the map of the gallery."""
    outcomes = read_outcomes(folder, manifest, ground_truth)
    return tuple(drawing.chart() for drawing in _drawings(folder, manifest, outcomes, note, seed))


def write_pictures(target: Folder, pictures: Mapping[str, bytes]) -> None:
    """Write pictures into a folder, replacing those of an earlier call.

    A marker file is written first; listings of a photo folder that contains this folder skip it.
    """
    target.put(REPORT_MARK, checksummed_json({"pictures": sorted(pictures)}))
    for entry in list(target.entries()):
        if _PICTURE_NAME.fullmatch(entry.path) and entry.path not in pictures:
            target.delete(entry.path)
    for name, data in pictures.items():
        target.put(name, data)


def _drawings(
    folder: Folder, manifest: Manifest, outcomes: QueryOutcomes, note: Note, seed: int
) -> list[ChartDrawing]:
    settings = finished_output.read_settings(folder)
    certificate = Certificate(**manifest.counts["certificate"])
    groups = {
        "right": outcomes.scores[outcomes.grades > 0],
        "wrong": outcomes.scores[outcomes.grades == WRONG],
        "unknown": outcomes.scores[outcomes.grades == UNKNOWN],
    }
    index = open_folder(settings["index"])
    drawings = [
        _draw_if_available("recall", note, lambda: _recall(index, settings, certificate)),
        draw_scores(groups, manifest.counts["metric"]),
        _draw_if_available("map", note, lambda: _map(index, settings, seed)),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _draw_if_available(
    name: str, note: Note, draw: Callable[[], ChartDrawing | None]
) -> ChartDrawing | None:
    """Draw from an index or store that may have been moved; return None if that fails.

    Raises StorageFailure, which is temporary.
    """
    try:
        return draw()
    except StorageFailure:
        raise
    except (OSError, KeyError, LookalikeError) as error:
        note(f"no picture {name}: {error}")
        return None


def _read_index_manifest(index: Folder, settings: Mapping[str, Any]) -> Manifest:
    manifest = finished_output.read_manifest(index, kind="index")
    if manifest.sha256 != settings["index_sha256"]:
        raise Mismatch(f"{index.uri()} has changed since these matches were made")
    return manifest


def _recall(
    index: Folder, settings: Mapping[str, Any], certificate: Certificate
) -> ChartDrawing | None:
    if certificate.reads_all_lists:
        return None
    curve = read_table(index, _read_index_manifest(index, settings), "recall.parquet")
    return draw_recall(curve, certificate, settings["top_k"])


def _map(index: Folder, settings: Mapping[str, Any], seed: int) -> ChartDrawing | None:
    manifest = _read_index_manifest(index, settings)
    index_settings = finished_output.read_settings(index)
    store = open_store(open_folder(index_settings["embeddings"]))
    if store.manifest.sha256 != manifest.counts["embeddings_sha256"]:
        raise Mismatch(f"{store.folder.uri()} has changed since it was indexed")
    sample = sample_gallery(store, _MAP_IMAGES, seed)
    if len(sample) == 0:
        return None
    layout = compute_layout(read_vectors(sample))
    paths = sample["path"].to_pylist()
    thumbnail_paths = {row: paths[row] for row in layout.thumbnails if store.bundle and paths[row]}
    images = read_thumbnails(set(thumbnail_paths.values()), max_pixels=MAX_PIXELS)
    photos = {row: images[path] for row, path in thumbnail_paths.items() if path in images}
    return draw_map(layout, sample["label"].to_pylist(), photos, store.rows)
