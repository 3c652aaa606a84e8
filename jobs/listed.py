"""A source listed: every image once, in a scratch folder, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

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
from retrieval.storage import finished
from retrieval.storage.files import is_remote, open_folder
from retrieval.storage.hosts import HostError
from retrieval.storage.patience import is_refusal
from retrieval.storage.reading import read_uri

_TRIED = 16
"""Images that are tried at most where none can be read; usually the first one can."""


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
        chunk_rows=settings.chunk_rows, note=lambda text: say(f"{settings.input}: {text}"),
    )  # fmt: skip
    if rows == 0:
        raise source.nothing()
    for note in (*(source.column_notes if labels is None else ()), *source.notes()):
        say(note)
    _refuse_closed(settings, target, rows)
    if labels is not None and labelled_rows(target) == 0:
        say(
            f"--labels {settings.labels} names none of the {rows} {source.unit} of {settings.input}"
        )
    return Listed(target, rows, step, source.others)


def _refuse_closed(settings: EmbedSettings, listing: Path, rows: int) -> None:
    """Refuse a remote source whose images may be listed but not read, by trying some of them.

    One that is refused among others is a line of the ledger, and so is a host that does not answer
    where a list spans several. One host that all images share and that has never shown any of them
    is refused here, before anything is written.
    """
    lines = np.unique(np.linspace(0, rows - 1, min(rows, _TRIED)).astype(np.int64))
    tried = items_at(listing, lines).to_pylist()
    stores = {_store_of(item["path"]) for item in tried}
    if len(stores) != 1 or stores == {None}:
        return
    error = _common_error(tried)
    if error is None or not _share_a_store(listing):
        return
    if is_refusal(error):
        raise AccessRefused(
            f"{settings.input} shows its images to nobody with these credentials ({error}); "
            "give others"
        )
    if not finished.is_finished(open_folder(settings.output)):
        raise InputError(
            f"none of the images of {settings.input} can be read ({error}); nothing is written: "
            "run the same command again when they can"
        )


def _common_error(tried: list[dict[str, Any]]) -> Exception | None:
    """Return the last error where a store refuses all of some images, or answers to none."""
    last: Exception | None = None
    with Opener() as opener:
        for item in tried:
            try:
                opener.read(item["path"], item["place"], item["size"])
                return None
            except Exception as error:  # noqa: BLE001 - of any kind: what it is is asked
                silent = isinstance(error, HostError) and error.status is None
                if not silent and not is_refusal(error):
                    return None
                last = error
    return last


def _share_a_store(listing: Path) -> bool:
    """Return whether all images of a listing lie in one store: a bucket, or one host."""
    stores: set[str | None] = set()
    with pq.ParquetFile(listing) as parquet:
        for batch in parquet.iter_batches(columns=["path"]):
            stores |= {_store_of(path) for path in batch["path"].to_pylist()}
            if len(stores) > 1:
                return False
    return True


def _store_of(path: str) -> str | None:
    """Return scheme and host or bucket of a remote path; None of a local one."""
    plain = container_of(path) or path
    return "/".join(plain.split("/", 3)[:3]) if is_remote(plain) else None


def read_labels_file(path: str, split: str | None) -> Any:
    """Read a labels file as a table (image_id, label), of one split where it names splits."""
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--labels {path} cannot be read ({error})") from error
    return read_labels(data, path, split)
