"""The settings of each command: one frozen dataclass per verb, composed of groups of options.

Each field is named after its option in `options.py`. The first half of this module contains the
groups that several commands share (model, engine, source, search, ...), the second half one class
per command. `run` and `plan` have the fields of all stages; `derive_settings` derives the settings
of one stage from theirs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.config.options import REQUIRED, option_field

if TYPE_CHECKING:  # not loaded for --help
    from retrieval.core.schemas import Augmentation, Metric, Pooling, Resize
    from retrieval.evaluation.results import IntervalUnit
    from retrieval.images.box import BoxUnits
    from retrieval.models.transforms import Interpolation
    from retrieval.training.schedule import Schedule
    from retrieval.training.split import SplitBy


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options that define a bundle; in job.json the bundle's digest stands for all of them."""

    backbone: str = option_field("backbone")
    weights: str | None = option_field("weights")
    bundle: str | None = option_field("bundle")
    recipe: str = option_field("recipe")
    pooling: Pooling | None = option_field("pooling")
    normalize: bool = option_field("normalize")
    image_size: int | None = option_field("image_size")
    resize: Resize | None = option_field("resize")
    mean: str | None = option_field("mean")
    std: str | None = option_field("std")
    interpolation: Interpolation | None = option_field("interpolation")
    python_path: str | None = option_field("python_path")
    pca: int | None = option_field("pca")
    augment_inference: Augmentation | None = option_field("augment_inference")
    seed: int = option_field("seed")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the network is run; resolved to an EnginePlan, which is written to job.json."""

    engine: str | None = option_field("engine")
    precision: str | None = option_field("precision")
    device: str | None = option_field("device")
    batch_size: int | None = option_field("batch_size")


@dataclass(frozen=True, kw_only=True)
class ComparedModelOptions:
    """Backbones and bundles that `compare` measures."""

    backbones: str | None = option_field("backbones")
    weights: str | None = option_field(
        "weights",
        help="Folder of state dicts (NAME.safetensors or NAME.pth, NAME without timm:), or random; "
        "default: the published weights.",
    )
    bundle: str | None = option_field(
        "bundle", help="Comma-separated trained bundles to compare as well."
    )
    python_path: str | None = option_field("python_path")
    recipe: str = option_field(
        "recipe",
        help="Defaults of --resize and --pca: default (squash, 256), original (squash, 500) or "
        "plain (the weights' own, none); every pooling is compared.",
    )
    image_size: int | None = option_field("image_size")
    resize: Resize | None = option_field("resize")
    augment_inference: Augmentation | None = option_field("augment_inference")


@dataclass(frozen=True, kw_only=True)
class OwnCodeOptions:
    """The user's own model, where a bundle defines everything else."""

    backbone: str | None = option_field(
        "backbone", default=None, affects="run",
        help="python:MODULE:FACTORY, if the images were embedded with it: its code is never taken "
        "from an output.",
    )  # fmt: skip
    python_path: str | None = option_field("python_path")


@dataclass(frozen=True, kw_only=True)
class ListingOptions:
    """How a source is listed, and how many of its images may fail."""

    labels: str | None = option_field("labels")
    id_column: str | None = option_field("id_column")
    chunk_rows: int | None = option_field("chunk_rows")
    limit: int | None = option_field("limit")
    max_error_rate: float = option_field("max_error_rate")


