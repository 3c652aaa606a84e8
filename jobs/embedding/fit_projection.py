"""--pca: the projection, fitted on a seeded sample of the gallery before its first chunk."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.cluster.actor_pool import Make, Work, stream
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.prepare_model import Prepared, begun_settings
from jobs.runtime.progress import progress
from retrieval.core.errors import LookalikeError, UsageError
from retrieval.embedding.attempt import Attempt
from retrieval.listing.listing import sampled_items
from retrieval.storage.local import Folder
from retrieval.vectors.float_conversions import to_float32

SAMPLE = 8192
"""Images that are looked at: four for each of the 2,048 dimensions of a ResNet-50."""

_STEP = 128  # images a worker answers for at once


def projected(
    settings: EmbedSettings, where: Cluster, folder: Folder, prepared: Prepared, listing: Path
) -> Prepared:
    """Give the model with a projection to `--pca` dimensions; one that is there is not refitted."""
    bundle = prepared.bundle
    if bundle.projection is not None:
        raise UsageError(
            f"--pca {settings.pca}: the bundle has a projection already; leave --pca away, or name "
            "a bundle without one"
        )
    begun = None if settings.overwrite else begun_settings(folder)
    there = None
    if begun is not None:
        there = _bundle_in(folder)
        same = all(begun.get(key) == value for key, value in job(settings).items())
        if not same or (there and there.without_projection().digest != bundle.digest):
            return prepared  # another job, which is refused before anything is fitted
    fitted = there or bundle.with_projection(_fit(settings, where, prepared, listing))
    return dataclasses.replace(prepared, bundle=fitted)


def job(settings: EmbedSettings) -> dict[str, Any]:
    """Give what stands of it in job.json."""
    return {"pca": settings.pca, "pca_seed": settings.seed} if settings.pca else {}


def _bundle_in(folder: Folder) -> Any:
    """Give the bundle that an output holds already, or None."""
    from retrieval.models.bundle import read_bundle

    try:
        return read_bundle(folder)
    except (OSError, LookalikeError):
        return None


def _fit(settings: EmbedSettings, where: Cluster, prepared: Prepared, listing: Path) -> Any:
    """Embed the sample on the workers and fit, block by block in the order of the rows."""
    from retrieval.models.pca import Moments, unit

    items = sampled_items(listing, SAMPLE, settings.seed)
    firsts = list(range(0, len(items), _STEP))

    def called(first: int) -> str:
        return f"images {first} to {min(first + _STEP, len(items)) - 1} of the sample for --pca"

    shared = (prepared.for_workers(), items)
    make = _worker(settings, where.threads_beside(prepared.device))
    answers = stream(where, make, firsts, shared, prepared.device, called)
    moments = Moments(prepared.bundle.dimension)
    with progress("fit projection", len(items), "images") as bar:
        for first, block in _in_order(answers, firsts):
            moments.add(to_float32(unit(block)))
            done = min(_STEP, len(items) - first)
            bar.advance(done, done - len(block))
    return moments.fit(int(settings.pca or 0))


def _in_order(
    answers: Iterator[dict[str, Any]], firsts: list[int]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Bring blocks into the order of the rows: a sum of floats depends on it."""
    waiting: dict[int, str] = {}
    for first in firsts:
        while first not in waiting:
            answer = next(answers)
            waiting[answer["first"]] = answer["vectors"]
        yield first, np.load(io.BytesIO(base64.b64decode(waiting.pop(first))), allow_pickle=False)
    for _ in answers:  # let the workers go
        pass


def _worker(settings: EmbedSettings, threads: int) -> Make:
    """Give what an actor runs once to get the function that embeds a block of the sample."""
    max_pixels = settings.max_pixels

    def make(shared: tuple[Prepared, list[dict[str, Any]]]) -> Work:
        from retrieval.embedding.embed_batch import Decoding, embed_items
        from retrieval.models.embedder import Embedder

        prepared, items = shared
        embedder = Embedder(prepared.bundle, prepared.plan, prepared.ir)
        decoding = Decoding(max_pixels, "float32", threads)

        def work(first: int, attempt: Attempt) -> dict[str, Any]:
            block = items[first : first + _STEP]
            parts = [batch.vectors for batch in embed_items(block, embedder, decoding, attempt)]
            data = io.BytesIO()
            np.save(data, np.concatenate(parts), allow_pickle=False)
            return {"first": first, "vectors": base64.b64encode(data.getvalue()).decode()}

        return work

    return make
