"""lookalike embed: images to a store of vectors."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import projection
from jobs.cluster import Cluster, cluster
from jobs.pool import Make, stream
from jobs.prepare import Prepared, prepare
from jobs.progress import progress, say
from jobs.projection import projected
from jobs.result import Result
from jobs.runfile import Stopwatch, peak_memory
from jobs.settings import EmbedSettings, Model, content_of
from retrieval.embeddings import store
from retrieval.embeddings.segment import claim_segment, finish_store
from retrieval.errors import InputError
from retrieval.images.chunks import chunks
from retrieval.images.listing import digest, labelled_rows, read_labels, write_listing
from retrieval.images.sources.folder import FolderSource
from retrieval.storage import commit, finished
from retrieval.storage.files import Folder, is_remote, open_folder
from retrieval.storage.finished import Manifest
from retrieval.storage.reading import read_uri
from retrieval.tables import Chunk, FileRecord


def start(settings: EmbedSettings) -> Result:
    """Embed a source and say what it came to."""
    with cluster(settings.ray_address, settings.workers) as where:
        manifest = embed(settings, where)
    return _summary(settings.output, manifest)


def embed(
    settings: EmbedSettings,
    where: Cluster,
    *,
    prepared: Prepared | None = None,
    split: str | None = None,
    keep_equal: bool = False,
    stage: str = "embed",
) -> Manifest:
    """Make a store, going on with what is there; `prepared` stands instead of the model options.

    `split` names the rows of a labels file that are meant; `keep_equal` limits `--overwrite` to a
    store of other settings.
    """
    watch = Stopwatch()
    folder = open_folder(settings.output)
    with tempfile.TemporaryDirectory() as scratch:
        listing = Path(scratch) / "listing.parquet"
        segment = _list(settings, listing, split)
        prepared = prepared or prepare(settings, where, folder)
        if settings.pca:
            prepared = projected(settings, where, folder, prepared, listing)
        commit.begin(
            folder, "store", _job(settings, prepared), overwrite=settings.overwrite,
            keep_equal=keep_equal,
        )  # fmt: skip
        claim_segment(folder, segment, listing, settings.input)
    if finished.is_finished(folder):
        return finished.read_manifest(folder, kind="store")
    from retrieval.model.bundle import write_bundle

    bundle = prepared.bundle
    write_bundle(folder, bundle)
    images, step = segment["images"], segment["chunk_rows"]
    work = store.pending(folder, chunks(images, step))
    known, peak = _embed_chunks(settings, where, folder, work, stage, prepared)
    manifest = finish_store(
        folder, segment["images"], bundle.dimension, known, settings.max_error_rate
    )
    if failed := manifest.counts["failures"]:
        say(f"{failed} of {images} images failed and stand in the ledger")
    watch.write(
        folder, settings, images=images, failures=manifest.counts["failures"],
        worker_peak_memory_bytes=peak,
    )  # fmt: skip
    return manifest


def _job(settings: EmbedSettings, prepared: Prepared) -> dict[str, Any]:
    """Give what shapes a store; the bundle's digest stands for all that made the bundle."""
    resolved = {field.name for field in dataclasses.fields(Model)}
    content = {k: v for k, v in content_of(settings).items() if k not in resolved}
    content["input"] = open_folder(settings.input).uri()
    plan = dataclasses.asdict(prepared.plan)
    return {**content, **plan, **projection.job(settings), "bundle": prepared.bundle.digest}


def _list(settings: EmbedSettings, target: Path, split: str | None) -> dict[str, Any]:
    labels = None if settings.labels is None else read_labels_file(settings.labels, split)
    items = FolderSource(settings.input).items()
    rows, step = write_listing(
        items, target, labels=labels, limit=settings.limit, chunk_rows=settings.chunk_rows
    )
    if rows == 0:
        raise InputError(f"{settings.input} holds no images; name a folder with photos")
    if labels is not None and labelled_rows(target) == 0:
        say(f"--labels {settings.labels} names none of the {rows} images of {settings.input}")
    return {
        "images": rows,
        "chunk_rows": step,
        "chunks": -(-rows // step),
        "files": {store.LISTING: digest(target)},
    }


def read_labels_file(path: str, split: str | None) -> Any:
    """Read a labels file as a table (image_id, label), of one split where it names splits."""
    try:
        data = read_uri(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--labels {path} cannot be read ({error})") from error
    return read_labels(data, path, split)


def _embed_chunks(
    settings: EmbedSettings,
    where: Cluster,
    folder: Folder,
    work: list[Chunk],
    stage: str,
    prepared: Prepared,
) -> tuple[list[FileRecord], int]:
    """Embed what is left of a store; gives the files and the largest worker's peak memory."""
    known: list[FileRecord] = []
    peak = 0
    by_number = {chunk.number: chunk for chunk in work}
    device = prepared.plan.device
    threads = max(1, where.cpus // where.gpus) if work and device == "cuda" else 0
    make = _worker(folder, by_number, settings, threads)
    with progress(stage, sum(c.last - c.first for c in work), "images") as bar:
        for answer in (
            stream(where, make, list(by_number), prepared.for_workers(), device) if work else ()
        ):
            known += [FileRecord(**record) for record in answer["files"]]
            peak = max(peak, answer["peak_memory"])
            bar.advance(answer["rows"] + answer["failures"], answer["failures"])
    return known, peak


def _worker(
    folder: Folder, by_number: dict[int, Chunk], settings: EmbedSettings, threads: int
) -> Make:
    """Give what an actor runs once to get the function that embeds a chunk."""
    max_pixels, dtype = settings.max_pixels, settings.embedding_dtype

    def make(prepared: Prepared) -> Callable[[int], dict[str, Any]]:
        from retrieval.model.embed_chunk import embed_chunk
        from retrieval.model.embed_items import Decoding
        from retrieval.model.embedding import Embedder

        embedder = Embedder(prepared.bundle, prepared.plan, prepared.ir)
        decoding = Decoding(max_pixels, dtype, threads)

        def work(number: int) -> dict[str, Any]:
            done = embed_chunk(by_number[number], folder, embedder, decoding)
            return {**dataclasses.asdict(done), "peak_memory": peak_memory()}

        return work

    return make


def _summary(output: str, manifest: Manifest) -> Result:
    counts = manifest.counts
    lines = (
        f"{counts['rows']} of {counts['images']} images embedded in {counts['dimension']} "
        f"dimensions, {counts['failures']} failed: {output}",
    )
    return Result({"output": output, **counts}, lines)


def is_store(path: str) -> bool:
    """Tell a store (or the beginnings of one) from a folder of images."""
    if not is_remote(path) and not Path(path).is_dir():
        return False
    return open_folder(path).exists(finished.JOB)