@dataclass(frozen=True, kw_only=True)
class RetriableListingOptions(ListingOptions):
    """How a source is listed where failed images can be tried again."""

    retry_failed: bool = option_field("retry_failed")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images and crops are found in tables and which are too large to decode."""

    image_column: str | None = option_field("image_column")
    box_columns: str | None = option_field("box_columns")
    box_units: BoxUnits = option_field("box_units")
    max_pixels: int = option_field("max_pixels")


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(ImageOptions, RetriableListingOptions):
    """How a source of images is listed and read."""


@dataclass(frozen=True, kw_only=True)
class VectorSourceOptions:
    """How precomputed vectors and their ids are found in the files of a source."""

    embedding_column: str | None = option_field("embedding_column")
    ids: str | None = option_field("ids")


@dataclass(frozen=True, kw_only=True)
class RelevanceOptions:
    """What decides whether a match is relevant; by default the labels in the matches."""

    labels: str | None = option_field(
        "labels",
        help="Labels in a CSV or Parquet file (image_id, label and optionally split); default: "
        "those in the matches.",
    )
    qrels: str | None = option_field("qrels")
    junk_grade: int = option_field("junk_grade")
    intervals_over: IntervalUnit = option_field("intervals_over")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Network, loss, schedule and validation split of a training."""

    backbone: str = option_field("backbone", default="scratch")
    weights: str | None = option_field(
        "weights",
        help="State dict (.safetensors or .pth; path or URI), or random; default: random for "
        "scratch, else published.",
    )
    python_path: str | None = option_field("python_path")
    recipe: str = option_field(
        "recipe",
        help="Defaults of --resize and --pooling: default (squash, gem), original (squash, max) or "
        "plain (the weights' own, avg).",
    )
    pooling: Pooling | None = option_field("pooling")
    image_size: int | None = option_field("image_size")
    resize: Resize | None = option_field("resize")
    unfreeze: str = option_field("unfreeze")
    objective: str = option_field("objective")
    epochs: int = option_field("epochs")
    patience: int | None = option_field("patience")
    device: str | None = option_field("device")
    batch_size: int = option_field("batch_size", default=16, help="Images per training step.")
    learning_rate: float = option_field("learning_rate")
    backbone_lr_scale: float = option_field("backbone_lr_scale")
    schedule: Schedule = option_field("schedule")
    augment: str = option_field("augment")
    exclude_classes: str | None = option_field("exclude_classes")
    validation_fraction: float = option_field("validation_fraction")
    split_by: SplitBy = option_field("split_by")
    cache: str | None = option_field("cache")


@dataclass(frozen=True, kw_only=True)
class IndexingOptions:
    """How a store is turned into an index."""

    metric: Metric = option_field("metric")
    max_index_memory: int = option_field("max_index_memory")
    rows_per_shard: int | None = option_field("rows_per_shard")
    index_factory: str | None = option_field("index_factory")
    temp_dir: str | None = option_field("temp_dir")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How matches are searched, filtered and written."""

    top_k: int = option_field("top_k")
    recall: float = option_field("recall")
    nprobe: int | None = option_field("nprobe")
    filter: str | None = option_field("filter")
    exclude_self: bool = option_field("exclude_self")
    min_score: float | None = option_field("min_score")
    calibration: str | None = option_field("calibration")
    min_probability: float | None = option_field("min_probability")
    rerank: str | None = option_field("rerank")
    format: str | None = option_field("format")
    temp_dir: str | None = option_field("temp_dir")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command."""

    json: bool = option_field("json")
    debug: bool = option_field("debug")


@dataclass(frozen=True, kw_only=True)
class RayOptions(CommonOptions):
    """Options of every command that works on Ray."""

    workers: int | None = option_field("workers")
    ray_address: str | None = option_field("ray_address")
    gpus_per_worker: float = option_field("gpus_per_worker")
    decoding: str = option_field("decoding")


@dataclass(frozen=True, kw_only=True)
class OutputOptions(RayOptions):
    """Options of every command that works on Ray and writes an output folder."""

    output: str = option_field("output")
    overwrite: bool = option_field("overwrite")


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(
    OutputOptions, ModelOptions, EngineOptions, ReadingOptions, VectorSourceOptions
):
    """Settings of `lookalike embed`."""

    input: str = option_field("input")
    embedding_dtype: str = option_field("embedding_dtype")
    compact: bool = option_field("compact")


@dataclass(frozen=True, kw_only=True)
class IndexSettings(OutputOptions, IndexingOptions, RetriableListingOptions, VectorSourceOptions):
    """Settings of `lookalike index`."""

    embeddings: str = option_field("embeddings")
    embedding_dtype: str = option_field("embedding_dtype")
    export_faiss: str | None = option_field("export_faiss")
    seed: int = option_field("seed")


@dataclass(frozen=True, kw_only=True)
class RankSettings(
    OutputOptions, SearchOptions, OwnCodeOptions, EngineOptions, ReadingOptions, VectorSourceOptions
):
    """Settings of `lookalike rank`."""

    index: str = option_field("index")
    queries: str = option_field(
        "queries",
        help="Images to search for, in the same forms as embed --input; or a store, or precomputed "
        "vectors (Parquet, .npy).",
    )
    unique_pairs: bool = option_field("unique_pairs")
    seed: int = option_field("seed")


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(ModelOptions, EngineOptions, ReadingOptions, IndexingOptions, SearchOptions):
    """Options of a whole job except its queries and its output."""

    gallery: str = option_field("gallery")
    id_column: str | None = option_field(
        "id_column",
        help="Column of a list or Parquet file with the image ids; default: image_id (or id), else "
        "the path or position.",
    )
    embedding_dtype: str = option_field(
        "embedding_dtype", help="Number type of stored vectors; auto: float16."
    )
    all_measures: bool = option_field("all_measures")


