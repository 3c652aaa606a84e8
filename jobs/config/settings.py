"""The settings of each verb: one frozen dataclass a stage, its fields named after options.

A chain (`run`) has the fields of all its stages and hands each its part. What model, source and
engine need, which several stages share, stands in `groups.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from jobs.config import option_groups
from jobs.config.option import REQUIRED
from jobs.config.options import setting


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes."""

    json: bool = setting("json")
    debug: bool = setting("debug")


@dataclass(frozen=True, kw_only=True)
class OnRay(Common):
    """What every verb takes that works on Ray."""

    workers: int | None = setting("workers")
    ray_address: str | None = setting("ray_address")
    gpus_per_worker: float = setting("gpus_per_worker")


@dataclass(frozen=True, kw_only=True)
class Running(OnRay):
    """What every verb takes that also writes an output."""

    output: str = setting("output")
    overwrite: bool = setting("overwrite")


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(
    Running,
    option_groups.Model,
    option_groups.EngineOptions,
    option_groups.Reading,
    option_groups.Elsewhere,
):
    """lookalike embed."""

    input: str = setting("input")
    embedding_dtype: str = setting("embedding_dtype")
    compact: bool = setting("compact")


@dataclass(frozen=True, kw_only=True)
class IndexSettings(
    Running, option_groups.Indexing, option_groups.Listing, option_groups.Elsewhere
):
    """lookalike index."""

    embeddings: str = setting("embeddings")
    embedding_dtype: str = setting("embedding_dtype")
    merge_into: str | None = setting("merge_into")
    seed: int = setting("seed")


@dataclass(frozen=True, kw_only=True)
class RankSettings(
    Running,
    option_groups.Ranking,
    option_groups.EngineOptions,
    option_groups.Reading,
    option_groups.Elsewhere,
):
    """lookalike rank."""

    index: str = setting("index")
    queries: str = setting("queries")
    unique_pairs: bool = setting("unique_pairs")
    embeddings: str | None = setting("embeddings", default=None, shapes="run")
    seed: int = setting("seed")


@dataclass(frozen=True, kw_only=True)
class Whole(
    option_groups.Model,
    option_groups.EngineOptions,
    option_groups.Reading,
    option_groups.Indexing,
    option_groups.Ranking,
):
    """What makes a whole job, but for its queries and its output."""

    gallery: str = setting("gallery")
    embedding_dtype: str = setting("embedding_dtype")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Running, Whole):
    """lookalike run."""

    queries: str = setting("queries")
    all_measures: bool = setting("all_measures")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(OnRay, Whole):
    """lookalike plan."""

    queries: str | None = setting("queries", default=None)
    output: str | None = setting(
        "output", default=None, help="where the job will write; the probe writes there, and is gone"
    )
    cluster: str | None = setting("cluster")
    sample: int = setting("sample")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Common, option_groups.Judging):
    """lookalike evaluate."""

    matches: str = setting("matches")
    cutoffs: str = setting("cutoffs")
    all_measures: bool = setting("all_measures")
    compare: str | None = setting("compare")
    exact: str | None = setting("exact")
    fail_below: str | None = setting("fail_below")
    per_query: str | None = setting("per_query")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(OnRay, option_groups.Judging):
    """lookalike report."""

    matches: str = setting("matches")
    output: str = setting("output", help="the page to write: report.html")
    format: str | None = setting(
        "format", help="what to make, a,b: html (the default), png (pictures, in NAME_pictures/)"
    )
    compare: str | None = setting(
        "compare", help="with png: other matches of the same queries, drawn beside these as before"
    )
    title: str = setting("title")
    max_queries: int = setting("max_queries")
    seed: int = setting("seed")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(OnRay, option_groups.Training):
    """lookalike train."""

    data: str = setting("data")
    output: str = setting("output")
    overwrite: bool = setting("overwrite")
    labels: str | None = setting("labels")
    max_pixels: int = setting("max_pixels")
    workers: int | None = setting("workers", help="processes that learn together; default: one")
    seed: int = setting("seed")


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Running, option_groups.EngineOptions, option_groups.Reading):
    """lookalike predict."""

    input: str = setting("input")
    bundle: str | None = setting("bundle", default=REQUIRED)


@dataclass(frozen=True, kw_only=True)
class CompareSettings(
    OnRay,
    option_groups.Contenders,
    option_groups.EngineOptions,
    option_groups.Listed,
    option_groups.Images,
):
    """lookalike compare; without `data` it lists the backbones."""

    data: str | None = setting("data", default=None, help="labelled images, as --input takes them")
    output: str | None = setting("output", default=None)
    pca: int | None = setting(
        "pca", default=256,
        help="also measure vectors projected to so many dimensions; fitted on the compared images "
        "themselves, as run --pca is on the gallery",
    )  # fmt: skip
    seed: int = setting("seed")
    overwrite: bool = setting(
        "overwrite", help="start anew where another job's output stands; stores that fit are kept"
    )


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Common):
    """lookalike demo."""

    output: str = setting("output")
    all_measures: bool = setting("all_measures")
    seed: int = setting("seed")


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Common):
    """lookalike verify; the path is its one argument."""

    path: str
    measure_recall: bool = setting("measure_recall")


Settings = TypeVar("Settings")


def part_of(whole: Any, stage: type[Settings], **given: Any) -> Settings:
    """Make a stage's settings from those of a chain, field by field of the same name."""
    names = {field.name for field in dataclasses.fields(stage)}  # type: ignore[arg-type]
    shared = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole) if f.name in names}
    return stage(**{**shared, **given})


def content_of(settings: Any) -> dict[str, Any]:
    """Give what shapes content, for job.json."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if "option" in field.metadata and field.metadata["option"].shapes == "content"
    }
