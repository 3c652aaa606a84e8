"""lookalike compare: list the backbones, with what is known of them before anything is embedded.

With `--data` they are compared on labelled images: `compare_data.py`.
"""

from __future__ import annotations

import dataclasses

from jobs.config.settings import CompareSettings
from jobs.evaluation.format_results import table
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.models import registry

_HEADINGS = ("backbone", "parameters", "dimension", "pixels", "GFLOPs", "top-1", "top-5")
_LEGEND = (
    "parameters: millions, with the classifier; dimension: of our vectors, --pooling avg;",
    "pixels: a side; GFLOPs an image and accuracy on ImageNet: as torchvision states them for its",
    "default weights; timm:NAME is a backbone too, where timm is installed",
)


def start(settings: CompareSettings) -> Result:
    """Compare on data, or read what the libraries say: then nothing is fetched, no Ray started."""
    if settings.data is not None:
        from jobs.comparison.compare_on_data import compare

        return compare(settings)
    for option in ("output", "bundle", "labels"):
        if getattr(settings, option) is not None:
            raise UsageError(f"--{option} needs --data, the labelled images to compare on")
    cards = [registry.card(name, flag="--backbones") for name in _names(settings)]
    values = {"backbones": [dataclasses.asdict(card) for card in cards]}
    return Result(values, (*table(_HEADINGS, [_cells(card) for card in cards]), *_LEGEND))


def _names(settings: CompareSettings) -> list[str]:
    if settings.backbones in (None, "all"):
        return sorted(registry.names())
    names = {name.strip() for name in str(settings.backbones).split(",")} - {""}
    if not names:
        raise UsageError("--backbones names none; write a,b,c, or leave it out for the whole list")
    return sorted(names)


def _cells(card: registry.Card) -> tuple[str, ...]:
    return (
        card.backbone,
        f"{card.parameters / 1e6:.1f}",
        str(card.dimension),
        str(card.image_size),
        "" if card.gflops is None else f"{card.gflops:.2f}",
        "" if card.imagenet_top1 is None else f"{card.imagenet_top1:.1%}",
        "" if card.imagenet_top5 is None else f"{card.imagenet_top5:.1%}",
    )
