"""A source listed: every image once, in a scratch folder, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.groups import Reading
from jobs.progress import say
from jobs.settings import EmbedSettings
from retrieval.errors import InputError
from retrieval.images.listing import labelled_rows, read_labels, write_listing
from retrieval.images.sources.choose import open_source
from retrieval.images.sources.source import Source
from retrieval.storage.reading import read_uri


@dataclass(frozen=True)
class Listed:
    """The listing of a source as it is now."""

    path: Path
    rows: int
    chunk_rows: int
    others: int  # files that were met and are not images


def source_of(settings: Reading, root: str) -> Source:
    """Open what `--input`, `--gallery` or `--queries` names."""
    return open_source(root, image_column=settings.image_column, id_column=settings.id_column)


def list_source(settings: EmbedSettings, source: Source, target: Path, split: str | None) -> Listed:
    """Write the listing; a source that has nothing to list is refused."""
    labels = None if settings.labels is None else read_labels_file(settings.labels, split)
    rows, step = write_listing(
        source.items(), target, columns=source.columns(), labels=labels, limit=settings.limit,
        chunk_rows=settings.chunk_rows,
    )  # fmt: skip
    if rows == 0:
        raise source.nothing()
    if labels is not None and labelled_rows(target) == 0:
        say(
            f"--labels {settings.labels} names none of the {rows} {source.unit} of {settings.input}"
        )
    return Listed(target, rows, step, source.others)


def read_labels_file(path: str, split: str | None) -> Any:
    """Read a labels file as a table (image_id, label), of one split where it names splits."""
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--labels {path} cannot be read ({error})") from error
    return read_labels(data, path, split)
