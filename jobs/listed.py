"""A source listed: every image once, in a scratch folder, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.progress import say
from jobs.settings import EmbedSettings
from retrieval.errors import InputError
from retrieval.images.listing import labelled_rows, read_labels, write_listing
from retrieval.images.sources.folder import FolderSource
from retrieval.storage.reading import read_uri


@dataclass(frozen=True)
class Listed:
    """The listing of a source as it is now."""

    path: Path
    rows: int
    chunk_rows: int


def list_source(settings: EmbedSettings, target: Path, split: str | None) -> Listed:
    """Write the listing; a source without images is refused."""
    labels = None if settings.labels is None else read_labels_file(settings.labels, split)
    items = FolderSource(settings.input).items()
    rows, step = write_listing(
        items, target, labels=labels, limit=settings.limit, chunk_rows=settings.chunk_rows
    )
    if rows == 0:
        raise InputError(f"{settings.input} holds no images; name a folder with photos")
    if labels is not None and labelled_rows(target) == 0:
        say(f"--labels {settings.labels} names none of the {rows} images of {settings.input}")
    return Listed(target, rows, step)


def read_labels_file(path: str, split: str | None) -> Any:
    """Read a labels file as a table (image_id, label), of one split where it names splits."""
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--labels {path} cannot be read ({error})") from error
    return read_labels(data, path, split)
