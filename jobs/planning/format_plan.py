"""Formatting of a plan: estimated cost, bottleneck and possible speedups."""

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
    Rates,
    Sizes,
    WorkerPool,
    disk_bytes,
    memory_bytes,
    stage_costs,
    total_cost,
)
from retrieval.vectors.matmul import has_bf16

_BF16 = 1.8
"""Times as fast as fp32 by OpenVINO where the processor has bf16: 3.15 to 1.75 of eager torch, the
mean over 22 networks (`benchmarks/README.md`, engines)."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class PlanEstimate:
    """The measurements of a plan and the estimates derived from them."""

    settings: PlanSettings
    rates: Rates
    sizes: Sizes
    counts: Counts
    fleet: WorkerPool
    image_bytes: dict[str, int]
    failing: tuple[float, float, float]  # share, and the ends of its interval
    sampled: int
    missing: str  # what cannot be told
    precision: str
    device: str

    def costs(self, **changes: Any) -> list[Cost]:
        """Return the stages; `changes` replace rates, counts or fleet."""
        had = {"rates": self.rates, "counts": self.counts, "fleet": self.fleet}
        return stage_costs(**{**had, **changes})


def format_plan(estimate: PlanEstimate) -> Result:
    """Format a plan as summary lines and JSON values."""
    costs = estimate.costs()
    whole = total_cost(costs)
    disk = disk_bytes(estimate.sizes, estimate.counts)
    memory = memory_bytes(estimate.sizes, estimate.counts)
    bound = max(costs, key=lambda cost: cost.seconds)
    shorter = tuple(_suggest_speedups(estimate, bound, whole))
    lines = (
        *_format_images(estimate),
        *(_format_cost(cost) for cost in costs),
        _format_cost(whole),
        "memory of a process: " + _format_sizes(memory),
        f"disk: {_format_bytes(sum(disk.values()))} ({_format_sizes(disk)})",
        f"index: {estimate.counts.plan.factory}",
        *(f"  {reason}" for reason in estimate.counts.plan.reasons),
        f"what bounds: {bound.stage}, {bound.seconds / whole.seconds:.0%} of the time",
        *shorter,
        *([estimate.missing] if estimate.missing else []),
    )
    return Result(_to_values(estimate, costs, whole, disk, memory, bound, shorter), lines)


def _to_values(
    estimate: PlanEstimate, costs: list[Cost], whole: Cost, disk: dict[str, float],
    memory: dict[str, float], bound: Cost, shorter: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """Return flat values, for --json."""
    counts, failing, rates = estimate.counts, estimate.failing, estimate.rates
    values: dict[str, Any] = {"gallery_images": counts.gallery, "queries_images": counts.queries}
    values |= {f"{side}_bytes": size for side, size in estimate.image_bytes.items()}
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
        "workers": estimate.fleet.embedders, "cores": estimate.fleet.cores,
        "device": estimate.device, "precision": estimate.precision, "sampled": estimate.sampled,
        "index": plan.factory, "lists": plan.nlist, "nprobe": counts.nprobe,
        "shards": counts.shards, "reasons": list(plan.reasons), "bound": bound.stage,
        "shorter": list(shorter), "missing": estimate.missing,
    }  # fmt: skip


def _format_images(estimate: PlanEstimate) -> Iterator[str]:
    counts, (share, _, high) = estimate.counts, estimate.failing
    for side, images in (("gallery", counts.gallery), ("queries", counts.queries)):
        if images is not None:
            yield f"{side}: {images:,} images, {_format_bytes(estimate.image_bytes[side])}"
    yield (
        f"failures to expect: {share * counts.gallery:,.0f} of the gallery, at most "
        f"{math.ceil(high * counts.gallery):,} ({share:.1%} of {estimate.sampled} tried)"
    )
    if share > estimate.settings.max_error_rate:
        yield (
            f"that is more than --max-error-rate {estimate.settings.max_error_rate:g} allows: the "
            "job would end with 4"
        )
    fleet = estimate.fleet
    yield (
        f"{fleet.embedders} workers ({estimate.device}, {estimate.precision}) that embed "
        f"{1 / estimate.rates.image:,.1f} images/s each, {fleet.cores} cores for the other stages"
    )


def _format_cost(cost: Cost) -> str:
    low, high = _format_time(cost.low), _format_time(cost.high)
    return f"  {cost.stage:<20} {_format_time(cost.seconds):>9}   {low} to {high}"


def _suggest_speedups(estimate: PlanEstimate, bound: Cost, whole: Cost) -> Iterator[str]:
    """Iterate over suggestions that shorten the job by at least 10 %, with the new time."""
    counts, fleet = estimate.counts, estimate.fleet
    cpu, embedding = estimate.device == "cpu", bound.stage.startswith(("embed", "fit"))
    options: list[tuple[str, dict[str, Any]]] = []
    for times in (2, 10):
        more = dataclasses.replace(
            fleet, embedders=times * fleet.embedders, cores=times * fleet.cores
        )
        options.append((f"{more.embedders} workers", {"fleet": more}))
    if cpu and estimate.precision == "fp32" and has_bf16():
        faster = dataclasses.replace(estimate.rates, image=estimate.rates.image / _BF16)
        options.append(("--precision bf16 (vectors differ by up to 2 %)", {"rates": faster}))
    if counts.shards < fleet.cores <= counts.gallery and bound.stage in ("index", "rank"):
        rows = -(-counts.gallery // fleet.cores)
        cut = dataclasses.replace(counts.plan, rows_per_shard=rows)
        finer = dataclasses.replace(counts, plan=cut, shards=-(-counts.gallery // rows))
        options.append((f"--rows-per-shard {rows}, a shard a core", {"counts": finer}))
    said = False
    for what, changes in options:
        then = total_cost(estimate.costs(**changes)).seconds
        if then < 0.9 * whole.seconds:
            said = True
            yield f"{what}: {_format_time(then)} instead of {_format_time(whole.seconds)}"
    if not said:
        yield "nothing shortens it much: most of it is starting, or one worker's work"
    elif embedding and estimate.settings.bundle is None and estimate.settings.backbone != "scratch":
        yield (
            f"a lighter network than {estimate.settings.backbone}: `lookalike compare` lists them "
            "with what they cost"
        )
    if bound.stage == "list":
        yield "a list (.txt, .csv, .parquet), tars or Parquet are listed faster than folders"


def _format_sizes(sizes: dict[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_format_bytes(size)}" for name, size in sizes.items()
    )


def _format_bytes(size: float) -> str:
    power = min(len(_UNITS) - 1, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**power:.3g} {_UNITS[power]}"


def _format_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