@dataclass(frozen=True, kw_only=True)
class RunSettings(OutputOptions, PipelineOptions):
    """Settings of `lookalike run`."""

    queries: str = option_field("queries")
    overwrite: bool = option_field(
        "overwrite",
        help="Replace the stages of an output that were made with other settings.",
    )


@dataclass(frozen=True, kw_only=True)
class PlanSettings(RayOptions, PipelineOptions):
    """Settings of `lookalike plan`."""

    queries: str | None = option_field("queries", default=None)
    output: str | None = option_field(
        "output", default=None,
        help="Folder or URI that the job will write to; the measurement writes there too, and "
        "removes what it wrote.",
    )  # fmt: skip
    cluster: str | None = option_field("cluster")
    sample: int = option_field("sample")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(CommonOptions, RelevanceOptions):
    """Settings of `lookalike evaluate`."""

    matches: str = option_field("matches")
    cutoffs: str = option_field("cutoffs")
    all_measures: bool = option_field("all_measures")
    compare: str | None = option_field("compare")
    exact_matches: str | None = option_field("exact_matches")
    fail_below: str | None = option_field("fail_below")
    per_query: str | None = option_field("per_query")
    calibrate: str | None = option_field("calibrate")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(RayOptions, RelevanceOptions):
    """Settings of `lookalike report`."""

    matches: str = option_field("matches")
    output: str = option_field("output", help="HTML page to write, for example report.html.")
    format: str | None = option_field(
        "format",
        help="What to write, comma-separated: html, png (pictures, in NAME_pictures/); "
        "default: html.",
    )
    compare: str | None = option_field(
        "compare",
        help="With png: other matches of the same queries, drawn beside these as the earlier "
        "ranking.",
    )
    title: str = option_field("title")
    max_queries: int = option_field("max_queries")
    seed: int = option_field("seed")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RayOptions, TrainingOptions):
    """Settings of `lookalike train`."""

    data: str = option_field("data")
    output: str = option_field("output")
    overwrite: bool = option_field("overwrite")
    labels: str | None = option_field(
        "labels",
        help="Labels in a CSV or Parquet file (image_id, label); default: the parent folder's "
        "name.",
    )
    max_pixels: int = option_field(
        "max_pixels",
        help="Largest width x height, read from the header; larger images are left out and "
        "reported.",
    )
    workers: int | None = option_field(
        "workers", help="Number of processes that train one network together; default: 1."
    )
    seed: int = option_field("seed")


@dataclass(frozen=True, kw_only=True)
class PredictSettings(OutputOptions, OwnCodeOptions, EngineOptions, ReadingOptions):
    """Settings of `lookalike predict`."""

    input: str = option_field("input")
    bundle: str | None = option_field(
        "bundle", default=REQUIRED, help="Bundle written by train, with its classes."
    )


@dataclass(frozen=True, kw_only=True)
class CompareSettings(
    RayOptions, ComparedModelOptions, EngineOptions, ListingOptions, ImageOptions
):
    """Settings of `lookalike compare`; without `data` it lists the backbones."""

    data: str | None = option_field(
        "data", default=None,
        help="Labelled images (in the same forms as embed --input); default: only list the "
        "backbones.",
    )  # fmt: skip
    output: str | None = option_field("output", default=None)
    pca: int | None = option_field(
        "pca",
        help="Also measure vectors of N dimensions, or 0 (by a PCA fitted on the compared "
        "images); default: that of --recipe.",
    )
    seed: int = option_field("seed")
    overwrite: bool = option_field(
        "overwrite",
        help="Replace an output that was made with other settings; stores that fit are kept.",
    )


@dataclass(frozen=True, kw_only=True)
class DemoSettings(CommonOptions):
    """Settings of `lookalike demo`."""

    output: str = option_field("output")
    all_measures: bool = option_field("all_measures")
    seed: int = option_field("seed")


@dataclass(frozen=True, kw_only=True)
class VerifySettings(CommonOptions):
    """Settings of `lookalike verify`; the path is its one argument."""

    path: str
    measure_recall: bool = option_field("measure_recall")


Settings = TypeVar("Settings")


def derive_settings(settings: Any, stage: type[Settings], **overrides: Any) -> Settings:
    """Return settings of class `stage`: its fields in `settings`, replaced by `overrides`."""
    names = {field.name for field in dataclasses.fields(stage)}  # type: ignore[arg-type]
    shared = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name in names
    }
    return stage(**{**shared, **overrides})


def content_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that affect the content of an output, for job.json."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if "option" in field.metadata and field.metadata["option"].affects == "content"
    }
