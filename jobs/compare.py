"""lookalike compare: list the backbones, with what is known of them before anything is embedded."""

from __future__ import annotations

import dataclasses

from jobs.result import Result
from jobs.settings import CompareSettings
from retrieval.errors import UsageError
from retrieval.model import backbones

_HEADINGS = ("backbone", "parameters", "dimension", "pixels", "GFLOPs", "top-1", "top-5")
_LEGEND = (
    "parameters: millions, with the classifier; dimension: of our vectors, --pooling avg;",
    "pixels: a side; GFLOPs an image and accuracy on ImageNet: as torchvision states them for its",
    "default weights; timm:NAME is a backbone too, where timm is installed",
)


def start(settings: CompareSettings) -> Result:
    """Read what the libraries say; no weights are fetched and no Ray is started."""
    cards = [backbones.card(name, flag="--backbones") for name in _names(settings)]
    values = {"backbones": [dataclasses.asdict(card) for card in cards]}
    return Result(values, (*_table([_cells(card) for card in cards]), *_LEGEND))


def _names(settings: CompareSettings) -> list[str]:
    if settings.backbones is None:
        return sorted(backbones.names())
    names = {name.strip() for name in settings.backbones.split(",")} - {""}
    if not names:
        raise UsageError("--backbones names none; write a,b,c, or leave it out for the whole list")
    return sorted(names)


def _cells(card: backbones.Card) -> tuple[str, ...]:
    return (
        card.backbone,
        f"{card.parameters / 1e6:.1f}",
        str(card.dimension),
        str(card.image_size),
        "" if card.gflops is None else f"{card.gflops:.2f}",
        "" if card.imagenet_top1 is None else f"{card.imagenet_top1:.1%}",
        "" if card.imagenet_top5 is None else f"{card.imagenet_top5:.1%}",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Align the names left and the numbers right, each column as wide as it must be."""
    lines = [_HEADINGS, *rows]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(_HEADINGS))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    ]
