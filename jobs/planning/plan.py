"""lookalike plan: before you pay, what `run` will take, what it needs, and what bounds it.

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

from jobs.cluster.resources import Cluster, cluster
from jobs.config.parsing import parse_cluster
from jobs.config.settings import EmbedSettings, PlanSettings, part_of
from jobs.embedding.listing import Listed, list_source, source_of
from jobs.embedding.prepare_model import Prepared, prepare, stored_dtype
from jobs.planning.estimate import counts_of, image_bytes, rates_of, sizes_of
from jobs.planning.format_plan import Planned, told
from jobs.planning.probe import Probe
from jobs.runtime.check_output import check_apart
from jobs.runtime.progress import say
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.planning.costs import Fleet, failures_expected
from retrieval.storage.local import is_remote, open_folder
from retrieval.storage.temporary import temporary_name

_LONG = 60.0  # seconds of listing that are worth a word


def start(settings: PlanSettings) -> Result:
    """Plan, and say what the job will take."""
    return told(plan(settings, time.time() - psutil.Process().create_time()))


def plan(settings: PlanSettings, loaded: float) -> Planned:
    """Measure and reckon; `loaded` are the seconds since this process began."""
    if settings.output is not None:
        check_apart(settings)
    there = _nodes(settings.cluster)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        settings = dataclasses.replace(
            settings, output=settings.output or f"{scratch}/output",
            embedding_dtype=stored_dtype(settings.embedding_dtype),
        )  # fmt: skip
        sides, listing = _listings(settings, Path(scratch))
        with cluster(settings) as where, _probing(settings, where, Path(scratch)) as probe:
            fleet, missing = _fleet(settings, where, probe.prepared, there)
            here = _fleet(settings, where, probe.prepared, None)[0]
            counts_of(settings, probe, sides)  # what does not fit is refused before it costs time
            probe.run(sides["gallery"], sides.get("queries"))
            began = time.monotonic()
        probe.seconds["start"] += loaded + time.monotonic() - began
        counts = counts_of(settings, probe, sides)
        bytes_ = {side: image_bytes(listed, probe) for side, listed in sides.items()}
        lines = {side: listed.path.stat().st_size for side, listed in sides.items()}
    rates = rates_of(probe, counts, listing, here.beside)
    sizes = sizes_of(settings, probe, counts, sum(lines.values()))
    return Planned(
        settings, rates, sizes, counts, fleet, bytes_,
        failures_expected(probe.failed, probe.images), probe.images, missing,
        probe.prepared.plan.precision, probe.prepared.device,
    )  # fmt: skip


def _listings(settings: PlanSettings, scratch: Path) -> tuple[dict[str, Listed], float]:
    """List the sources as the job will; also give the seconds that takes."""
    began = time.monotonic()
    sides = {}
    for side in ("gallery", "queries"):
        root = getattr(settings, side)
        if root is not None:
            source = source_of(settings, root)
            source.check()
            asked = part_of(settings, EmbedSettings, input=root, output=str(scratch))
            sides[side] = list_source(asked, source, scratch / f"{side}.parquet", side)
    seconds = time.monotonic() - began
    if seconds > _LONG:
        say(f"listing took {seconds:.0f} s, and takes as long again in each run")
    return sides, seconds


@contextmanager
def _probing(settings: PlanSettings, where: Cluster, scratch: Path) -> Iterator[Probe]:
    """Give a probe whose model is ready; what it writes is removed after."""
    output, name = open_folder(str(settings.output)), temporary_name()
    folder, was_there = output.child(name), Path(output.uri()).exists()
    asked = part_of(settings, EmbedSettings, input=settings.gallery, output=folder.uri(), pca=None)
    try:
        began = time.monotonic()
        prepared = prepare(asked, where, folder).ready()
        probe = Probe(settings, where, folder, scratch, prepared, _workers(where, prepared))
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


def _workers(where: Cluster, prepared: Prepared) -> int:
    if prepared.device != "cuda":
        return where.workers
    return max(1, min(int(where.gpus / where.gpu_share), where.asked or 1 << 30))


def _nodes(text: str | None) -> list[tuple[int, int, int]] | None:
    """Read `--cluster`."""
    try:
        return None if text is None else parse_cluster(text)
    except ValueError as error:
        raise UsageError(f"--cluster: {error}") from error


def _fleet(
    settings: PlanSettings, where: Cluster, prepared: Prepared,
    nodes: list[tuple[int, int, int]] | None,
) -> tuple[Fleet, str]:  # fmt: skip
    """Say who works, here or on the nodes of `--cluster`, and what of it cannot be told.

    As the product does: one worker a GPU (or share of one) where there are any, else one a CPU.
    """
    measured = prepared.device == "cuda"
    if nodes is None:
        beside = where.threads_beside(prepared.device)
        return Fleet(_workers(where, prepared), where.workers, beside), ""
    most = settings.workers or 1 << 30
    cores = min(most, sum(count * cpus for count, cpus, _ in nodes))
    gpus = sum(count * gpu for count, _, gpu in nodes)
    if gpus and measured:
        beside = min(int(cpus / gpu * where.gpu_share) for _, cpus, gpu in nodes if gpu)
        return Fleet(min(most, int(gpus / where.gpu_share)), cores, max(1, beside)), ""
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
    return Fleet(cores, cores), missing
