"""Every option once: name, type, default, unit, help, and whether it shapes content.

The settings of each stage (`settings.py`), the command line and the help page are made from this
table. What *shapes content* goes into job.json and into fingerprints;
what says *how it runs* never changes a byte of the result. Sizes become bytes here, at the edge.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jobs.config.option import REQUIRED, Option
from jobs.config.parsing import PARSERS
from retrieval.core.errors import UsageError

MAX_PIXELS = 178956970
"""Above it Pillow refuses by itself; pages and pictures show no larger images."""

AUTO = "auto"
"""--embedding-dtype that is resolved by what there is; job.json holds what it was resolved to."""


def _table(*options: Option) -> dict[str, Option]:
    return {option.name: option for option in options}


OPTIONS = _table(
    Option("gallery", "path", REQUIRED, "content",
           "images to search: a folder, a list, tars or Parquet; path or URI", place="read"),
    Option("queries", "path", REQUIRED, "content",
           "images to search for, alike; rank: or a store, or vectors", place="read"),
    Option("input", "path", REQUIRED, "content",
           "images: a folder, a list (.txt, .csv, .parquet), .tar or Parquet files; or vectors",
           place="read"),
    Option("output", "path", REQUIRED, "run", "folder or URI to write; made if absent",
           place="written"),
    Option("embeddings", "path", REQUIRED, "content",
           "a store that `embed` made, or vectors made elsewhere (Parquet, .npy); rank, optional: "
           "where the index's own store lies now", place="read"),
    Option("index", "path", REQUIRED, "content", "an index that `index` made", place="read"),
    Option("matches", "path", REQUIRED, "content", "matches that `rank` made", place="read"),
    Option("data", "path", REQUIRED, "content", "labelled images: a folder a class", place="read"),
    Option("image_column", str, None, "content",
           "of a list or of Parquet: holds the paths, or the images' bytes; default: by its name"),
    Option("id_column", str, None, "content",
           "of a list, Parquet or --ids: names each; default: image_id (id), else path or place"),
    Option("embedding_column", str, None, "content",
           "of Parquet: holds vectors made elsewhere; default: embedding, or the only such one"),
    Option("ids", "path", None, "content",
           "of .npy: their ids, a .txt, .npy, .csv or .parquet; default: the rows' numbers"),
    Option("labels", "path", None, "content",
           "CSV or Parquet with image_id,label (and split); default: an image's parent folder"),
    Option("qrels", "path", None, "content",
           "TREC's file of what is relevant: query_id 0 image_id grade; instead of labels"),
    Option("junk_grade", int, -1, "content",
           "grade in --qrels of images that are passed over, as if they were not there"),
    Option("cutoffs", str, "10", "content",
           "K,K,...: measure the first K matches too: P@K, R@K, mAP@K, AP@K, nDCG@K, Success@K"),
    Option("intervals_over", str, "queries", "content",
           "what 95 % intervals speak of: further queries of these classes; or further classes, as "
           "where the network was not trained on them", choices=("queries", "classes")),
    Option("all_measures", bool, False, "run",
           "print every measure (docs/measures.md); --json has them in any case"),
    Option("compare", "path", None, "content",
           "other matches of the same queries: the paired difference, and what changed most"),
    Option("exact", "path", None, "content",
           "the same ranking with --recall exact: what was lost is split between backbone and index"
           ),
    Option("fail_below", str, None, "run",
           "MEASURE=BOUND,...: exit 5 if one is below its bound, as map=0.6,top1=0.8 or AP=0.6"),
    Option("per_query", "path", None, "run",
           "also write a line a query to this file: .csv or .parquet"),
    Option("backbone", str, "resnet50", "content",
           "a torchvision classification model, timm:NAME, or scratch (train)"),
    Option("backbones", str, None, "content",
           "the ones to list or to compare, a,b,c; all: torchvision's, and scratch with --weights"),
    Option("weights", "path", None, "content",
           "state dict (.safetensors, .pth) or URI, or random; default: the backbone's own"),
    Option("bundle", "path", None, "content", "a trained or stored bundle, instead of a backbone"),
    Option("pooling", str, "avg", "content", "how a feature map becomes a vector",
           choices=("avg", "max", "gem")),
    Option("normalize", bool, True, "content", "bring vectors to unit length before storing"),
    Option("image_size", int, None, "content",
           "pixels a side that the network reads; default: the weights' own", low=16, high=4096),
    Option("resize", str, None, "content",
           "crop: shorter side, then centre; squash: both sides; pad: longer side, then fill; "
           "default: the weights' own, crop for all of torchvision's",
           choices=("crop", "squash", "pad")),
    Option("embedding_dtype", str, AUTO, "content",
           "numbers of a stored vector; auto: float16 of images; of vectors made elsewhere as they "
           "are, float64 and integers as float32", choices=(AUTO, "float16", "float32")),
    Option("pca", int, None, "content",
           "project vectors to so many dimensions, fitted on a sample of the gallery", low=1),
    Option("engine", str, None, "content",
           "what runs the network; default: openvino on CPUs, torch on GPUs",
           choices=("openvino", "torch")),
    Option("precision", str, None, "content",
           "of the network's arithmetic; default: fp32 on CPUs, bf16 on GPUs",
           choices=("fp32", "bf16")),
    Option("device", str, None, "content", "default: cuda where the cluster has a GPU",
           choices=("cpu", "cuda")),
    Option("batch_size", int, None, "content",
           "images a forward pass; default: 2 on CPUs, 256 on GPUs", low=1, high=4096),
    Option("chunk_rows", int, None, "content",
           "images a part file holds; default: by the size of the listing, 256 to 4096",
           low=1, high=1 << 20),
    Option("max_pixels", int, MAX_PIXELS, "content",
           "width x height above which an image goes to the ledger, judged by its header", low=1),
    Option("limit", int, None, "content", "take only the first N images of the listing", low=1),
    Option("max_error_rate", float, 0.01, "run",
           "share of images that may fail, 0 to 1; above it: exit 4", low=0, high=1),
    Option("retry_failed", bool, False, "run",
           "try again what stands in the ledger; what is recovered keeps its row"),
    Option("compact", bool, False, "run",
           "make one segment again of a store that grew; rows are numbered anew"),
    Option("metric", str, "cosine", "content", "what close means", choices=("cosine", "ip", "l2")),
    Option("max_index_memory", "size", "4G", "content",
           "bytes one task may hold: a shard and a block of queries"),
    Option("rows_per_shard", int, None, "content", "default: planned from the memory", low=1),
    Option("index_factory", str, None, "content",
           "any IVF kind of FAISS, as its index_factory reads it; default: planned, IVFn,SQfp16"),
    Option("scratch", "path", None, "run",
           "local folder of each node for the shard at hand; default: its temporary folder"),
    Option("merge_into", "path", None, "run",
           "also write all live rows as one FAISS index into this local file"),
    Option("top_k", int, 10, "content", "matches a query", low=1, high=1 << 20),
    Option("recall", "recall", "0.95", "content",
           "share of the exact top-k that must be found, 0 to 1, or exact; below it: exit 5"),
    Option("nprobe", int, None, "content",
           "lists read a query, by hand: recall is measured but not gated", low=1),
    Option("filter", str, None, "content",
           "condition on gallery images, as SQL: \"label = 'cat' and width > 200\""),
    Option("exclude_self", bool, False, "content",
           "leave a query's own image out: its row in its own store, else the same bytes"),
    Option("min_score", float, None, "content",
           "matches must be at least so close; l2: at most so far"),
    Option("expand_queries", str, None, "content",
           "N[,ALPHA]: add the N closest images to each query, weighed by score^ALPHA (3), and ask "
           "again; scores are then those of the expanded queries"),
    Option("unique_pairs", bool, False, "run",
           "a store against itself: also write each pair once, closest first: pairs.parquet"),
    Option("format", str, None, "run",
           "also write the matches as these, a,b,c: jsonl, csv, trec, submission, html, png"),
    Option("epochs", int, 30, "content", "passes over the training images, at most", low=1),
    Option("patience", int, None, "content",
           "stop after so many epochs without a better one; default: never", low=1),
    Option("leave_out", str, None, "content", "classes to keep out of training, a,b,c"),
    Option("validation", float, 0.3, "content",
           "share that is held out to judge epochs by, 0 to 1", low=0.01, high=0.9),
    Option("split_by", str, "image", "content",
           "hold out images of each class, or whole classes", choices=("image", "class")),
    Option("objective", str, "cross-entropy", "content",
           "what is learnt; all but the first need lookalike[metric]",
           choices=("cross-entropy", "arcface", "supcon", "proxy-anchor", "triplet")),
    Option("unfreeze", str, "all", "content",
           "layers of a pretrained backbone that learn: none, all or last:N"),
    Option("learning_rate", float, 0.001, "content", "the highest that AdamW reaches", low=0),
    Option("body_rate", float, 0.1, "content",
           "rate of a pretrained backbone, as a share of --learning-rate", low=0, high=1),
    Option("schedule", str, "cosine", "content",
           "cosine: falls to nothing; plateau: times 0.85 where two epochs were no better",
           choices=("cosine", "plateau")),
    Option("augment", str, "flip,crop,zoom,rotate,shear,colour", "content",
           "how photos are varied, a,b,c of these, or none"),
    Option("cache", "path", None, "run",
           "local folder that keeps photos decoded, for the next training; default: none"),
    Option("seed", int, 0, "content", "of everything that is drawn", low=0, high=(1 << 32) - 1),
    Option("workers", int, None, "run",
           "processes that work; of a cluster that grows: the most; default: all there is now",
           low=1),
    Option("gpus_per_worker", float, 1.0, "run",
           "share of a GPU, so that several workers use one: 0.5", low=0.05, high=1),
    Option("ray_address", str, None, "run",
           "a running Ray cluster: auto, host:port, or http://HEAD:8265 to run there as a job; "
           "default: $RAY_ADDRESS, else this machine"),
    Option("overwrite", bool, False, "run",
           "start anew where another job's output stands (run: only the stages that differ)"),
    Option("json", bool, False, "run", "print one JSON object on stdout"),
    Option("debug", bool, False, "run", "print the traceback of an error"),
    Option("measure_recall", bool, False, "run",
           "verify: measure an index's recall curve once more; it must come out the same"),
    Option("cluster", str, None, "run",
           "plan: scale what is measured here to another cluster, as 20x(16cpu,1gpu)+4x(32cpu)"),
    Option("sample", int, 200, "run", "plan: images that are embedded to measure", low=16),
    Option("title", str, "lookalike", "content", "heading of the page"),
    Option("max_queries", int, 100_000, "content",
           "queries the report shows, failed ones first; run and rank --format html: 1000", low=1),
)  # fmt: skip


def setting(name: str, **changes: Any) -> Any:
    """Make a dataclass field from the option of that name; `changes` are a verb's own."""
    option = dataclasses.replace(OPTIONS[name], **changes)
    if option.default is REQUIRED:
        return dataclasses.field(metadata={"option": option})
    parse = PARSERS.get(option.type)
    default = parse(option.default) if parse else option.default
    return dataclasses.field(default=default, metadata={"option": option})


def check(settings: Any) -> None:
    """Refuse values outside an option's range or choices, however the settings were made."""
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
