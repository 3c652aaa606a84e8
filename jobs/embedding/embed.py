"""lookalike embed: images, or vectors made elsewhere, to a store of vectors."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.cluster.resources import Cluster, cluster
from jobs.config.option_groups import Elsewhere, Model
from jobs.config.settings import EmbedSettings, content_of
from jobs.embedding import fit_projection
from jobs.embedding.fit_projection import projected
from jobs.embedding.listing import list_source, source_of
from jobs.embedding.precomputed_vectors import (
    CHUNK_ROWS,
    Given,
    are_vectors,
    given_vectors,
    job_of,
    with_rounding,
)
from jobs.embedding.prepare_model import Prepared, prepare
from jobs.embedding.store_sync import Growth
from jobs.runtime.check_output import check_output
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from jobs.runtime.run_metadata import Stopwatch
from retrieval.sources.base import Source
from retrieval.storage import finished_output, transaction
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, is_remote, open_folder


def start(settings: EmbedSettings) -> Result:
    """Embed a source and say what it came to."""
    check_output(settings, "store")
    with cluster(settings) as where:
        manifest, others = _embed(settings, where)
    return _summary(settings, manifest, others)


def embed(
    settings: EmbedSettings,
    where: Cluster,
    *,
    prepared: Prepared | Given | None = None,
    split: str | None = None,
    keep_equal: bool = False,
    stage: str = "embed",
    unsettle: Callable[[], None] = lambda: None,
) -> Manifest:
    """Make a store, going on with what is there; `prepared` stands instead of the model options.

    `split` names the rows of a labels file that are meant; `keep_equal` limits `--overwrite` to a
    store of other settings. `unsettle` is called before the store is changed, so that whoever
    depends on it can take back what it made of the old one.
    """
    manifest, _ = _embed(
        settings, where, prepared=prepared, split=split, keep_equal=keep_equal, stage=stage,
        unsettle=unsettle,
    )  # fmt: skip
    return manifest


def _embed(
    settings: EmbedSettings,
    where: Cluster,
    *,
    prepared: Prepared | Given | None = None,
    split: str | None = None,
    keep_equal: bool = False,
    stage: str = "embed",
    unsettle: Callable[[], None] = lambda: None,
) -> tuple[Manifest, int]:
    """Make a store; also give how many files of its source are not images."""
    watch = Stopwatch(where)
    folder = open_folder(settings.output)
    with tempfile.TemporaryDirectory() as scratch:
        if prepared is None and are_vectors(settings.input, settings):
            prepared = given_vectors(settings.input, settings, metric=None)
        if isinstance(prepared, Given):
            settings = dataclasses.replace(settings, chunk_rows=settings.chunk_rows or CHUNK_ROWS)
        listed = list_source(
            settings, _source(settings, prepared), Path(scratch) / "listing.parquet", split
        )
        prepared = prepared or prepare(settings, where, folder)
        dtype = prepared.stored_dtype(settings.embedding_dtype)
        settings = dataclasses.replace(settings, embedding_dtype=dtype)
        if settings.pca and isinstance(prepared, Prepared):
            prepared = projected(settings, where, folder, prepared, listed.path)
        transaction.begin(
            folder, "store", _job(settings, prepared), overwrite=settings.overwrite,
            keep_equal=keep_equal,
        )  # fmt: skip
        _put_bundle(folder, prepared)
        growth = Growth(settings, where, folder, prepared, listed, stage, unsettle)
        manifest = growth.bring_up()
    if growth.worked:
        _write_run(watch, settings, folder, manifest, growth)
    return manifest, listed.others


def _source(settings: EmbedSettings, prepared: Prepared | Given | None) -> Source:
    if isinstance(prepared, Given):
        return prepared.source
    return source_of(settings, settings.input)


def _put_bundle(folder: Folder, prepared: Prepared | Given) -> None:
    if prepared.bundle is not None and not finished_output.is_finished(folder):
        from retrieval.models.bundle import write_bundle

        write_bundle(folder, prepared.bundle)


def _write_run(
    watch: Stopwatch, settings: EmbedSettings, folder: Folder, manifest: Manifest, growth: Growth
) -> None:
    images, failed = manifest.counts["images"], manifest.counts["failures"]
    if failed:
        say(f"{failed} of {images} {growth.prepared.unit} failed and stand in the ledger")
    rounding = {"rounding": asdict(growth.rounding)} if growth.rounding.vectors else {}
    watch.write(
        folder, settings, done=growth.embedded, files=manifest.files.values(), images=images,
        failures=failed, embedded=growth.embedded, worker_seconds=round(growth.seconds, 3),
        **rounding,
    )  # fmt: skip


def _job(settings: EmbedSettings, prepared: Prepared | Given) -> dict[str, Any]:
    """Give what shapes a store; the bundle's digest stands for all that made the bundle."""
    place = {"input": open_folder(settings.input).uri()}
    if isinstance(prepared, Given):
        return {**job_of(settings, prepared), **place}
    resolved = {f.name for stage in (Model, Elsewhere) for f in dataclasses.fields(stage)}
    content = {k: v for k, v in content_of(settings).items() if k not in resolved} | place
    return {
        **content,
        **prepared.job(),
        **fit_projection.job(settings),
        "bundle": prepared.bundle.digest,
    }


def _summary(settings: EmbedSettings, manifest: Manifest, others: int) -> Result:
    counts = manifest.counts
    what = "vectors taken" if are_vectors(settings.input, settings) else "images embedded"
    lines = [
        f"{counts['rows']} of {counts['images']} {what} in {counts['dimension']} "
        f"dimensions, {counts['failures']} failed: {settings.output}",
    ]
    if others:
        lines.append(f"{others} other files in {settings.input} are not read")
    values = {"output": settings.output, **counts, "others": others}
    return with_rounding(Result(values, tuple(lines)), open_folder(settings.output))


def is_store(path: str) -> bool:
    """Return whether a path is an output of lookalike or its beginnings, not a folder of images."""
    if not is_remote(path) and not Path(path).is_dir():
        return False
    return finished_output.is_output(open_folder(path))
