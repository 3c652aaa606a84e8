"""What tells right from wrong: the labels in the matches, those of a file, or a qrels file."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.config.option_groups import Judging
from jobs.embedding.listing import read_labels_file
from retrieval.core.errors import InputError, LookalikeError, UsageError
from retrieval.core.schemas import BARRED, GALLERY_LABELS
from retrieval.evaluation.ground_truth import Truth
from retrieval.evaluation.labels import Labels
from retrieval.evaluation.qrels import Qrels, qrels_of, read_qrels
from retrieval.storage import finished_output
from retrieval.storage.finished_output import Manifest
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import Folder, open_folder

_LABELS, _BARRED = "labels.parquet", "barred/"


def open_truth(folder: Folder, manifest: Manifest, judging: Judging) -> Truth:
    """Open what judges finished matches, or refuse what cannot."""
    if judging.qrels is not None:
        if judging.labels is not None:
            raise UsageError("--labels and --qrels: one of them tells what is right; name one")
        return _read_qrels(judging.qrels, judging.junk_grade)
    barred = read_tables(folder, manifest, _BARRED, BARRED.schema)
    if judging.labels is None:
        gallery = read_tables(folder, manifest, _LABELS, GALLERY_LABELS.schema)
        return Labels(gallery, barred=barred)
    of_queries = read_labels_file(judging.labels, "queries")
    of_images = read_labels_file(judging.labels, "gallery")
    gallery = _counted(folder, judging.labels, of_images)
    return Labels(gallery, of_queries, of_images, barred)


def _read_qrels(path: str, junk: int) -> Qrels:
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--qrels {path} cannot be read ({error})") from error
    return qrels_of(read_qrels(data, path), junk)


def read_tables(
    folder: Folder, manifest: Manifest, prefix: str, schema: pa.Schema | None
) -> pa.Table:
    """Read all Parquet files of a finished output whose path begins so, checked, in order."""
    tables = [] if schema is None else [schema.empty_table()]
    return pa.concat_tables([*tables, *stream_tables(folder, manifest, prefix)])


def stream_tables(
    folder: Folder, manifest: Manifest, prefix: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Read them one after another, and only some columns."""
    for path in sorted(manifest.files):
        if path.startswith(prefix):
            data = finished_output.read_checked(folder, manifest.files[path])
            yield pq.read_table(io.BytesIO(data), columns=columns)


def _counted(folder: Folder, path: str, labels: pa.Table) -> pa.Table:
    """Count the gallery's images by the labels of a file; those of the file if the index is gone.

    The file may name images that the gallery does not have.
    """
    named = labels
    if (ids := gallery_ids(folder)) is not None:
        named = labels.filter(pc.is_in(labels["image_id"], value_set=ids))
        if len(named) == 0:
            theirs, ours = labels["image_id"].slice(0, 1), ids.slice(0, 1)
            raise InputError(
                f"--labels {path} names no image of the gallery (its first is "
                f"{_first(theirs)}, the gallery's {_first(ours)}); name the images as the gallery "
                "does, in a column image_id"
            )
    counts = Counter(named["label"].drop_null().to_pylist())
    columns = [pa.array(counts.keys(), pa.string()), pa.array(counts.values(), pa.int64())]
    return pa.table(columns, schema=GALLERY_LABELS.schema)


def _first(ids: Any) -> str:
    return repr(ids[0].as_py()) if len(ids) else "none"


def gallery_ids(folder: Folder) -> pa.ChunkedArray | None:
    """Give the gallery images that could be a match; None where their index is gone or changed."""
    from retrieval.index.shard import read_rows
    from retrieval.search.filters import parse_filter, passing

    settings = finished_output.read_settings(folder)
    try:
        index_folder = open_folder(settings["index"])
        index = finished_output.read_manifest(index_folder, kind="index")
        if index.sha256 != settings["index_sha256"]:
            return None
        found = [pa.chunked_array([], pa.string())]
        for number in range(index.counts["shards"]):
            rows = read_rows(index_folder, index, number)
            if settings["filter"] is not None:
                condition = parse_filter(settings["filter"], rows.schema)
                rows = rows.filter(pa.array(passing(condition, rows)))
            found.append(rows["image_id"])
    except (OSError, LookalikeError):
        return None
    return pa.chunked_array([chunk for column in found for chunk in column.chunks], pa.string())
