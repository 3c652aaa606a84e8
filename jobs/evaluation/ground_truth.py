"""Ground truth of finished matches: stored labels, a labels file, or a qrels file."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.config.settings import RelevanceOptions
from jobs.embedding.listing import read_labels_file
from retrieval.core.errors import InputError, LookalikeError, UsageError
from retrieval.core.schemas import EXCLUSIONS, GALLERY_LABELS
from retrieval.evaluation.ground_truth import GroundTruth
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.qrels import Qrels, build_qrels, read_qrels
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import Folder, open_folder

_LABELS, _EXCLUSIONS = "labels.parquet", "barred/"


def open_ground_truth(folder: Folder, manifest: Manifest, options: RelevanceOptions) -> GroundTruth:
    """Return the ground truth that the options select.

    Raises UsageError if both --labels and --qrels are given, and InputError if a file cannot be
    read or has no image of the gallery.
    """
    if options.qrels is not None:
        if options.labels is not None:
            raise UsageError("--labels and --qrels are mutually exclusive")
        return _read_qrels(options.qrels, options.junk_grade)
    excluded_pairs = read_tables(folder, manifest, _EXCLUSIONS, EXCLUSIONS.schema)
    if options.labels is None:
        gallery = read_tables(folder, manifest, _LABELS, GALLERY_LABELS.schema)
        return Labels(gallery, excluded_pairs=excluded_pairs)
    query_labels = read_labels_file(options.labels, "queries")
    image_labels = read_labels_file(options.labels, "gallery")
    gallery = _count_labels(folder, options.labels, image_labels)
    return Labels(gallery, query_labels, image_labels, excluded_pairs)


def _read_qrels(path: str, junk: int) -> Qrels:
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--qrels {path} cannot be read ({error})") from error
    return build_qrels(read_qrels(data, path), junk)


def read_tables(
    folder: Folder, manifest: Manifest, prefix: str, schema: pa.Schema | None
) -> pa.Table:
    """Return the rows of all Parquet files below a path prefix, verified, in path order."""
    tables = [] if schema is None else [schema.empty_table()]
    return pa.concat_tables([*tables, *stream_tables(folder, manifest, prefix)])


def stream_tables(
    folder: Folder, manifest: Manifest, prefix: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the tables of all Parquet files below a path prefix, verified, in path order."""
    for path in sorted(manifest.files):
        if path.startswith(prefix):
            data = finished_output.read_verified(folder, manifest.files[path])
            yield pq.read_table(io.BytesIO(data), columns=columns)


def _count_labels(folder: Folder, path: str, labels: pa.Table) -> pa.Table:
    """Count the gallery images of each label of a labels file, as a table GALLERY_LABELS.

    Images that the gallery does not contain are not counted, unless the index cannot be read.
    """
    gallery_labels = labels
    if (ids := read_gallery_ids(folder)) is not None:
        gallery_labels = labels.filter(pc.is_in(labels["image_id"], value_set=ids))
        if len(gallery_labels) == 0:
            file_ids, gallery_ids = labels["image_id"].slice(0, 1), ids.slice(0, 1)
            raise InputError(
                f"--labels {path} contains no image of the gallery (its first is "
                f"{_first(file_ids)}, the gallery's {_first(gallery_ids)}); use the image_id "
                "values of the gallery"
            )
    counts = Counter(gallery_labels["label"].drop_null().to_pylist())
    columns = [pa.array(counts.keys(), pa.string()), pa.array(counts.values(), pa.int64())]
    return pa.table(columns, schema=GALLERY_LABELS.schema)


def _first(ids: Any) -> str:
    return repr(ids[0].as_py()) if len(ids) else "none"


def read_gallery_ids(folder: Folder) -> pa.ChunkedArray | None:
    """Return the ids of the possible matches; None if the index was removed or changed."""
    from retrieval.index.shard import read_live_rows
    from retrieval.search.filters import matching_rows, parse_filter

    settings = finished_output.read_settings(folder)
    try:
        index_folder = open_folder(settings["index"])
        index = finished_output.read_manifest(index_folder, kind="index")
        if index.sha256 != settings["index_sha256"]:
            return None
        columns = [pa.chunked_array([], pa.string())]
        for number in range(index.counts["shards"]):
            rows = read_live_rows(index_folder, index, number)
            if settings["filter"] is not None:
                condition = parse_filter(settings["filter"], rows.schema)
                rows = rows.filter(pa.array(matching_rows(condition, rows)))
            columns.append(rows["image_id"])
    except (OSError, LookalikeError):
        return None
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
