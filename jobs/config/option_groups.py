"""Options that belong together and that several verbs take: model, engine, source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.config.options import setting

if TYPE_CHECKING:  # not loaded for --help
    from retrieval.core.schemas import Metric, Pooling, Resize
    from retrieval.evaluation.results import Over
    from retrieval.training.schedule import Schedule
    from retrieval.training.split import SplitBy


@dataclass(frozen=True, kw_only=True)
class Model:
    """What makes a bundle; the bundle's digest stands for all of it in job.json."""

    backbone: str = setting("backbone")
    weights: str | None = setting("weights")
    bundle: str | None = setting("bundle")
    pooling: Pooling = setting("pooling")
    normalize: bool = setting("normalize")
    image_size: int | None = setting("image_size")
    resize: Resize | None = setting("resize")
    pca: int | None = setting("pca")
    seed: int = setting("seed")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What runs the model; resolved to an EnginePlan, which stands in job.json."""

    engine: str | None = setting("engine")
    precision: str | None = setting("precision")
    device: str | None = setting("device")
    batch_size: int | None = setting("batch_size")


@dataclass(frozen=True, kw_only=True)
class Contenders:
    """Which networks are compared."""

    backbones: str | None = setting("backbones")
    weights: str | None = setting(
        "weights",
        help="folder with NAME.safetensors or NAME.pth a backbone (of timm:NAME too), or random; "
        "default: each backbone's own",
    )
    bundle: str | None = setting("bundle", help="trained bundles to compare as well, a,b,c")
    image_size: int | None = setting("image_size")
    resize: Resize | None = setting("resize")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """How a source is listed, and how much of it may fail."""

    labels: str | None = setting("labels")
    id_column: str | None = setting("id_column")
    chunk_rows: int | None = setting("chunk_rows")
    limit: int | None = setting("limit")
    max_error_rate: float = setting("max_error_rate")


@dataclass(frozen=True, kw_only=True)
class Listing(Listed):
    """How it is listed, and tried again."""

    retry_failed: bool = setting("retry_failed")


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are read."""

    image_column: str | None = setting("image_column")
    max_pixels: int = setting("max_pixels")


@dataclass(frozen=True, kw_only=True)
class Reading(Images, Listing):
    """How images are listed, read and embedded."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Where vectors are found that were made elsewhere."""

    embedding_column: str | None = setting("embedding_column")
    ids: str | None = setting("ids")


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What tells right matches from wrong ones; without any of it the labels in the matches."""

    labels: str | None = setting(
        "labels",
        help="CSV or Parquet with image_id,label (and split); default: the labels in the matches",
    )
    qrels: str | None = setting("qrels")
    junk_grade: int = setting("junk_grade")
    intervals_over: Over = setting("intervals_over")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What learns, what it is asked for, how, and what is held out to judge by.

    Of poolings and resizes the defaults are those of the best mAP among held-out photos
    (benchmarks/README.md); the weights' own crop is worse by 0.08 there.
    """

    backbone: str = setting("backbone", default="scratch")
    weights: str | None = setting("weights")
    pooling: Pooling = setting("pooling", default="gem")
    image_size: int | None = setting("image_size")
    resize: Resize | None = setting(
        "resize", default="pad",
        help="pad: longer side, then fill, so that nothing is cut off; crop or squash as elsewhere",
    )  # fmt: skip
    unfreeze: str = setting("unfreeze")
    objective: str = setting("objective")
    epochs: int = setting("epochs")
    patience: int | None = setting("patience")
    device: str | None = setting("device")
    batch_size: int = setting("batch_size", default=16, help="photos a step")
    learning_rate: float = setting("learning_rate")
    body_rate: float = setting("body_rate")
    schedule: Schedule = setting("schedule")
    augment: str = setting("augment")
    leave_out: str | None = setting("leave_out")
    validation: float = setting("validation")
    split_by: SplitBy = setting("split_by")
    cache: str | None = setting("cache")


@dataclass(frozen=True, kw_only=True)
class Indexing:
    """How vectors become an index."""

    metric: Metric = setting("metric")
    max_index_memory: int = setting("max_index_memory")
    rows_per_shard: int | None = setting("rows_per_shard")
    index_factory: str | None = setting("index_factory")
    scratch: str | None = setting("scratch")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How queries are answered."""

    top_k: int = setting("top_k")
    recall: float = setting("recall")
    nprobe: int | None = setting("nprobe")
    filter: str | None = setting("filter")
    exclude_self: bool = setting("exclude_self")
    min_score: float | None = setting("min_score")
    expand_queries: str | None = setting("expand_queries")
    format: str | None = setting("format")
    scratch: str | None = setting("scratch")
