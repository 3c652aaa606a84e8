"""A plan told: what the job takes, what bounds it, and what would shorten it, from the figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.config.settings import PlanSettings
from jobs.runtime.result import Result
from retrieval.planning.costs import (
    Cost,
    Counts,
    Fleet,
    Rates,
    Sizes,
    disk_bytes,
    memory_bytes,
    stage_costs,
    total,
)
from retrieval.vectors.matmul import has_bf16

_BF16 = 1.8
"""Times as fast as fp32 by OpenVINO where the processor has bf16: 3.15 to 1.75 of eager torch, the
mean over 22 networks (`benchmarks/README.md`, engines)."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Planned:
    """What was measured, and what was reckoned from it."""

    settings: PlanSettings
    rates: Rates
    sizes: Sizes
    counts: Counts
    fleet: Fleet
    image_bytes: dict[str, int]
    failing: tuple[float, float, float]  # share, and the ends of its interval
    sampled: int
    missing: str  # what cannot be told
    precision: str
    device: str

    def costs(self, **changes: Any) -> list[Cost]:
        """Give the stages; `changes` replace rates, counts or fleet."""
        had = {"rates": self.rates, "counts": self.counts, "fleet": self.fleet}
        return stage_costs(**{**had, **changes})


def told(planned: Planned) -> Result:
    """Say it to a person and to a program."""
    costs = planned.costs()
    whole = total(costs)
    disk = disk_bytes(planned.sizes, planned.counts)
    memory = memory_bytes(planned.sizes, planned.counts)
    bound = max(costs, key=lambda cost: cost.seconds)
    shorter = tuple(_shorter(planned, bound, whole))
    lines = (
        *_images(planned),
        *(_line(cost) for cost in costs),
        _line(whole),
        "memory of a process: " + _listed(memory),
        f"disk: {_bytes(sum(disk.values()))} ({_listed(disk)})",
        f"index: {planned.counts.plan.factory}",
        *(f"  {reason}" for reason in planned.counts.plan.reasons),
        f"what bounds: {bound.stage}, {bound.seconds / whole.seconds:.0%} of the time",
        *shorter,
        *([planned.missing] if planned.missing else []),
    )
    return Result(_values(planned, costs, whole, disk, memory, bound, shorter), lines)


def _values(
    planned: Planned, costs: list[Cost], whole: Cost, disk: dict[str, float],
    memory: dict[str, float], bound: Cost, shorter: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """Give flat values, for --json."""
    counts, failing, rates = planned.counts, planned.failing, planned.rates
    values: dict[str, Any] = {"gallery_images": counts.gallery, "queries_images": counts.queries}
    values |= {f"{side}_bytes": size for side, size in planned.image_bytes.items()}
    for name, share in zip(("", "_low", "_high"), failing, strict=True):
        values[f"failures{name}"] = round(share * counts.gallery)
    for cost in (*costs, whole):
        key = cost.stage.replace(" ", "_") + "_seconds"
        values |= {key: cost.seconds, f"{key}_low": cost.low, f"{key}_high": cost.high}
    values |= {f"memory_bytes_{name}": round(size) for name, size in memory.items()}
    values |= {f"disk_bytes_{name}": round(size) for name, size in disk.items()}
    plan = counts.plan
    return values | {
        "disk_bytes": round(sum(disk.values())),
        "images_per_second_worker": 1 / rates.image,
        "workers": planned.fleet.embedders, "cores": planned.fleet.cores,
        "device": planned.device, "precision": planned.precision, "sampled": planned.sampled,
        "index": plan.factory, "lists": plan.nlist, "nprobe": counts.nprobe,
        "shards": counts.shards, "reasons": list(plan.reasons), "bound": bound.stage,
        "shorter": list(shorter), "missing": planned.missing,
    }  # fmt: skip


def _images(planned: Planned) -> Iterator[str]:
    counts, (share, _, high) = planned.counts, planned.failing
    for side, images in (("gallery", counts.gallery), ("queries", counts.queries)):
        if images is not None:
            yield f"{side}: {images:,} images, {_bytes(planned.image_bytes[side])}"
    yield (
        f"failures to expect: {share * counts.gallery:,.0f} of the gallery, at most "
        f"{math.ceil(high * counts.gallery):,} ({share:.1%} of {planned.sampled} tried)"
    )
    if share > planned.settings.max_error_rate:
        yield (
            f"that is more than --max-error-rate {planned.settings.max_error_rate:g} allows: the "
            "job would end with 4"
        )
    fleet = planned.fleet
    yield (
        f"{fleet.embedders} workers ({planned.device}, {planned.precision}) that embed "
        f"{1 / planned.rates.image:,.1f} images/s each, {fleet.cores} cores for the other stages"
    )


def _line(cost: Cost) -> str:
    return f"  {cost.stage:<20} {_time(cost.seconds):>9}   {_time(cost.low)} to {_time(cost.high)}"


def _shorter(planned: Planned, bound: Cost, whole: Cost) -> Iterator[str]:
    """Say what would shorten the job by a tenth at least, each with what it then takes."""
    counts, fleet = planned.counts, planned.fleet
    cpu, embedding = planned.device == "cpu", bound.stage.startswith(("embed", "fit"))
    options: list[tuple[str, dict[str, Any]]] = []
    for times in (2, 10):
        more = dataclasses.replace(
            fleet, embedders=times * fleet.embedders, cores=times * fleet.cores
        )
        options.append((f"{more.embedders} workers", {"fleet": more}))
    if cpu and planned.precision == "fp32" and has_bf16():
        faster = dataclasses.replace(planned.rates, image=planned.rates.image / _BF16)
        options.append(("--precision bf16 (vectors differ by up to 2 %)", {"rates": faster}))
    if counts.shards < fleet.cores <= counts.gallery and bound.stage in ("index", "rank"):
        rows = -(-counts.gallery // fleet.cores)
        cut = dataclasses.replace(counts.plan, rows_per_shard=rows)
        finer = dataclasses.replace(counts, plan=cut, shards=-(-counts.gallery // rows))
        options.append((f"--rows-per-shard {rows}, a shard a core", {"counts": finer}))
    said = False
    for what, changes in options:
        then = total(planned.costs(**changes)).seconds
        if then < 0.9 * whole.seconds:
            said = True
            yield f"{what}: {_time(then)} instead of {_time(whole.seconds)}"
    if not said:
        yield "nothing shortens it much: most of it is starting, or one worker's work"
    elif embedding and planned.settings.bundle is None and planned.settings.backbone != "scratch":
        yield (
            f"a lighter network than {planned.settings.backbone}: `lookalike compare` lists them "
            "with what they cost"
        )
    if bound.stage == "list":
        yield "a list (.txt, .csv, .parquet), tars or Parquet are listed faster than folders"


def _listed(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_bytes(size)}" for name, size in sizes.items())


def _bytes(size: float) -> str:
    power = min(len(_UNITS) - 1, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**power:.3g} {_UNITS[power]}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
