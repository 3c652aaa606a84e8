"""File layout of every kind of output: the paths that may occur in it, as regular expressions.

An *output* is a folder that a command writes. A file in it whose path matches no pattern is
*foreign*: it was not written by lookalike.
"""

from __future__ import annotations

from typing import Literal

OutputKind = Literal["store", "index", "matches", "run", "bundle", "predictions", "comparison"]

REPORT_MARK, REPORT_FOLDERS = "report.json", ("_files", "_pictures")
"""Marker file that `report` writes first into each folder beside its page, and the suffixes of
these folders."""

CALIBRATION = "calibration.json"
"""Copy, in matches, of the file of --calibration that gave their probabilities."""

_COMMON = (r"job\.json", r"manifest\.json", r"files\.parquet", r"run\.json")
_MODEL = (r"model/bundle\.json", r"model/(weights|projection)\.safetensors", r"model/weights\.onnx")
_REPORT = (
    r"report\.html",
    r"report_files/(report\.json|facets\.(js|json)|pages/\d{5,}\.html|chunks/\d{5,}\.(js|json))",
    r"report_files/thumbnails/\d{4,}/\d{3}\.(jpg|json)",
)
OUTPUT_LAYOUTS: dict[str, tuple[str, ...]] = {
    "bundle": (
        *_COMMON,
        *_MODEL,
        r"(history|split|confusion)\.parquet",
        r"classifier\.(json|safetensors)",
        r"(curves|confusion)\.png",
        r"png\.sum\.json",
    ),
    "store": (
        *_COMMON,
        *_MODEL,
        r"segments/\d{5}/listing\.parquet",
        r"segments/\d{5}/segment\.json",
        r"segments/\d{5}/deleted\.parquet",
        r"segments/\d{5}/(parts|failures)/\d{8}(-\d+)?\.parquet",
    ),
    "index": (
        *_COMMON,
        *_MODEL,
        r"trained\.(faiss|json)",
        r"spread\.json",
        r"(recall|labels|deleted)\.parquet",
        r"generations/\d{5}\.(parquet|json)",
        r"shards/\d{5}\.(faiss|vectors|rows\.parquet|json)",
    ),
    "matches": (
        *_COMMON,
        r"labels\.parquet",
        r"(certificate|calibration)\.json",
        r"matches/part-\d{5}\.parquet",
        r"failures/\d{8}\.parquet",
        r"barred/\d{5}\.parquet",
        r"matches\.(jsonl|csv|trec)",
        r"submission\.json",
        r"(jsonl|csv|trec|submission|png)\.sum\.json",
        r"pictures/(grid-\d{5}|recall|scores|map)\.png",
        *_REPORT,
        r"(pairs|groups|leaks)\.parquet",
        r"(keep|remove)\.txt",
        r"(groups|leaks)\.json",
    ),
    "run": (*_COMMON, *_REPORT),
    "predictions": (*_COMMON, r"predictions/part-\d{5}\.parquet"),
    "comparison": (*_COMMON, r"backbones/[\w.-]+\.json", r"compare\.(parquet|html)"),
}
