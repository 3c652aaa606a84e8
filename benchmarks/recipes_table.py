"""The table of recipes in docs/backbones.md, from the recorded results of `benchmarks.recipes`."""

from __future__ import annotations

from typing import Any

from benchmarks.results import benchmarks, format_value

_NETWORKS = ("squeezenet1_0", "mobilenet_v2", "timm:tf_efficientnet_lite0", "pooled")
_SHOWN = {
    "default": "squash-gem-256",
    "original": "squash-max-500",
    "plain": "crop-avg-0",
    "default with `--augment-inference flip`": "squash-gem-256-flip",
}


def table() -> str:
    """Return mAP and paired gain of each recipe by network, on the gallery and on the queries."""
    (record,) = (benchmark for benchmark in benchmarks() if benchmark.name == "recipes")
    values: dict[str, Any] = {result.name: result.value for result in record.results}
    lines = [f"| photos | recipe | {' | '.join(_NETWORKS)} |", "|---" * (2 + len(_NETWORKS)) + "|"]
    for part, photos in (("gallery", "gallery, leave-one-out"), ("queries", "180 queries")):
        for title, recipe in _SHOWN.items():
            cells = [_cell(values[f"{part}-{recipe}"], network) for network in _NETWORKS]
            lines.append(f"| {photos} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(measured: dict[str, Any], network: str) -> str:
    """Format a mAP, and the gain of the default recipe over it where there is one."""
    gain = measured.get(f"gain {network}")
    text = f"{measured[network]:.3f}"
    return text if gain is None else f"{text}, gain {format_value(gain, interval=True)}"
