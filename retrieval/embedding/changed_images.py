"""Find images whose content changed, among those whose file size or time changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from retrieval.core.records import Chunk
from retrieval.sources.item_reader import ItemReader
from retrieval.storage.local import Folder
from retrieval.store.reader import read_unfinished_chunk


def find_changed_rows(
    folder: Folder, chunk: Chunk, items: list[dict[str, Any]], options: Mapping[str, Any]
) -> list[int]:
    """Return the rows of a chunk whose image has a different SHA-256 than in the store.

    An image that failed before, or that cannot be read any more, counts as changed, so that it is
    embedded again.

    Args:
        folder: The store.
        chunk: The chunk that the rows belong to.
        items: Rows of the new listing, with `row` of the store.
        options: Storage options of the source.
    """
    table = read_unfinished_chunk(folder, chunk)
    previous = dict(zip(table["row"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    with ItemReader(options) as reader:
        current = {item["row"]: _sha256(item, reader) for item in items}
    return [row for row, sha256 in current.items() if sha256 != previous.get(row)]


def _sha256(item: dict[str, Any], reader: ItemReader) -> str:
    """Return the SHA-256 of an image; an empty string if it can never be read."""
    try:
        data = reader.read(item["path"], item["place"], item["size"])
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(data).hexdigest()
