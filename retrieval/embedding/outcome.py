"""The two outcomes of an item: a row of a part with its vector, or a row of the ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.core.records import Rounding

_MESSAGE = 300  # characters of an error message kept in the ledger
_OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>")
"""Names of objects in messages of Pillow; their addresses differ from run to run."""

Failure = dict[str, Any]  # a row of the ledger


@dataclass(frozen=True)
class EmbeddedBatch:
    """The outcome of a batch: rows of a part with their vectors, and failures."""

    rows: list[dict[str, Any]]  # as `part_row` returns them
    vectors: NDArray[Any]  # (n, d) of the stored dtype
    failures: list[Failure]
    size: int  # bytes that were read
    rounding: Rounding = field(default_factory=Rounding)


class WorkerDied(Exception):
    """The worker crashed on this image in each attempt.

    The message is fixed, so that the ledger has the same bytes in each run.
    """

    def __init__(self) -> None:
        super().__init__("the worker died each time it had this image at hand")


def failure_record(item: dict[str, Any], stage: str, error: BaseException) -> Failure:
    """Return the ledger row of an item that failed at a stage."""
    message = " ".join(_OBJECT.sub("", str(error)).split())[:_MESSAGE] or type(error).__name__
    columns = {key: item[key] for key in ("row", "image_id", "path", "label")}
    return {**columns, "stage": stage, "error": type(error).__name__, "message": message}


def part_row(
    item: dict[str, Any], sha256: str, width: int | None, height: int | None
) -> dict[str, Any]:
    """Return what is known of an embedded item beside its vector and its line of the listing."""
    names = {"row": item["row"], "image_id": item["image_id"]}
    return {**names, "width": width, "height": height, "sha256": sha256}


def vector_problem(vector: NDArray[Any]) -> str | None:
    """Return why a vector cannot be searched for; None if it can."""
    if not np.isfinite(vector).all():
        return "the vector is not finite as stored"
    return None if vector.any() else "the vector has no length"
