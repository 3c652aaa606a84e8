"""The `compare` command without --data: list backbones with their published figures.

With `--data` they are compared on labelled images: `compare_on_data.py`.
"""

from __future__ import annotations

import dataclasses

from jobs.config.options import parse_comma_list
from jobs.config.settings import CompareSettings
from jobs.evaluation.format_results import format_table
from jobs.runtime.result import Result
from retrieval.core.errors import UsageError
from retrieval.models import registry

_HEADINGS = ("backbone", "parameters", "dimension", "pixels", "GFLOPs", "top-1", "top-5")
_LEGEND = (
    "parameters: millions, with the classifier; dimension: of the vectors with --pooling avg;",
    "pixels: per side; GFLOPs per image and accuracy on ImageNet: as torchvision states them for",
    "its default weights; timm:NAME is a backbone too, where timm is installed",
)


def start(settings: CompareSettings) -> Result:
    """Compare networks on --data, or list backbones with their published figures.

    Listing neither downloads weights nor starts Ray.
    """
    if settings.data is not None:
        from jobs.comparison.compare_on_data import compare

        return compare(settings)
    for option in ("output", "bundle", "labels"):
        if getattr(settings, option) is not None:
            raise UsageError(f"--{option} needs --data, the labelled images to compare on")
    for name in parse_comma_list(settings.backbones):
        registry.add_named_model(name, settings.python_path)
    cards = [registry.describe_backbone(name, flag="--backbones") for name in _names(settings)]
    values = {"backbones": [dataclasses.asdict(card) for card in cards]}
    return Result(
        values, (*format_table(_HEADINGS, [_format_row(card) for card in cards]), *_LEGEND)
    )


def _names(settings: CompareSettings) -> list[str]:
    if settings.backbones in (None, "all"):
        return sorted(registry.list_backbones())
    names = set(parse_comma_list(settings.backbones))
    if not names:
        raise UsageError("--backbones names none; write a,b,c, or omit it to list all")
    return sorted(names)


def _format_row(card: registry.BackboneCard) -> tuple[str, ...]:
    return (
        card.backbone,
        f"{card.parameters / 1e6:.1f}",
        str(card.dimension),
        str(card.image_size),
        "" if card.gflops is None else f"{card.gflops:.2f}",
        "" if card.imagenet_top1 is None else f"{card.imagenet_top1:.1%}",
        "" if card.imagenet_top5 is None else f"{card.imagenet_top5:.1%}",
    )
