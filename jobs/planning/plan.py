"""The `plan` command: estimate the time, memory and disk of `run` before it starts.

The sources are listed as `run` lists them. A sample of the gallery is processed by the stages of
the job in a temporary folder (`probe.py`), and the costs of the whole job are computed from these
measurements (`retrieval/planning/costs.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from jobs.cluster.resources import Cluster, open_cluster
from jobs.config.options import parse_cluster
from jobs.config.settings import EmbedSettings, PlanSettings, derive_settings
from jobs.embedding.listing import SourceListing, list_source, open_input
from jobs.embedding.prepare_model import PreparedModel, prepare_model, resolve_embedding_dtype
from jobs.planning.estimate import (
    estimate_counts,
    estimate_image_bytes,
    estimate_rates,
    estimate_sizes,
)
from jobs.planning.format_plan import PlanEstimate, format_plan
from jobs.planning.probe import Probe
from jobs.runtime.check_output import check_inputs_outside
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.planning.costs import WorkerPool, failure_interval
from retrieval.storage.local import is_remote, open_folder
from retrieval.storage.temporary import temporary_name

_LONG_LISTING = 60.0  # seconds of listing after which a note is printed


def start(settings: PlanSettings) -> Result:
    """Estimate the costs of a job and return them as the result."""
    return format_plan(plan(settings, time.time() - psutil.Process().create_time()))


def plan(settings: PlanSettings, startup: float) -> PlanEstimate:
    """Measure a sample and estimate the job; `startup` is the age of this process in seconds.

    Raises as `run` does for invalid inputs, and TooManyFailures if no image of the sample can be
    embedded.
    """
    if settings.output is not None:
        check_inputs_outside(settings)
    nodes = _parse_nodes(settings.cluster)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temp_dir:
        settings = dataclasses.replace(
            settings, output=settings.output or f"{temp_dir}/output",
            embedding_dtype=resolve_embedding_dtype(settings.embedding_dtype),
        )  # fmt: skip
        listings, listing_seconds = _list_sources(settings, Path(temp_dir))
        with (
            open_cluster(settings) as cluster,
            _open_probe(settings, cluster, Path(temp_dir)) as probe,
        ):
            fleet, missing = _plan_workers(settings, cluster, probe.prepared, nodes)
            local_fleet = _plan_workers(settings, cluster, probe.prepared, None)[0]
            estimate_counts(settings, probe, listings)  # raises if the index cannot be planned
            probe.run(listings["gallery"], listings.get("queries"))
            started = time.monotonic()
        probe.seconds["start"] += startup + time.monotonic() - started
        counts = estimate_counts(settings, probe, listings)
        image_bytes = {
            side: estimate_image_bytes(listed, probe) for side, listed in listings.items()
        }
        listing_bytes = sum(listed.path.stat().st_size for listed in listings.values())
    rates = estimate_rates(probe, counts, listing_seconds, local_fleet.decoder_cores)
    sizes = estimate_sizes(settings, probe, counts, listing_bytes)
    return PlanEstimate(
        settings, rates, sizes, counts, fleet, image_bytes,
        failure_interval(probe.failed, probe.images), probe.images, missing,
        probe.prepared.plan.precision, probe.prepared.device,
    )  # fmt: skip


def _list_sources(settings: PlanSettings, temp_dir: Path) -> tuple[dict[str, SourceListing], float]:
    """List the sources as the job will; return the listings and the time in seconds."""
    started = time.monotonic()
    listings = {}
    for side in ("gallery", "queries"):
        root = getattr(settings, side)
        if root is not None:
            source = open_input(settings, root)
            source.check()
            embedding = derive_settings(settings, EmbedSettings, input=root, output=str(temp_dir))
            listings[side] = list_source(embedding, source, temp_dir / f"{side}.parquet", side)
    seconds = time.monotonic() - started
    if seconds > _LONG_LISTING:
        print_message(f"listing took {seconds:.0f} s, and will take as long in each run")
    return listings, seconds


@contextmanager
def _open_probe(settings: PlanSettings, cluster: Cluster, temp_dir: Path) -> Iterator[Probe]:
    """Yield a probe whose model is ready; remove the files that it wrote afterwards."""
    output, name = open_folder(str(settings.output)), temporary_name()
    folder, existed = output.child(name), Path(output.uri()).exists()
    embedding = derive_settings(
        settings, EmbedSettings, input=settings.gallery, output=folder.uri(), pca=0
    )
    try:
        started = time.monotonic()
        prepared = prepare_model(embedding, cluster, folder).with_engine()
        workers = _embedding_workers(cluster, prepared)
        probe = Probe(settings, cluster, folder, temp_dir, prepared, workers)
        probe.seconds["start"] = time.monotonic() - started
        yield probe
    finally:
        if is_remote(output.uri()):
            for entry in list(output.entries(name)):
                output.delete(entry.path)
        else:
            shutil.rmtree(folder.uri(), ignore_errors=True)
            if not existed:
                with contextlib.suppress(OSError):  # it was not created, or another run uses it
                    Path(output.uri()).rmdir()


def _embedding_workers(cluster: Cluster, prepared: PreparedModel) -> int:
    if prepared.device != "cuda":
        return cluster.workers
    return max(1, min(int(cluster.gpus / cluster.gpu_share), cluster.requested_workers or 1 << 30))


def _parse_nodes(text: str | None) -> list[tuple[int, int, int]] | None:
    """Parse `--cluster` into (nodes, CPUs per node, GPUs per node) per group; raise UsageError."""
    try:
        return None if text is None else parse_cluster(text)
    except ValueError as error:
        raise UsageError(f"--cluster: {error}") from error


def _plan_workers(
    settings: PlanSettings, cluster: Cluster, prepared: PreparedModel,
    nodes: list[tuple[int, int, int]] | None,
) -> tuple[WorkerPool, str]:  # fmt: skip
    """Return the workers of this cluster, or on `nodes`, and a note on missing estimates.

    As in a job, there is one worker per GPU (or share of one) if there are any, else one per CPU.
    """
    on_gpu = prepared.device == "cuda"
    if nodes is None:
        decoder_cores = cluster.threads_beside(prepared.device)
        workers = _embedding_workers(cluster, prepared)
        return WorkerPool(workers, cluster.workers, decoder_cores), ""
    max_workers = settings.workers or 1 << 30
    cores = min(max_workers, sum(count * cpus for count, cpus, _ in nodes))
    gpus = sum(count * gpu for count, _, gpu in nodes)
    if gpus and on_gpu:
        decoder_cores = min(int(cpus / gpu * cluster.gpu_share) for _, cpus, gpu in nodes if gpu)
        return WorkerPool(
            min(max_workers, int(gpus / cluster.gpu_share)), cores, max(1, decoder_cores)
        ), ""
    if on_gpu:
        raise UsageError(
            f"--cluster {settings.cluster} has no GPU, but the sample would be measured on a GPU: "
            "add --device cpu"
        )
    missing = (
        f"the speed of {gpus} GPUs cannot be estimated on a CPU: run plan on a machine with such a "
        "GPU; the estimates are for the cores alone (--device cpu)"
        if gpus and settings.device != "cpu"
        else ""
    )
    return WorkerPool(cores, cores), missing
