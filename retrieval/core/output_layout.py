"""Which files may lie in an output, by its kind; anything else there is foreign.

A folder that a command writes is an *output*. Files are told by regular expressions of their paths
below it.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["store", "index", "matches", "run", "bundle", "predictions", "comparison"]

REPORT_MARK, REPORT_FOLDERS = "report.json", ("_files", "_pictures")
"""What `report` puts first into the folders beside its page, and what their names end with."""

_COMMON = (r"job\.json", r"manifest\.json", r"files\.parquet", r"run\.json")
_MODEL = (r"model/bundle\.json", r"model/(weights|projection)\.safetensors")
_REPORT = (
    r"report\.html",
    r"report_files/(report\.json|facets\.(js|json)|pages/\d{5,}\.html|chunks/\d{5,}\.(js|json))",
    r"report_files/thumbnails/\d{4,}/\d{3}\.(jpg|json)",
)
KINDS: dict[str, tuple[str, ...]] = {
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
        r"shards/\d{5}\.(faiss|rows\.parquet|json)",
    ),
    "matches": (
        *_COMMON,
        r"labels\.parquet",
        r"certificate\.json",
        r"matches/part-\d{5}\.parquet",
        r"failures/\d{8}\.parquet",
        r"barred/\d{5}\.parquet",
        r"matches\.(jsonl|csv|trec)",
        r"submission\.json",
        r"(jsonl|csv|trec|submission|png)\.sum\.json",
        r"pictures/(grid-\d{5}|recall|scores|map)\.png",
        *_REPORT,
        r"pairs\.parquet",
    ),
    "run": (*_COMMON, *_REPORT),
    "predictions": (*_COMMON, r"predictions/part-\d{5}\.parquet"),
    "comparison": (*_COMMON, r"backbones/[\w.-]+\.json", r"compare\.(parquet|html)"),
}
