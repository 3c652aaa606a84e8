"""Listing of a source into a temporary file, and a check that its images can be read.

This happens before the output is claimed, so that a wrong input leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.config.options import parse_comma_list
from jobs.config.settings import EmbedSettings, ReadingOptions
from jobs.runtime.progress import print_message
from retrieval.core.errors import AccessRefused, InputError
from retrieval.listing.diff import read_items
from retrieval.listing.listing import count_labelled_rows, read_labels, write_listing
from retrieval.sources.base import Source
from retrieval.sources.box_columns import BoxColumns
from retrieval.sources.container_paths import container_of
from retrieval.sources.detect import open_source
from retrieval.sources.item_reader import ItemReader
from retrieval.storage import finished_output
from retrieval.storage.hosts import HostError
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import is_remote, open_folder
from retrieval.storage.retry import is_access_denied

_MAX_PROBES = 16
"""Largest number of images that are probed; probing ends with the first that can be read."""


@dataclass(frozen=True)
class SourceListing:
    """The listing of a source as it is now, in a temporary file."""

    path: Path
    rows: int
    chunk_rows: int
    other_files: int  # files that are not images


def open_input(settings: ReadingOptions, root: str) -> Source:
    """Open the source that `--input`, `--gallery` or `--queries` names."""
    boxes = None
    if settings.box_columns is not None:
        boxes = BoxColumns(tuple(parse_comma_list(settings.box_columns)), settings.box_units)
    return open_source(
        root, image_column=settings.image_column, id_column=settings.id_column, boxes=boxes
    )


def list_source(
    settings: EmbedSettings, source: Source, target: Path, split: str | None
) -> SourceListing:
    """Write the listing of a source to a local file.

    Args:
        settings: Labels, limit and chunk size of the listing.
        source: The source.
        target: The file to write.
        split: Rows of the labels file to use: "gallery" or "queries"; all if None.

    Raises:
        InputError: If the source is empty or invalid, or none of its images can be read.
    """
    labels = None if settings.labels is None else read_labels_file(settings.labels, split)
    rows, chunk_rows = write_listing(
        source.items(), target, columns=source.columns(), labels=labels, limit=settings.limit,
        chunk_rows=settings.chunk_rows,
        note=lambda text: print_message(f"{settings.input}: {text}"),
    )  # fmt: skip
    if rows == 0:
        raise source.empty_error()
    for note in (*(source.column_notes if labels is None else ()), *source.notes()):
        print_message(note)
    _refuse_unreadable(settings, target, rows)
    if labels is not None and count_labelled_rows(target) == 0:
        print_message(
            f"--labels {settings.labels} names none of the {rows} {source.unit} of {settings.input}"
        )
    return SourceListing(target, rows, chunk_rows, source.skipped_count)


def _refuse_unreadable(settings: EmbedSettings, listing: Path, rows: int) -> None:
    """Raise if a remote source can be listed but not read, found by probing some images.

    A single image that cannot be read is recorded in the ledger later, and so are the images of one
    of several hosts. Only a bucket or host that all images share, and that rejects every probe,
    raises an error here.
    """
    positions = np.unique(np.linspace(0, rows - 1, min(rows, _MAX_PROBES)).astype(np.int64))
    probed = read_items(listing, positions).to_pylist()
    locations = {_location_of(item["path"]) for item in probed}
    if len(locations) != 1 or locations == {None}:
        return
    error = _common_error(probed)
    if error is None or not _share_a_location(listing):
        return
    if is_access_denied(error):
        raise AccessRefused(
            f"access to the images of {settings.input} is denied with the current credentials "
            f"({error}); use credentials that may read them"
        )
    if not finished_output.is_finished(open_folder(settings.output)):
        raise InputError(
            f"none of the images of {settings.input} can be read ({error}); nothing is written: "
            "run the same command again later"
        )


def _common_error(probed: list[dict[str, Any]]) -> Exception | None:
    """Return the last error if all probes are denied or unanswered; None if one can be read."""
    last_error: Exception | None = None
    with ItemReader() as reader:
        for item in probed:
            try:
                reader.read(item["path"], item["place"], item["size"])
                return None
            except Exception as error:  # noqa: BLE001 - classified below
                unanswered = isinstance(error, HostError) and error.status is None
                if not unanswered and not is_access_denied(error):
                    return None
                last_error = error
    return last_error


def _share_a_location(listing: Path) -> bool:
    """Return whether all images of a listing are in one bucket or on one host."""
    locations: set[str | None] = set()
    with pq.ParquetFile(listing) as parquet:
        for batch in parquet.iter_batches(columns=["path"]):
            locations |= {_location_of(path) for path in batch["path"].to_pylist()}
            if len(locations) > 1:
                return False
    return True


def _location_of(path: str) -> str | None:
    """Return scheme and host (or bucket) of a remote path; None for a local one."""
    file = container_of(path) or path
    return "/".join(file.split("/", 3)[:3]) if is_remote(file) else None


def read_labels_file(path: str, split: str | None) -> Any:
    """Read a labels file, local or remote; see `retrieval.listing.listing.read_labels`."""
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--labels {path} cannot be read ({error})") from error
    return read_labels(data, path, split)
