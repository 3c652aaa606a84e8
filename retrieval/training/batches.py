"""Sampling of training batches: shuffled, or balanced with several photos per class."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

PER_CLASS = 4
"""Photos per class in a balanced batch: enough for pairs, few enough for many classes."""


def draw_batches(
    classes: Tensor, size: int, generator: torch.Generator, *, balanced: bool
) -> list[Tensor]:
    """Return the positions, (b,) int64, of the photos of each batch; each photo is in one batch.

    Sizes of plain batches differ by at most one, since batch norm needs more than a single photo.
    Balanced batches consist of groups of `PER_CLASS` photos of one class (the last group of a class
    may be smaller), so that batches hold pairs of the same class.

    Args:
        classes: (n,) class numbers.
        size: Target number of photos per batch.
        generator: Source of the random order.
        balanced: Whether to group photos of the same class.
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
    groups_per_batch = max(2, size // PER_CLASS)
    count = max(1, round(len(groups) / groups_per_batch))
    cuts = [round(number * len(groups) / count) for number in range(count + 1)]
    return [
        torch.cat([groups[group] for group in drawn[first:last]]) for first, last in pairwise(cuts)
    ]
