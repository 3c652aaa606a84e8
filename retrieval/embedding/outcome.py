"""What becomes of an item: a row of a part with its vector, or a line of the ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.records import Rounding
from retrieval.core.schemas import LISTING

_MESSAGE = 300  # characters of an error kept in the ledger
_OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>")
"""What Pillow calls the bytes it was given; the place in memory differs from run to run."""

Failure = dict[str, Any]  # a line of the ledger


@dataclass(frozen=True)
class Embedded:
    """A batch that has vectors now: rows of a part without them, and these."""

    rows: list[dict[str, Any]]
    vectors: NDArray[Any]  # (n, d) of the stored dtype
    failures: list[Failure]
    size: int  # bytes that were read
    rounding: Rounding = field(default_factory=Rounding)


class WorkerDied(Exception):
    """An image killed its worker each time; the same words in each run, so that bytes are too."""

    def __init__(self) -> None:
        super().__init__("the worker died each time it had this image at hand")


def failure_of(item: dict[str, Any], stage: str, error: BaseException) -> Failure:
    """Give the line of the ledger of an item that failed at a stage."""
    message = " ".join(_OBJECT.sub("", str(error)).split())[:_MESSAGE] or type(error).__name__
    kept = {key: item[key] for key in ("row", "image_id", "path", "label")}
    return {**kept, "stage": stage, "error": type(error).__name__, "message": message}


def row_of(
    item: dict[str, Any], sha256: str, width: int | None, height: int | None
) -> dict[str, Any]:
    """Give a row of a part without its vector; further columns of the listing go along."""
    own = ("row", "image_id", "path", "label")
    kept = {k: v for k, v in item.items() if k in own or k not in LISTING.schema.names}
    return {**kept, "width": width, "height": height, "sha256": sha256}


def unfit(vector: NDArray[Any]) -> str | None:
    """Say why a vector cannot be searched for, or nothing."""
    if not np.isfinite(vector).all():
        return "the vector is not finite as stored"
    return None if vector.any() else "the vector has no length"
