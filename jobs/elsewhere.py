"""Vectors made elsewhere, in Parquet or .npy files: they stand where otherwise a model is prepared.

They pass through a store of our own, which follows its source as one of images does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.groups import Elsewhere, EngineOptions, Listing, Model
from jobs.options import AUTO
from jobs.result import Result
from jobs.runfile import rounding_of
from jobs.settings import EmbedSettings, content_of
from retrieval.errors import UsageError
from retrieval.images.sources.vectors import VectorSource, is_npy, open_vectors
from retrieval.model.attempt import Attempt
from retrieval.records import Chunk, ChunkResult
from retrieval.storage.files import Folder
from retrieval.tables import Metric

_OF_IMAGES = ("image_column", "weights", "bundle", "image_size", "resize", "pca", "engine",
              "precision", "device", "batch_size")  # fmt: skip
"""Options that mean nothing for vectors, of those that have no default."""

CHUNK_ROWS = 4096
"""Vectors of a part: reading so many takes no second, so that a lost chunk costs nothing."""


@dataclass(frozen=True)
class Given:
    """Vectors that are there already; has what the making of a store asks of `Prepared`."""

    source: VectorSource
    dimension: int
    metric: Metric | None  # that they are searched by; None: not known yet
    bundle = None
    unit = "vectors"
    device = "cpu"

    @property
    def zeros(self) -> bool:
        """Return whether zero vectors are kept: ip and l2 are defined for them."""
        return self.metric in ("ip", "l2")

    @property
    def rescale(self) -> bool:
        """Return whether vectors may be scaled before rounding, which changes no cosine."""
        return self.metric == "cosine"

    def stored_dtype(self, asked: str) -> str:
        """Resolve `--embedding-dtype`: float16 stays so, all else becomes float32."""
        if asked != AUTO:
            return asked
        kind = self.source.number_type()
        return "float16" if (kind.kind, kind.itemsize) == ("f", 2) else "float32"

    def job(self) -> dict[str, Any]:
        """Give what stands in the job.json of what these vectors are asked of."""
        return {name: getattr(self.source, name, None) for name in ("embedding_column", "ids")}

    def ready(self) -> Given:
        """Convert nothing."""
        return self

    def for_workers(self) -> Given:
        """Hide nothing."""
        return self

    def chunk_step(
        self, folder: Folder, settings: EmbedSettings, _: int
    ) -> Callable[[Chunk, Attempt], ChunkResult]:
        """Give what takes the vectors of a chunk; called once in each worker.

        One opener for all chunks: it goes on in a container from where the last one ended.
        """
        from retrieval.images.opening import Opener
        from retrieval.model.take_vectors import Taking, take_chunk

        taking = Taking(self.dimension, settings.embedding_dtype, self.zeros, self.rescale)
        opener = Opener()
        return lambda chunk, attempt: take_chunk(chunk, folder, taking, opener, attempt)


def are_vectors(root: str, settings: Elsewhere) -> bool:
    """Tell whether a source that may hold images is meant as vectors."""
    if is_npy(root) or settings.embedding_column is not None:
        return True
    if settings.ids is not None:
        raise UsageError(f"--ids is for .npy files, and {root} is none; leave it away")
    return False


def given_vectors(root: str, settings: Any, *, metric: Metric | None) -> Given:
    """Open vectors by the options of a stage with `Listing` and `Elsewhere`, or refuse them."""
    for name in _OF_IMAGES:
        if getattr(settings, name, None) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is for images, and {root} holds vectors; leave it away")
    source = open_vectors(
        root, embedding_column=settings.embedding_column, id_column=settings.id_column,
        ids=settings.ids,
    )  # fmt: skip
    return Given(source, source.dimension(), metric)


def job_of(settings: EmbedSettings, given: Given) -> dict[str, Any]:
    """Give what shapes a store of vectors: the model options have no say."""
    of_images = {f.name for stage in (Model, EngineOptions) for f in dataclasses.fields(stage)}
    of_images |= {"image_column", "max_pixels"}
    content = {k: v for k, v in content_of(settings).items() if k not in of_images}
    more = {
        "dimension": given.dimension, "zero_vectors": given.zeros, "rescale": given.rescale,
        "bundle": None,
    }  # fmt: skip
    return {**content, **more}


def of_elsewhere() -> set[str]:
    """Name the options of an index that are for vectors made elsewhere."""
    listed = {field.name for stage in (Listing, Elsewhere) for field in dataclasses.fields(stage)}
    return listed | {"embedding_dtype"}


def with_rounding(result: Result, store: Folder, what: str = "vectors") -> Result:
    """Add what rounding changed when vectors were last taken into a store, if that was measured."""
    rounding = rounding_of(store)
    if rounding is None:
        return result
    values = {f"rounding_{name}": value for name, value in dataclasses.asdict(rounding).items()}
    lines = (rounding.sentence(what),) if rounding.changed else ()
    return dataclasses.replace(
        result, values={**result.values, **values}, lines=(*result.lines, *lines)
    )
