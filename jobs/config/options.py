"""Definitions of all command-line options, and parsers of their values.

The settings classes (`settings.py`), the command line and docs/options.md are derived from
`OPTIONS`. An option affects either the *content* of an output, and is then part of job.json and of
the job's fingerprint, or only how the command *runs*, which never changes a byte of the output.
Sizes, recalls and other structured values are parsed here, so that other modules see numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from retrieval.core.errors import UsageError
from retrieval.index.index_kind import parse_index_kind

MAX_PIXELS = 178956970
"""Default of --max-pixels: Pillow's own limit; reports and pictures show no larger images."""

AUTO = "auto"
"""Value of --embedding-dtype that is resolved from the input; job.json holds the resolved type."""

REQUIRED = object()
"""Default of an option that has none and must be given."""


@dataclass(frozen=True)
class Option:
    """One option of the command line."""

    name: str
    type: type | str  # int, float, str, bool, "path", "size", "recall" or "factory"
    default: Any
    affects: Literal["content", "run"]
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None  # smallest value allowed
    high: float | None = None  # largest value allowed
    access: Literal["read", "written"] | None = None  # how workers use this path or URI

    @property
    def flag(self) -> str:
        """Return the name on the command line, such as `--top-k`."""
        return "--" + self.name.replace("_", "-")


_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Parse `16G`, `512M` or a number of bytes into bytes; raise ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _SIZE_UNITS[match[2].upper()]) if match else 0
    if not size:
        raise ValueError(f"{text!r} is not a size; write 512M or 16G")
    return size


def parse_recall(text: str) -> float:
    """Parse a recall in (0, 1], or `exact`, which is 1.0; raise ValueError for anything else."""
    if text == "exact":
        return 1.0
    try:
        recall = float(text)
    except ValueError:
        recall = -1.0
    if not 0 < recall <= 1:
        raise ValueError(f"{text!r} is not a recall; write 0.95 or exact")
    return recall


def check_index_factory(text: str) -> str:
    """Return the text unchanged; raise ValueError where it is no supported kind of index."""
    return parse_index_kind(text).factory


VALUE_PARSERS: dict[Any, Callable[[str], Any]] = {
    "size": parse_size, "recall": parse_recall, "factory": check_index_factory,
}  # fmt: skip
"""Parser of each option type that is typed as text: a size and a recall are stored as numbers."""


def parse_cluster(text: str) -> list[tuple[int, int, int]]:
    """Parse `20x(16cpu,1gpu)+4x(32cpu)` into (nodes, CPUs per node, GPUs per node) per group.

    Raises ValueError for anything else.
    """
    groups = []
    for group in text.lower().replace(" ", "").split("+"):
        match = re.fullmatch(r"(\d+)x\((\d+)cpus?(?:,(\d+)gpus?)?\)", group)
        nodes, cpus, gpus = (int(digits or 0) for digits in match.groups()) if match else (0, 0, 0)
        if not nodes or not cpus:
            raise ValueError(
                f"{text!r} is not a cluster; write 20x(16cpu,1gpu), several kinds joined with +"
            )
        groups.append((nodes, cpus, gpus))
    return groups


_EXPANSION_ALPHA = 3.0  # the value of the paper cited in retrieval/search/query_expansion.py
_RERANKED = {"expand": 5, "k-reciprocal": 200, "augment": 200}  # methods, and their default counts
_MAX_RERANKED = 1000  # all pairs of the first matches are compared
_MAX_EXPANDED = 1 << 20  # the largest --top-k


@dataclass(frozen=True)
class Reranking:
    """Value of --rerank: the method, and the number of first matches that it uses.

    `expand` adds them to the query, weighted by score ** alpha, and searches again; the other
    methods order them anew.
    """

    method: str
    count: int  # at least 1
    alpha: float | None = None  # at least 0, which weights all matches equally; of `expand` alone


