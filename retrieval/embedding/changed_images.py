"""Tell, of images whose file has another size or time than it had, which have other bytes now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from retrieval.core.records import Chunk
from retrieval.sources.item_reader import Opener
from retrieval.storage.local import Folder
from retrieval.store.reader import sealed_parts


def changed_rows(
    folder: Folder, chunk: Chunk, items: list[dict[str, Any]], options: Mapping[str, Any]
) -> list[int]:
    """Give the rows of a chunk whose image has other bytes now, by its SHA-256.

    `items` hold each row (of the store) with the path that opens the image now. One that failed
    before, or that cannot be read now, counts as changed: it is tried again.
    """
    table = sealed_parts(folder, chunk)
    before = dict(zip(table["row"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    with Opener(options) as opener:
        now = {item["row"]: _sha256(item, opener) for item in items}
    return [row for row, sha256 in now.items() if sha256 != before.get(row)]


def _sha256(item: dict[str, Any], opener: Opener) -> str:
    """Give the SHA-256 of an image, or nothing where it can never be read."""
    try:
        data = opener.read(item["path"], item["place"], item["size"])
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(data).hexdigest()
