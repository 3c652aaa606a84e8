"""The pictures of finished matches: charts for the page, and PNG files.

What cannot be drawn (the index has moved, the images are gone) is left out, and `note` is told why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jobs.config.options import MAX_PIXELS
from jobs.indexing.index import read_table
from jobs.reporting.contact_sheets import Note, grids
from retrieval.core.errors import LookalikeError, Mismatch, StorageFailure
from retrieval.core.output_layout import REPORT_MARK
from retrieval.core.records import Certificate
from retrieval.evaluation.ground_truth import UNKNOWN, WRONG, Truth
from retrieval.report.chart import Chart
from retrieval.report.charts.canvas import Drawing
from retrieval.report.charts.embedding_map import lay_out, map_drawing
from retrieval.report.charts.recall import recall_drawing
from retrieval.report.charts.scores import scores_drawing
from retrieval.report.gallery_sample import gallery_sample
from retrieval.report.standings import Standings, read_standings
from retrieval.report.thumbnails import thumbnails
from retrieval.storage import finished_output
from retrieval.storage.checksum import sealed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, open_folder
from retrieval.store.reader import open_store, vectors_of

_MAPPED = 1200  # images of the gallery on the map
_OURS = re.compile(r"((grid|before-after)-\d{5}|recall|scores|map)\.png")


def pictures_of(
    folder: Folder, manifest: Manifest, truth: Truth | None, *, note: Note, seed: int = 0
) -> dict[str, bytes]:
    """Draw finished matches as PNG files, by name: grids of queries, then the charts."""
    standings = read_standings(folder, manifest, truth)
    sheets = grids(folder, manifest, standings, truth, note, seed)
    charts = _drawings(folder, manifest, standings, note, seed)
    return {**sheets, **{f"{drawing.name}.png": drawing.png() for drawing in charts}}


def charts_of(
    folder: Folder, manifest: Manifest, truth: Truth | None, *, note: Note, seed: int = 0
) -> tuple[Chart, ...]:
    """Draw what the page shows beside the queries: recall, scores and the map of the gallery."""
    standings = read_standings(folder, manifest, truth)
    return tuple(one.chart() for one in _drawings(folder, manifest, standings, note, seed))


def put_pictures(target: Folder, pictures: Mapping[str, bytes]) -> None:
    """Put pictures into a folder of their own, in place of those of an earlier call.

    Its mark comes first: where the folder lies among photos, their listing passes it over.
    """
    target.put(REPORT_MARK, sealed_json({"pictures": sorted(pictures)}))
    for entry in list(target.entries()):
        if _OURS.fullmatch(entry.path) and entry.path not in pictures:
            target.delete(entry.path)
    for name, data in pictures.items():
        target.put(name, data)


def _drawings(
    folder: Folder, manifest: Manifest, standings: Standings, note: Note, seed: int
) -> list[Drawing]:
    settings = finished_output.read_settings(folder)
    certificate = Certificate(**manifest.counts["certificate"])
    groups = {
        "right": standings.scores[standings.grades > 0],
        "wrong": standings.scores[standings.grades == WRONG],
        "unknown": standings.scores[standings.grades == UNKNOWN],
    }
    index = open_folder(settings["index"])
    made = [
        _unless_gone("recall", note, lambda: _recall(index, settings, certificate)),
        scores_drawing(groups, manifest.counts["metric"]),
        _unless_gone("map", note, lambda: _map(index, settings, seed)),
    ]
    return [drawing for drawing in made if drawing is not None]


def _unless_gone(what: str, note: Note, draw: Callable[[], Drawing | None]) -> Drawing | None:
    """Draw from an index or a store that may be gone since; what fails for now still fails."""
    try:
        return draw()
    except StorageFailure:
        raise
    except (OSError, KeyError, LookalikeError) as error:
        note(f"no picture {what}: {error}")
        return None


def _index(index: Folder, settings: Mapping[str, Any]) -> Manifest:
    manifest = finished_output.read_manifest(index, kind="index")
    if manifest.sha256 != settings["index_sha256"]:
        raise Mismatch(f"{index.uri()} has changed since these matches were made")
    return manifest


def _recall(index: Folder, settings: Mapping[str, Any], certificate: Certificate) -> Drawing | None:
    if certificate.nprobe >= certificate.nlist:
        return None
    curve = read_table(index, _index(index, settings), "recall.parquet")
    return recall_drawing(curve, certificate, settings["top_k"])


def _map(index: Folder, settings: Mapping[str, Any], seed: int) -> Drawing | None:
    made = _index(index, settings)
    made_of = finished_output.read_settings(index)
    store = open_store(open_folder(made_of["embeddings"]))
    if store.manifest.sha256 != made.counts["embeddings_sha256"]:
        raise Mismatch(f"{store.folder.uri()} has changed since it was indexed")
    sample = gallery_sample(store, _MAPPED, seed)
    if len(sample) == 0:
        return None
    layout = lay_out(vectors_of(sample))
    paths = sample["path"].to_pylist()
    wanted = {place: paths[place] for place in layout.thumbnails if store.bundle and paths[place]}
    read = thumbnails(set(wanted.values()), max_pixels=MAX_PIXELS)
    photos = {place: read[path] for place, path in wanted.items() if path in read}
    return map_drawing(layout, sample["label"].to_pylist(), photos, store.rows)
