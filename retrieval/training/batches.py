"""Which photos make a batch: all once an epoch in any order, or several of each class together."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

PER_CLASS = 4
"""Photos of a class in a balanced batch: enough for pairs, few enough for many classes."""


def batches(
    classes: Tensor, size: int, generator: torch.Generator, *, balanced: bool
) -> list[Tensor]:
    """Give the places, int64, of each batch of an epoch; every photo is in one.

    Plain batches differ by one photo at most: a last one of a single photo has no variance to
    normalise by. Balanced ones are made of groups of `PER_CLASS` photos of one class (a class may
    give a smaller last group), so that each photo has company.
    """
    if not balanced:
        order = torch.randperm(len(classes), generator=generator)
        return list(order.tensor_split(-(-len(classes) // size)))
    groups: list[Tensor] = []
    for number in range(int(classes.max()) + 1):
        own = torch.nonzero(classes == number).ravel()
        if len(own) == 0:
            continue
        own = own[torch.randperm(len(own), generator=generator)]
        groups += list(own.tensor_split(-(-len(own) // PER_CLASS)))
    drawn: list[int] = torch.randperm(len(groups), generator=generator).tolist()
    each = max(2, size // PER_CLASS)
    count = max(1, round(len(groups) / each))
    cuts = [round(number * len(groups) / count) for number in range(count + 1)]
    return [
        torch.cat([groups[place] for place in drawn[first:last]]) for first, last in pairwise(cuts)
    ]
