"""A source listed: every image once, in a scratch folder, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.groups import Reading
from jobs.progress import say
from jobs.settings import EmbedSettings
from retrieval.errors import AccessRefused, InputError
from retrieval.images.changes import items_at
from retrieval.images.containers import container_of
from retrieval.images.listing import labelled_rows, read_labels, write_listing
from retrieval.images.opening import Opener
from retrieval.images.sources.choose import open_source
from retrieval.images.sources.source import Source
from retrieval.storage.files import is_remote
from retrieval.storage.patience import is_refusal
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
    if note := source.note():
        say(note)
    _refuse_closed(settings.input, target, rows)
    if labels is not None and labelled_rows(target) == 0:
        say(
            f"--labels {settings.labels} names none of the {rows} {source.unit} of {settings.input}"
        )
    return Listed(target, rows, step, source.others)


def _refuse_closed(root: str, listing: Path, rows: int) -> None:
    """Refuse a remote source whose images may be listed but not read, by trying three of them.

    One that is refused among others is a line of the ledger.
    """
    tried = items_at(listing, np.unique([0, rows // 2, rows - 1])).to_pylist()
    if not all(is_remote(container_of(item["path"]) or item["path"]) for item in tried):
        return
    with Opener() as opener:
        for item in tried:
            try:
                opener.read(item["path"], item["place"], item["size"])
                return
            except Exception as error:  # noqa: BLE001 - of any kind: what it is is asked
                if not is_refusal(error):
                    return
                said = error
    raise AccessRefused(
        f"{root} shows its images to nobody with these credentials ({said}); give others"
    )


def read_labels_file(path: str, split: str | None) -> Any:
    """Read a labels file as a table (image_id, label), of one split where it names splits."""
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--labels {path} cannot be read ({error})") from error
    return read_labels(data, path, split)