def parse_reranking(text: str) -> Reranking:
    """Parse METHOD, METHOD:N or expand:N,ALPHA; raise ValueError for anything else."""
    match = re.fullmatch(
        r"([a-z-]+)(?::([0-9]{1,7})(?:,([0-9]{1,3}(?:\.[0-9]+)?))?)?", text.strip()
    )
    name = match[1] if match else ""
    if not match or name not in _RERANKED or (match[3] and name != "expand"):
        raise ValueError(
            f"{text!r} is no re-ranking; write k-reciprocal, augment or expand, also with the "
            "number of matches, as k-reciprocal:200 or expand:5,3 (matches, alpha)"
        )
    count = int(match[2] or _RERANKED[name])
    highest = _MAX_EXPANDED if name == "expand" else _MAX_RERANKED
    if not 1 <= count <= highest:
        raise ValueError(f"{text!r} uses {count} matches; write 1 to {highest}")
    alpha = float(match[3] or _EXPANSION_ALPHA) if name == "expand" else None
    return Reranking(name, count, alpha)


def parse_comma_list(text: str | None) -> list[str]:
    """Return the stripped, non-empty parts of a comma-separated list in their order."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _by_name(*options: Option) -> dict[str, Option]:
    return {option.name: option for option in options}


OPTIONS = _by_name(
    # inputs and outputs
    Option("gallery", "path", REQUIRED, "content",
           "Images to search in: a folder, a list file (.txt, .csv, .parquet), .tar archives or "
           "Parquet files; a path or URI.", access="read"),
    Option("queries", "path", REQUIRED, "content",
           "Images to search for, in the same forms as --gallery.", access="read"),
    Option("input", "path", REQUIRED, "content",
           "Images: a folder, a list file (.txt, .csv, .parquet), .tar archives or Parquet files; "
           "or precomputed vectors (Parquet, .npy).", access="read"),
    Option("output", "path", REQUIRED, "run", "Folder or URI to write to; created if absent.",
           access="written"),
    Option("embeddings", "path", REQUIRED, "content",
           "Store written by embed, or precomputed vectors (Parquet, .npy).", access="read"),
    Option("index", "path", REQUIRED, "content", "Index written by index.", access="read"),
    Option("matches", "path", REQUIRED, "content", "Matches written by rank.", access="read"),
    Option("data", "path", REQUIRED, "content",
           "Labelled images: one subfolder per class, or any input with --labels.",
           access="read"),
    # reading sources
    Option("image_column", str, None, "content",
           "Column of image paths or bytes (in a list or Parquet file); default: recognised by its "
           "name."),
    Option("id_column", str, None, "content",
           "Column of a list, Parquet or --ids file with the image ids; default: image_id (or id), "
           "else the path or position."),
    Option("box_columns", str, None, "content",
           "Columns of a list or Parquet file with a box per row, such as x,y,width,height (or one "
           "column of lists of them): each row is the part of its upright image in the box."),
    Option("box_units", str, "pixels", "content",
           "Unit of --box-columns: pixels, or relative to the image's width and height (0 to 1, as "
           "MegaDetector writes them).", choices=("pixels", "relative")),
    Option("embedding_column", str, None, "content",
           "Parquet column of vectors; default: embedding, or the only one."),
    Option("ids", "path", None, "content",
           "File with the ids of the vectors in a .npy file (.txt, .npy, .csv or .parquet); "
           "default: row numbers."),
    Option("labels", "path", None, "content",
           "Labels in a CSV or Parquet file (image_id, label and optionally split); default: the "
           "parent folder's name."),
    # evaluation
    Option("qrels", "path", None, "content",
           "TREC file of relevant images (query_id 0 image_id grade), used instead of labels."),
    Option("junk_grade", int, -1, "content",
           "Grade in --qrels that marks images to ignore, as if they were not ranked."),
    Option("cutoffs", str, "10", "content",
           "Cutoffs K,K,... (of P@K, R@K, mAP@K, AP@K, nDCG@K and Success@K)."),
    Option("intervals_over", str, "queries", "content",
           "What the 95 % intervals generalise to: other queries of these classes, or other "
           "classes (for a backbone that was not trained on them).",
           choices=("queries", "classes")),
    Option("calibrate", "path", None, "run",
           "Also learn how likely matches are right (from their scores and these labels; a .json "
           "file for --calibration)."),
    Option("all_measures", bool, False, "run",
           "Print every measure (docs/measures.md); --json always contains all of them."),
    Option("compare", "path", None, "content",
           "Other matches of the same queries: report the paired difference and the queries that "
           "changed most."),
    Option("exact_matches", "path", None, "content",
           "The same ranking made with --recall exact: split the loss of quality between backbone "
           "and index."),
    Option("fail_below", str, None, "run",
           "Lower bounds MEASURE=BOUND,... (such as map=0.6,top1=0.8 or AP=0.6); a measure below "
           "its bound ends with exit code 5."),
    Option("per_query", "path", None, "run",
           "Also write one line per query to this .csv or .parquet file."),
    # model
    Option("backbone", str, "resnet50", "content",
           "Torchvision model, timm:NAME, onnx:FILE or scratch (the small network of train; or "
           "your own, python:MODULE:FACTORY)."),
    Option("python_path", "path", None, "run",
           "Folder with the module of --backbone python:... (searched after installed packages).",
           access="read"),
    Option("backbones", str, None, "content",
           "Comma-separated backbones to list or compare; all: every torchvision model, and "
           "scratch with --weights."),
    Option("weights", "path", None, "content",
           "State dict (.safetensors or .pth; path or URI), or random; default: the published "
           "weights."),
    Option("bundle", "path", None, "content",
           "Bundle to use instead of a backbone: written by train, or taken from a store."),
    Option("recipe", str, "default", "content",
           "Defaults of --resize, --pooling and --pca: default (squash, gem, 256; the best on "
           "photos), original (squash, max, 500; the student project's) or plain (the weights' "
           "own, avg, none; that of published figures); of a --bundle only --pca, if train wrote "
           "it.",
           choices=("default", "original", "plain")),
    Option("pooling", str, None, "content",
           "How the feature map is pooled into one vector; default: that of --recipe; avg, the "
           "network's own output, where it ends in no map of rectified features.",
           choices=("avg", "max", "gem")),
    Option("normalize", bool, True, "content", "Scale vectors to unit length before storing them."),
    Option("image_size", int, None, "content",
           "Side of the square input in pixels; default: that of the weights.",
           low=16, high=4096),
    Option("resize", str, None, "content",
           "How an image becomes square: crop scales the shorter side and cuts out the centre, "
           "squash scales both sides, pad scales the longer side and fills; default: that of "
           "--recipe.",
           choices=("crop", "squash", "pad")),
    Option("mean", str, None, "content",
           "Mean of the input per channel, R,G,B from 0 to 1; default: that of the weights."),
    Option("std", str, None, "content",
           "Standard deviation of the input per channel, R,G,B; default: that of the weights."),
    Option("interpolation", str, None, "content",
           "Filter that resizes images; default: that of the weights.",
           choices=("bilinear", "bicubic")),
    Option("embedding_dtype", str, AUTO, "content",
           "Number type of stored vectors; auto: float16 for images, unchanged for precomputed "
           "vectors (float64 and integers become float32).", choices=(AUTO, "float16", "float32")),
    Option("pca", int, None, "content",
           "Dimensions after a PCA (fitted on a sample of the gallery), or 0 for none; default: "
           "that of --recipe; it needs 1.2 images per dimension.",
           low=0),
    Option("augment_inference", str, None, "content",
           "Images whose vectors are averaged: flip adds the mirror image and doubles the time of "
           "the network; default: none.",
           choices=("none", "flip")),
    # inference
    Option("engine", str, None, "content",
           "Library that runs the network; default: openvino on CPUs, torch on GPUs.",
           choices=("openvino", "torch")),
    Option("precision", str, None, "content",
           "Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.",
           choices=("fp32", "bf16")),
    Option("device", str, None, "content",
           "Where the network runs; default: cuda if there is a GPU, else cpu.",
           choices=("cpu", "cuda")),
    Option("batch_size", int, None, "content",
           "Images per forward pass; default: 2 on CPUs, 256 on GPUs.", low=1, high=4096),
    # listing and failures
    Option("chunk_rows", int, None, "content",
           "Images per part file; default: 256 to 4096, by the number of images.",
           low=1, high=1 << 20),
    Option("max_pixels", int, MAX_PIXELS, "content",
           "Largest width x height, read from the header; larger images go to the ledger.", low=1),
    Option("limit", int, None, "content", "Use only the first N images; default: all.", low=1),
    Option("max_error_rate", float, 0.01, "run",
           "Share of images that may fail, 0 to 1; more failures end with exit code 4.",
           low=0, high=1),
    Option("retry_failed", bool, False, "run",
           "Try the images in the ledger again; a recovered image keeps its row."),
    Option("compact", bool, False, "run",
           "Rewrite a store of several segments as one; rows are numbered anew."),
    # index
    Option("metric", str, "cosine", "content",
           "Similarity of vectors: cosine, inner product (ip) or Euclidean distance (l2).",
           choices=("cosine", "ip", "l2")),
    Option("max_index_memory", "size", "4G", "content",
           "Memory of one task for a shard and a block of queries."),
    Option("rows_per_shard", int, None, "content",
           "Vectors per index shard; default: planned from --max-index-memory.", low=1),
    Option("index_factory", "factory", None, "content",
           "Kind of the index as FAISS writes it: IVFn,Flat or IVFn,SQfp16 (the vectors), IVFn,SQ8 "
           "or IVFn,PQmx4fs (lossy codes, rescored by the stored vectors; n is the number of "
           "lists); default: the vectors."),
    Option("temp_dir", "path", None, "run",
           "Local folder on each node for the shard being processed; default: the node's "
           "temporary folder."),
    Option("export_faiss", "path", None, "run",
           "Also write all live rows as one FAISS index to this local file."),
    # search
    Option("top_k", int, 10, "content", "Number of matches per query.", low=1, high=1 << 20),
    Option("recall", "recall", "0.95", "content",
           "Share of the exact top-k to find, 0 to 1, or exact; a lower measured recall ends with "
           "exit code 5."),
    Option("nprobe", int, None, "content",
           "Inverted lists searched per query; the recall is then measured but not required; "
           "default: chosen for each query, as many as --recall needs.", low=1),
    Option("filter", str, None, "content",
           "SQL condition on gallery images: \"label = 'cat' and width > 200\"."),
    Option("exclude_self", bool, False, "content",
           "Exclude the query image itself: its own row when a store is searched against itself, "
           "else images with the same bytes."),
    Option("min_score", float, None, "content",
           "Lowest score of a match; for l2 the largest distance; default: no limit."),
    Option("calibration", "path", None, "content",
           "File of evaluate --calibrate, made with the same network and metric: matches get a "
           "probability of being right."),
    Option("min_probability", float, None, "content",
           "Lowest probability of a match, by --calibration; default: no limit.", low=0, high=1),
    Option("rerank", str, None, "content",
           "Method that improves the ranking from the first N matches: k-reciprocal[:N] or "
           "augment[:N] (cosine only; N is 200 by default) order them anew, expand[:N[,ALPHA]] (5, "
           "3) adds them to the query and searches again; scores then differ from similarities."),
    Option("unique_pairs", bool, False, "run",
           "Also write each pair of duplicates once, closest first; with --min-score also the "
           "groups of duplicates in the gallery, or the leaks if --queries is another set."),
    Option("format", str, None, "run",
           "Also write the matches in these formats, comma-separated: jsonl, csv, trec, "
           "submission, html, png."),
    # training
    Option("epochs", int, 30, "content", "Maximum number of passes over the training images.",
           low=1),
    Option("patience", int, None, "content",
           "Stop after this many epochs without improvement; default: never.", low=1),
    Option("exclude_classes", str, None, "content",
           "Comma-separated classes that are not used at all; default: none."),
    Option("validation_fraction", float, 0.3, "content",
           "Share of the images, or classes (--split-by), held out to choose the best epoch.",
           low=0.01, high=0.9),
    Option("split_by", str, "image", "content",
           "Hold out images of each class, or whole classes.", choices=("image", "class")),
    Option("objective", str, "cross-entropy", "content",
           "Training loss; all but cross-entropy need lookalike[metric].",
           choices=("cross-entropy", "arcface", "supcon", "proxy-anchor", "triplet")),
    Option("unfreeze", str, "all", "content",
           "Layers of a pretrained backbone that are trained: none, all or last:N."),
    Option("learning_rate", float, 0.001, "content", "Peak learning rate of AdamW.", low=0),
    Option("backbone_lr_scale", float, 0.1, "content",
           "Learning rate of a pretrained backbone, relative to --learning-rate.", low=0, high=1),
    Option("schedule", str, "cosine", "content",
           "Learning-rate schedule; cosine: decay to zero; plateau: multiply by 0.85 after two "
           "epochs without improvement.", choices=("cosine", "plateau")),
    Option("augment", str, "flip,crop,zoom,rotate,shear,colour", "content",
           "Random augmentations (of the training images; comma-separated, or none)."),
    Option("cache", "path", None, "run",
           "Local folder that keeps decoded images for later training runs; default: none."),
    # how a command runs
    Option("seed", int, 0, "content", "Seed of all random choices.", low=0, high=(1 << 32) - 1),
    Option("workers", int, None, "run",
           "Number of workers (the maximum on an autoscaling cluster); default: the CPUs at the "
           "start.", low=1),
    Option("gpus_per_worker", float, 1.0, "run",
           "Share of a GPU per worker; 0.5 lets two workers use one GPU.", low=0.05, high=1),
    Option("decoding", str, AUTO, "run",
           "Where images are decoded: by the workers that embed them (fused), or by tasks on all "
           "nodes (separate); auto: separate if the workers use GPUs and there are nodes without.",
           choices=(AUTO, "fused", "separate")),
    Option("ray_address", str, None, "run",
           "Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the command as a "
           "job; default: $RAY_ADDRESS, else this machine."),
    Option("overwrite", bool, False, "run",
           "Replace an output that was made with other settings."),
    Option("json", bool, False, "run", "Print one JSON object on stdout."),
    Option("debug", bool, False, "run", "Print the traceback of an error."),
    # verify, plan and report
    Option("measure_recall", bool, False, "run",
           "Measure the recall curve of an index again and require the same result."),
    Option("cluster", str, None, "run",
           "Cluster, such as 20x(16cpu,1gpu)+4x(32cpu); default: the current one."),
    Option("sample", int, 200, "run", "Number of images embedded to measure the speed.", low=16),
    Option("title", str, "lookalike", "content", "Heading of the page."),
    Option("max_queries", int, 100_000, "content",
           "Maximum number of queries in the report (failed ones first); run and rank --format "
           "html: 1000.", low=1),
)  # fmt: skip


GROUPS: dict[str, tuple[str, ...]] = {
    "Input": (
        "gallery", "queries", "input", "embeddings", "index", "matches", "data", "labels",
        "image_column", "id_column", "box_columns", "box_units", "embedding_column", "ids", "limit",
        "max_pixels", "max_error_rate", "retry_failed",
    ),
    "Output": (
        "output", "overwrite", "format", "unique_pairs", "per_query", "export_faiss",
        "embedding_dtype", "chunk_rows", "compact", "title", "max_queries",
    ),
    "Model": (
        "backbone", "python_path", "backbones", "weights", "bundle", "recipe", "pooling",
        "normalize", "image_size", "resize", "mean", "std", "interpolation", "pca",
        "augment_inference", "engine", "precision", "device", "batch_size",
    ),
    "Training": (
        "objective", "unfreeze", "epochs", "patience", "learning_rate", "backbone_lr_scale",
        "schedule", "augment", "exclude_classes", "validation_fraction", "split_by", "cache",
    ),
    "Index": (
        "metric", "max_index_memory", "rows_per_shard", "index_factory", "temp_dir",
        "measure_recall",
    ),
    "Search": (
        "top_k", "recall", "nprobe", "filter", "exclude_self", "min_score", "rerank", "calibration",
        "min_probability",
    ),
    "Evaluation": (
        "qrels", "junk_grade", "cutoffs", "intervals_over", "all_measures", "compare",
        "exact_matches", "fail_below", "calibrate",
    ),
    "Cluster": ("workers", "gpus_per_worker", "decoding", "ray_address", "cluster", "sample"),
    "General": ("seed", "json", "debug"),
}  # fmt: skip
"""Names of the options by subject, in the order of the help."""


def option_field(name: str, **changes: Any) -> Any:
    """Return a dataclass field for the option `name`; `changes` replace fields of the Option."""
    option = dataclasses.replace(OPTIONS[name], **changes)
    if option.default is REQUIRED:
        return dataclasses.field(metadata={"option": option})
    parse = VALUE_PARSERS.get(option.type)
    default = parse(option.default) if parse and option.default is not None else option.default
    return dataclasses.field(default=default, metadata={"option": option})


def validate_settings(settings: Any) -> None:
    """Raise UsageError for a value outside its option's range or choices."""
    for field in dataclasses.fields(settings):
        option = field.metadata.get("option")
        value = getattr(settings, field.name)
        if option is None or value is None:
            continue
        if option.choices and value not in option.choices:
            raise UsageError(f"{option.flag} {value!r}: write one of {', '.join(option.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{option.flag} {value}: write a number")
        if option.low is not None and value < option.low:
            raise UsageError(f"{option.flag} {value}: write at least {option.low:.10g}")
        if option.high is not None and value > option.high:
            raise UsageError(f"{option.flag} {value}: write at most {option.high:.10g}")
