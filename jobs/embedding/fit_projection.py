"""Fit the PCA projection of a store on a seeded sample of the gallery, before its first chunk.

The workers embed the sample; the driver accumulates its moments in the order of the rows, so that
the projection does not depend on which worker was faster.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.cluster.actor_pool import MakeWork, Work, stream
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.prepare_model import PreparedModel, read_begun_settings
from jobs.embedding.recipe import ProjectionChoice
from jobs.runtime.progress import progress
from retrieval.core.errors import LookalikeError, UsageError
from retrieval.embedding.attempt import Attempt
from retrieval.listing.listing import sample_items
from retrieval.storage.local import Folder
from retrieval.vectors.float_conversions import to_float32

if TYPE_CHECKING:  # torch comes with these
    from retrieval.models.bundle import Bundle
    from retrieval.models.pca import Projection

SAMPLE = 8192
"""Images in the sample: four for each of the 2,048 dimensions of a ResNet-50."""

_BLOCK = 128  # images that a worker embeds per call


def fit_projection(
    settings: EmbedSettings,
    cluster: Cluster,
    folder: Folder,
    prepared: PreparedModel,
    listing: Path,
    choice: ProjectionChoice,
) -> Bundle:
    """Return the model's bundle with a projection to `choice.dimensions` dimensions.

    If the output is a store with the same settings, its projection is read from its bundle. If it
    has other settings, the bundle is returned unchanged, since the caller rejects that output.

    Raises:
        UsageError: If the bundle has a projection already.
    """
    bundle = prepared.bundle
    if bundle.projection is not None:
        raise UsageError(
            f"--pca {choice.dimensions}: the bundle has a projection already; omit --pca, or "
            "specify a bundle without one"
        )
    begun = None if settings.overwrite else read_begun_settings(folder)
    if begun is not None:
        if any(begun.get(k) != v for k, v in choice.job_fields(settings.seed).items()):
            return bundle
        stored = _read_stored_bundle(folder)
        if stored is not None:
            same_model = stored.without_projection().digest == bundle.digest
            return stored if same_model else bundle
    return bundle.with_projection(_fit(settings, cluster, prepared, listing, choice.dimensions))


def _read_stored_bundle(folder: Folder) -> Bundle | None:
    """Read the bundle of an output; None if there is none or it cannot be read."""
    from retrieval.models.bundle import read_bundle

    try:
        return read_bundle(folder)
    except (OSError, LookalikeError):
        return None


def _fit(
    settings: EmbedSettings, cluster: Cluster, prepared: PreparedModel, listing: Path,
    dimensions: int,
) -> Projection:  # fmt: skip
    """Embed the sample on the workers and fit the projection in the order of the rows."""
    from retrieval.models.pca import StreamingMoments
    from retrieval.vectors.normalize import normalize_rows

    items = sample_items(listing, SAMPLE, settings.seed)
    starts = list(range(0, len(items), _BLOCK))

    def describe(first: int) -> str:
        return f"images {first} to {min(first + _BLOCK, len(items)) - 1} of the sample for --pca"

    shared = (prepared.for_workers(), items)
    make = _block_worker(settings, cluster.threads_beside(prepared.device))
    answers = stream(cluster, make, starts, shared, prepared.device, describe)
    moments = StreamingMoments(prepared.bundle.dimension)
    with progress("fit projection", len(items), "images") as bar:
        for first, block in _in_order(answers, starts):
            moments.add(to_float32(normalize_rows(block)))
            count = min(_BLOCK, len(items) - first)
            bar.advance(count, count - len(block))
    return moments.fit(dimensions)


def _in_order(
    answers: Iterator[dict[str, Any]], starts: list[int]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, vectors) of each block in row order, on which float sums depend."""
    pending: dict[int, str] = {}
    for first in starts:
        while first not in pending:
            answer = next(answers)
            pending[answer["first"]] = answer["vectors"]
        yield first, np.load(io.BytesIO(base64.b64decode(pending.pop(first))), allow_pickle=False)
    for _ in answers:  # exhaust the stream, so that it releases its workers
        pass


def _block_worker(settings: EmbedSettings, threads: int) -> MakeWork:
    """Return the function that each actor calls once to create its work function.

    That embeds a block of the sample, given its first row.
    """
    max_pixels = settings.max_pixels

    def make(shared: tuple[PreparedModel, list[dict[str, Any]]]) -> Work:
        from retrieval.embedding.embed_batch import DecodeSettings, embed_items

        prepared, items = shared
        embedder = prepared.load_embedder()
        decoding = DecodeSettings(max_pixels, "float32", threads)

        def work(first: int, attempt: Attempt) -> dict[str, Any]:
            block = items[first : first + _BLOCK]
            parts = [batch.vectors for batch in embed_items(block, embedder, decoding, attempt)]
            data = io.BytesIO()
            np.save(data, np.concatenate(parts), allow_pickle=False)
            return {"first": first, "vectors": base64.b64encode(data.getvalue()).decode()}

        return work

    return make
