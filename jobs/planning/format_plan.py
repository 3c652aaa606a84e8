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

_BF16_SPEEDUP = 1.8
"""Speed of OpenVINO with bf16 relative to fp32, on processors that have bf16: 3.15 / 1.75 times the
speed of eager torch, the mean over 22 networks (`benchmarks/README.md`, engines)."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class PlanEstimate:
    """Measurements of a plan, and the estimates derived from them."""

    settings: PlanSettings
    rates: Rates
    sizes: Sizes
    counts: Counts
    fleet: WorkerPool
    image_bytes: dict[str, int]
    failing: tuple[float, float, float]  # share of images, and the ends of its interval
    sampled: int  # images of the sample
    missing: str  # note on what cannot be estimated; empty if there is nothing
    precision: str
    device: str

    def costs(self, **changes: Any) -> list[Cost]:
        """Return the costs of the stages; `changes` replace rates, counts or fleet."""
        values = {"rates": self.rates, "counts": self.counts, "fleet": self.fleet}
        return stage_costs(**{**values, **changes})


def format_plan(estimate: PlanEstimate) -> Result:
    """Format a plan as summary lines and JSON values."""
    costs = estimate.costs()
    total = total_cost(costs)
    disk = disk_bytes(estimate.sizes, estimate.counts)
    memory = memory_bytes(estimate.sizes, estimate.counts)
    bottleneck = max(costs, key=lambda cost: cost.seconds)
    suggestions = tuple(_suggest_speedups(estimate, bottleneck, total))
    lines = (
        *_format_images(estimate),
        *(_format_cost(cost) for cost in costs),
        _format_cost(total),
        "memory of a process: " + _format_sizes(memory),
        f"disk: {_format_bytes(sum(disk.values()))} ({_format_sizes(disk)})",
        f"index: {estimate.counts.plan.factory}",
        *(f"  {reason}" for reason in estimate.counts.plan.reasons),
        f"bottleneck: {bottleneck.stage}, {bottleneck.seconds / total.seconds:.0%} of the time",
        *suggestions,
        *([estimate.missing] if estimate.missing else []),
    )
    values = _to_values(estimate, costs, total, disk, memory, bottleneck, suggestions)
    return Result(values, lines)


def _to_values(
    estimate: PlanEstimate, costs: list[Cost], total: Cost, disk: dict[str, float],
    memory: dict[str, float], bottleneck: Cost, suggestions: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """Return the plan as flat values for --json."""
    counts, failing, rates = estimate.counts, estimate.failing, estimate.rates
    values: dict[str, Any] = {"gallery_images": counts.gallery, "queries_images": counts.queries}
    values |= {f"{side}_bytes": size for side, size in estimate.image_bytes.items()}
    for name, share in zip(("", "_low", "_high"), failing, strict=True):
        values[f"failures{name}"] = round(share * counts.gallery)
    for cost in (*costs, total):
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
        "shards": counts.shards, "reasons": list(plan.reasons), "bound": bottleneck.stage,
        "shorter": list(suggestions), "missing": estimate.missing,
    }  # fmt: skip


def _format_images(estimate: PlanEstimate) -> Iterator[str]:
    counts, (share, _, high) = estimate.counts, estimate.failing
    for side, images in (("gallery", counts.gallery), ("queries", counts.queries)):
        if images is not None:
            yield f"{side}: {images:,} images, {_format_bytes(estimate.image_bytes[side])}"
    yield (
        f"expected failures: {share * counts.gallery:,.0f} of the gallery, at most "
        f"{math.ceil(high * counts.gallery):,} ({share:.1%} of {estimate.sampled} sampled)"
    )
    if share > estimate.settings.max_error_rate:
        yield (
            f"that is more than --max-error-rate {estimate.settings.max_error_rate:g} allows: the "
            "job would end with exit code 4"
        )
    fleet = estimate.fleet
    yield (
        f"{fleet.embedders} workers ({estimate.device}, {estimate.precision}) that embed "
        f"{1 / estimate.rates.image:,.1f} images/s each, {fleet.cores} cores for the other stages"
    )


def _format_cost(cost: Cost) -> str:
    low, high = _format_time(cost.low), _format_time(cost.high)
    return f"  {cost.stage:<20} {_format_time(cost.seconds):>9}   {low} to {high}"


def _suggest_speedups(estimate: PlanEstimate, bottleneck: Cost, total: Cost) -> Iterator[str]:
    """Yield suggestions that shorten the job by at least 10 %, with the new time."""
    counts, fleet = estimate.counts, estimate.fleet
    is_cpu, is_embedding = estimate.device == "cpu", bottleneck.stage.startswith(("embed", "fit"))
    options: list[tuple[str, dict[str, Any]]] = []
    for factor in (2, 10):
        larger = dataclasses.replace(
            fleet, embedders=factor * fleet.embedders, cores=factor * fleet.cores
        )
        options.append((f"{larger.embedders} workers", {"fleet": larger}))
    if is_cpu and estimate.precision == "fp32" and has_bf16():
        faster = dataclasses.replace(estimate.rates, image=estimate.rates.image / _BF16_SPEEDUP)
        options.append(("--precision bf16 (vectors differ by up to 2 %)", {"rates": faster}))
    if counts.shards < fleet.cores <= counts.gallery and bottleneck.stage in ("index", "rank"):
        rows = -(-counts.gallery // fleet.cores)
        plan = dataclasses.replace(counts.plan, rows_per_shard=rows)
        more_shards = dataclasses.replace(counts, plan=plan, shards=-(-counts.gallery // rows))
        options.append((f"--rows-per-shard {rows}, one shard per core", {"counts": more_shards}))
    has_suggestion = False
    for description, changes in options:
        seconds = total_cost(estimate.costs(**changes)).seconds
        if seconds < 0.9 * total.seconds:
            has_suggestion = True
            yield f"{description}: {_format_time(seconds)} instead of {_format_time(total.seconds)}"
    if not has_suggestion:
        yield "no option shortens it by 10 %: it mostly starts processes, or one worker is busy"
    elif (
        is_embedding
        and estimate.settings.bundle is None
        and estimate.settings.backbone != "scratch"
    ):
        yield (
            f"a smaller network than {estimate.settings.backbone}: `lookalike compare` lists them "
            "with their costs"
        )
    if bottleneck.stage == "list":
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
