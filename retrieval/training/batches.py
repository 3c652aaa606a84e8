"""Sampling of training batches: shuffled, or balanced with several photos per class."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

PER_CLASS = 4
"""Photos of a class in a balanced batch: enough for pairs, few enough for many classes."""


def draw_batches(
    classes: Tensor, size: int, generator: torch.Generator, *, balanced: bool
) -> list[Tensor]:
    """Return the places, int64, of each batch of an epoch; every photo is in one.

    Plain batches differ by one photo at most: a last one of a single photo has no variance to
    normalise by. Balanced ones are made of groups of `PER_CLASS` photos of one class (a class may
    give a smaller last group), so that each photo has company.
    """
    if not balanced:
        order = torch.randperm(len(classes), generator=generator)
        return list(order.tensor_split(-(-len(classes) // size)))
    groups: list[Tensor] = []
    for number in range(int(classes.max()) + 1):
        members = torch.nonzero(classes == number).ravel()
        if len(members) == 0:
            continue
        members = members[torch.randperm(len(members), generator=generator)]
        groups += list(members.tensor_split(-(-len(members) // PER_CLASS)))
    drawn: list[int] = torch.randperm(len(groups), generator=generator).tolist()
    each = max(2, size // PER_CLASS)
    count = max(1, round(len(groups) / each))
    cuts = [round(number * len(groups) / count) for number in range(count + 1)]
    return [
        torch.cat([groups[place] for place in drawn[first:last]]) for first, last in pairwise(cuts)
    ]
