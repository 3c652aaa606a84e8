"""Find images whose content changed, among those whose file has another size or time."""

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
    """Return the rows of a chunk whose image has another SHA-256 now.

    An image that failed before, or that cannot be read now, counts as changed, so that it is
    embedded again.

    Args:
        folder: The store.
        chunk: The chunk that the rows belong to.
        items: Rows of the new listing, with `row` of the store.
        options: Storage options of the source.
    """
    table = read_unfinished_chunk(folder, chunk)
    before = dict(zip(table["row"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    with ItemReader(options) as opener:
        now = {item["row"]: _sha256(item, opener) for item in items}
    return [row for row, sha256 in now.items() if sha256 != before.get(row)]


def _sha256(item: dict[str, Any], opener: ItemReader) -> str:
    """Return the SHA-256 of an image; an empty string if it can never be read."""
    try:
        data = opener.read(item["path"], item["place"], item["size"])
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(data).hexdigest()
