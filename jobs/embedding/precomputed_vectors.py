"""Precomputed vectors (Parquet or .npy files) as the input of the embed stage.

`PrecomputedVectors` has the interface of `PreparedModel`: instead of embedding images, the workers
read, check and cast vectors, and write them into a store, which is updated like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from jobs.cluster.driver_process import estimate_seconds
from jobs.config.options import AUTO
from jobs.config.settings import (
    EmbedSettings,
    EngineOptions,
    ImageOptions,
    ModelOptions,
    RetriableListingOptions,
    VectorSourceOptions,
    content_settings,
)
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import read_rounding
from retrieval.core.errors import UsageError
from retrieval.core.records import Chunk, ChunkResult
from retrieval.core.schemas import Metric
from retrieval.embedding.attempt import Attempt
from retrieval.sources.vectors import VectorSource, is_npy, open_vectors
from retrieval.storage.local import Folder

_IMAGE_OPTIONS = ("image_column", "box_columns", "weights", "bundle", "image_size", "resize",
                  "pooling", "pca", "augment_inference", "engine", "precision", "device",
                  "batch_size")  # fmt: skip
"""Options that apply to images only, of those whose default is None."""

DEFAULT_CHUNK_ROWS = 4096
"""Vectors per chunk: few enough that a worker reads them in less than a second."""


@dataclass(frozen=True)
class PrecomputedVectors:
    """An opened source of vectors; has the interface of `PreparedModel` that embedding needs."""

    source: VectorSource
    dimension: int
    metric: Metric | None  # metric of the index or search; None if not known yet
    bundle = None
    unit = "vectors"
    device = "cpu"

    @property
    def zeros(self) -> bool:
        """Return whether zero vectors are kept: ip and l2 are defined for them, cosine is not."""
        return self.metric in ("ip", "l2")

    @property
    def rescale(self) -> bool:
        """Return whether vectors may be scaled before rounding: cosine does not depend on it."""
        return self.metric == "cosine"

    def resolve_dtype(self, embedding_dtype: str) -> str:
        """Resolve `--embedding-dtype`; auto: float16 for float16 vectors, else float32."""
        if embedding_dtype != AUTO:
            return embedding_dtype
        kind = self.source.number_type()
        return "float16" if (kind.kind, kind.itemsize) == ("f", 2) else "float32"

    def estimate_seconds(self, rows: int) -> float:
        """Estimate the seconds of one core to import `rows` vectors."""
        return estimate_seconds(rows * self.dimension * self.source.number_type().itemsize)

    def job_fields(self) -> dict[str, Any]:
        """Return the fields of the job.json of a ranking for its query vectors."""
        return {name: getattr(self.source, name, None) for name in ("embedding_column", "ids")}

    def with_engine(self) -> PrecomputedVectors:
        """Return self, since there is no network to convert."""
        return self

    def for_workers(self) -> PrecomputedVectors:
        """Return self, since workers need all of it."""
        return self

    def make_chunk_function(
        self, folder: Folder, settings: EmbedSettings, _: int
    ) -> Callable[[Chunk, Attempt], ChunkResult]:
        """Return the function that imports the vectors of a chunk; called once in each worker.

        One reader serves all chunks, because it continues in a file where the last chunk ended.
        """
        from retrieval.embedding.import_vectors import ImportSettings, import_chunk
        from retrieval.sources.item_reader import ItemReader

        importing = ImportSettings(
            self.dimension, settings.embedding_dtype, self.zeros, self.rescale
        )
        reader = ItemReader()
        return lambda chunk, attempt: import_chunk(chunk, folder, importing, reader, attempt)


def is_vector_source(root: str, settings: VectorSourceOptions) -> bool:
    """Return whether a source contains vectors instead of images, by its files and the options.

    Raises:
        UsageError: If `--ids` is given for anything but .npy files.
    """
    if is_npy(root) or settings.embedding_column is not None:
        return True
    if settings.ids is not None:
        raise UsageError(f"--ids is for .npy files, and {root} is none; omit it")
    return False


def open_precomputed_vectors(
    root: str, settings: Any, *, metric: Metric | None
) -> PrecomputedVectors:
    """Open a source of vectors.

    `settings` are those of any stage with options for listing and for vector sources.

    Raises:
        UsageError: If an option is given that applies to images only.
        InputError: If there are no vectors.
    """
    for name in _IMAGE_OPTIONS:
        if getattr(settings, name, None) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is for images, and {root} holds vectors; omit it")
    source = open_vectors(
        root, embedding_column=settings.embedding_column, id_column=settings.id_column,
        ids=settings.ids,
    )  # fmt: skip
    return PrecomputedVectors(source, source.dimension(), metric)


def vector_job_settings(settings: EmbedSettings, vectors: PrecomputedVectors) -> dict[str, Any]:
    """Return the settings for the job.json of a store of vectors, without the image options."""
    for_images = {f.name for options in (ModelOptions, EngineOptions) for f in fields(options)}
    for_images |= {field.name for field in fields(ImageOptions)}
    content = {k: v for k, v in content_settings(settings).items() if k not in for_images}
    return {
        **content,
        "dimension": vectors.dimension,
        "zero_vectors": vectors.zeros,
        "rescale": vectors.rescale,
        "bundle": None,
    }


def import_option_names() -> set[str]:
    """Return the names of the options of `index` that only apply to precomputed vectors."""
    groups = (RetriableListingOptions, VectorSourceOptions)
    return {field.name for group in groups for field in fields(group)} | {"embedding_dtype"}


def add_rounding(result: Result, store: Folder, unit: str = "vectors") -> Result:
    """Return a result with the rounding errors of the last import into a store, if measured.

    `unit` is a plural noun for the vectors.
    """
    rounding = read_rounding(store)
    if rounding is None:
        return result
    values = {f"rounding_{name}": value for name, value in dataclasses.asdict(rounding).items()}
    lines = (rounding.sentence(unit),) if rounding.changed else ()
    return dataclasses.replace(
        result, values={**result.values, **values}, lines=(*result.lines, *lines)
    )
