"""The `plan` command: estimate the time, memory and disk of `run` before it starts.

The sources are listed as `run` lists them; a sample of the gallery passes through the job's own
stages in a folder that is removed (`probe.py`); the rest is arithmetic
(`retrieval/planning/costs.py`).
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
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.planning.costs import WorkerPool, failure_interval
from retrieval.storage.local import is_remote, open_folder
from retrieval.storage.temporary import temporary_name

_LONG = 60.0  # seconds of listing that are worth a word


def start(settings: PlanSettings) -> Result:
    """Plan, and say what the job will take."""
    return format_plan(plan(settings, time.time() - psutil.Process().create_time()))


def plan(settings: PlanSettings, loaded: float) -> PlanEstimate:
    """Measure and reckon; `loaded` are the seconds since this process began."""
    if settings.output is not None:
        check_inputs_outside(settings)
    there = _nodes(settings.cluster)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        settings = dataclasses.replace(
            settings, output=settings.output or f"{scratch}/output",
            embedding_dtype=resolve_embedding_dtype(settings.embedding_dtype),
        )  # fmt: skip
        sides, listing = _listings(settings, Path(scratch))
        with open_cluster(settings) as cluster, _probing(settings, cluster, Path(scratch)) as probe:
            fleet, missing = _fleet(settings, cluster, probe.prepared, there)
            here = _fleet(settings, cluster, probe.prepared, None)[0]
            estimate_counts(
                settings, probe, sides
            )  # what does not fit is refused before it costs time
            probe.run(sides["gallery"], sides.get("queries"))
            began = time.monotonic()
        probe.seconds["start"] += loaded + time.monotonic() - began
        counts = estimate_counts(settings, probe, sides)
        bytes_ = {side: estimate_image_bytes(listed, probe) for side, listed in sides.items()}
        lines = {side: listed.path.stat().st_size for side, listed in sides.items()}
    rates = estimate_rates(probe, counts, listing, here.beside)
    sizes = estimate_sizes(settings, probe, counts, sum(lines.values()))
    return PlanEstimate(
        settings, rates, sizes, counts, fleet, bytes_,
        failure_interval(probe.failed, probe.images), probe.images, missing,
        probe.prepared.plan.precision, probe.prepared.device,
    )  # fmt: skip


def _listings(settings: PlanSettings, scratch: Path) -> tuple[dict[str, SourceListing], float]:
    """List the sources as the job will; also give the seconds that takes."""
    began = time.monotonic()
    sides = {}
    for side in ("gallery", "queries"):
        root = getattr(settings, side)
        if root is not None:
            source = open_input(settings, root)
            source.check()
            asked = derive_settings(settings, EmbedSettings, input=root, output=str(scratch))
            sides[side] = list_source(asked, source, scratch / f"{side}.parquet", side)
    seconds = time.monotonic() - began
    if seconds > _LONG:
        say(f"listing took {seconds:.0f} s, and takes as long again in each run")
    return sides, seconds


@contextmanager
def _probing(settings: PlanSettings, cluster: Cluster, scratch: Path) -> Iterator[Probe]:
    """Return a probe whose model is ready; what it writes is removed after."""
    output, name = open_folder(str(settings.output)), temporary_name()
    folder, was_there = output.child(name), Path(output.uri()).exists()
    asked = derive_settings(
        settings, EmbedSettings, input=settings.gallery, output=folder.uri(), pca=None
    )
    try:
        began = time.monotonic()
        prepared = prepare_model(asked, cluster, folder).with_engine()
        probe = Probe(settings, cluster, folder, scratch, prepared, _workers(cluster, prepared))
        probe.seconds["start"] = time.monotonic() - began
        yield probe
    finally:
        if is_remote(output.uri()):
            for entry in list(output.entries(name)):
                output.delete(entry.path)
        else:
            shutil.rmtree(folder.uri(), ignore_errors=True)
            if not was_there:
                with contextlib.suppress(OSError):  # nothing was written, or by somebody else
                    Path(output.uri()).rmdir()


def _workers(cluster: Cluster, prepared: PreparedModel) -> int:
    if prepared.device != "cuda":
        return cluster.workers
    return max(1, min(int(cluster.gpus / cluster.gpu_share), cluster.requested_workers or 1 << 30))


def _nodes(text: str | None) -> list[tuple[int, int, int]] | None:
    """Read `--cluster`."""
    try:
        return None if text is None else parse_cluster(text)
    except ValueError as error:
        raise UsageError(f"--cluster: {error}") from error


def _fleet(
    settings: PlanSettings, cluster: Cluster, prepared: PreparedModel,
    nodes: list[tuple[int, int, int]] | None,
) -> tuple[WorkerPool, str]:  # fmt: skip
    """Return the workers, here or on the nodes of `--cluster`, and a note on missing estimates.

    As the product does: one worker a GPU (or share of one) where there are any, else one a CPU.
    """
    measured = prepared.device == "cuda"
    if nodes is None:
        beside = cluster.threads_beside(prepared.device)
        return WorkerPool(_workers(cluster, prepared), cluster.workers, beside), ""
    most = settings.workers or 1 << 30
    cores = min(most, sum(count * cpus for count, cpus, _ in nodes))
    gpus = sum(count * gpu for count, _, gpu in nodes)
    if gpus and measured:
        beside = min(int(cpus / gpu * cluster.gpu_share) for _, cpus, gpu in nodes if gpu)
        return WorkerPool(min(most, int(gpus / cluster.gpu_share)), cores, max(1, beside)), ""
    if measured:
        raise UsageError(
            f"--cluster {settings.cluster} has no GPU, and a GPU is what was to be measured here: "
            "add --device cpu"
        )
    missing = (
        f"what {gpus} GPUs do cannot be told from a CPU: run plan where there is such a GPU; the "
        "figures are of the cores alone (--device cpu)"
        if gpus and settings.device != "cpu"
        else ""
    )
    return WorkerPool(cores, cores), missing
