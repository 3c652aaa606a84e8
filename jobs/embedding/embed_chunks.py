"""Chunks embedded on the cluster: what an actor makes once, and what it answers for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.cluster import actor_pool
from jobs.cluster.actor_pool import Make, Work
from jobs.cluster.resources import Cluster
from jobs.config.settings import EmbedSettings
from jobs.embedding.precomputed_vectors import Given
from jobs.embedding.prepare_model import Prepared
from jobs.runtime.progress import progress
from retrieval.core.records import Chunk, ChunkResult, FileRecord, Rounding
from retrieval.embedding.attempt import Attempt
from retrieval.storage.local import Folder


@dataclass(frozen=True)
class Embedding:
    """What embedding chunks of a store needs beside the chunks."""

    settings: EmbedSettings
    where: Cluster
    folder: Folder
    prepared: Prepared | Given  # with its engine


def embed_chunks(
    with_: Embedding, work: list[Chunk], images: int, stage: str
) -> Iterator[ChunkResult]:
    """Give what each chunk came to, in any order.

    Chunks that are done already are only read and vouched for.
    """
    where, prepared = with_.where, with_.prepared
    device = prepared.device
    make = _worker(with_.folder, work, with_.settings, where.threads_beside(device))

    def called(number: int) -> str:
        chunk = work[number]
        first, last = chunk.base + chunk.first, chunk.base + chunk.last - 1
        return f"chunk {chunk.number} (rows {first} to {last})"

    numbers = list(range(len(work)))
    answers = actor_pool.stream(where, make, numbers, prepared.for_workers(), device, called)
    with progress(stage, images, prepared.unit, where) as bar:
        for answer in answers:
            bar.advance(answer["rows"] + answer["failures"], answer["failures"])
            files = tuple(FileRecord(**record) for record in answer.pop("files"))
            rounding = Rounding(**answer.pop("rounding"))
            yield ChunkResult(**answer, files=files, rounding=rounding)


def _worker(folder: Folder, work: list[Chunk], settings: EmbedSettings, threads: int) -> Make:
    """Give what an actor runs once to get the function that does a chunk."""

    def make(prepared: Prepared | Given) -> Work:
        step = prepared.chunk_step(folder, settings, threads)

        def do(number: int, attempt: Attempt) -> dict[str, Any]:
            return dataclasses.asdict(step(work[number], attempt))

        return do

    return make
