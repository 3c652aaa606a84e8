"""Embed chunks of a listing on the cluster, with a pool of actors that each load the model once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cluster import actor_pool
from jobs.cluster.actor_pool import MakeWork, Work
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.precomputed_vectors import PrecomputedVectors
from jobs.embedding.prepare_model import PreparedModel
from jobs.runtime.progress import progress
from retrieval.core.records import Chunk, ChunkResult, FileRecord, Rounding
from retrieval.embedding.attempt import Attempt
from retrieval.storage.local import Folder

if TYPE_CHECKING:  # torch comes with it
    from jobs.embedding.decode_stage import DecodeStage


@dataclass(frozen=True)
class EmbedContext:
    """Context shared by all chunks of a store."""

    settings: EmbedSettings
    cluster: Cluster
    folder: Folder
    prepared: PreparedModel | PrecomputedVectors  # with its network converted for the engine


def embed_chunks(
    context: EmbedContext, chunks: list[Chunk], images: int, stage: str
) -> Iterator[ChunkResult]:
    """Embed chunks on the cluster and yield their results in the order they finish.

    A chunk whose part exists is only read and checked. `images` and `stage` are the total and the
    name of the progress bar.
    """
    cluster, prepared = context.cluster, context.prepared
    device = prepared.device
    make = _chunk_worker(context.folder, chunks, context.settings, cluster.threads_beside(device))
    decoding = None
    if isinstance(prepared, PreparedModel) and cluster.decodes_separately(device):
        decoding = _decode_stage(context, prepared, chunks)
        device = "cuda" if cluster.gpus else device  # `--device cpu` embeds on these nodes too

    def describe(number: int) -> str:
        if decoding is not None and number >= len(chunks):
            return decoding.batch_name(number - len(chunks))
        chunk = chunks[number]
        first, last = chunk.base + chunk.first, chunk.base + chunk.last - 1
        return f"chunk {chunk.number} (rows {first} to {last})"

    numbers = list(range(len(chunks)))
    answers = actor_pool.stream(
        cluster, make, numbers, prepared.for_workers(), device, describe, decoding
    )
    with progress(stage, images, prepared.unit, cluster) as bar:
        for answer in answers:
            bar.advance(answer["rows"] + answer["failures"], answer["failures"])
            files = tuple(FileRecord(**record) for record in answer.pop("files"))
            rounding = Rounding(**answer.pop("rounding"))
            yield ChunkResult(**answer, files=files, rounding=rounding)


def _decode_stage(
    context: EmbedContext, prepared: PreparedModel, chunks: list[Chunk]
) -> DecodeStage:
    """Return the tasks that decode the images of the chunks."""
    from jobs.embedding.decode_stage import DecodeStage
    from retrieval.embedding.embed_batch import DecodeSettings

    settings = context.settings
    decoding = DecodeSettings(settings.max_pixels, settings.embedding_dtype)
    transform = prepared.bundle.transform
    return DecodeStage(context.folder, chunks, transform, decoding, context.cluster.cpus)


def _chunk_worker(
    folder: Folder, chunks: list[Chunk], settings: EmbedSettings, threads: int
) -> MakeWork:
    """Return the function that each actor calls once to create its work function."""

    def make(prepared: PreparedModel | PrecomputedVectors) -> Work:
        embed_chunk = prepared.make_chunk_function(folder, settings, threads)

        def work(number: int, attempt: Attempt, *batches: Any) -> dict[str, Any]:
            return dataclasses.asdict(embed_chunk(chunks[number], attempt, *batches))

        return work

    return make
