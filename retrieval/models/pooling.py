"""Pooling of feature maps to vectors: one function per pooling.

Pooling is in float32 also after a network in bf16, whose 8 bits would blur the mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from retrieval.core.schemas import Pooling

Tensor = torch.Tensor

GEM_POWER = 3.0
"""Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval with no human annotation" (2018)."""
_GEM_FLOOR = 1e-6


def avg(features: Tensor) -> Tensor:
    """Mean over places; (n, c, h, w) -> (n, c)."""
    return features.float().mean((-2, -1))


def max(features: Tensor) -> Tensor:  # noqa: A001 - the field's own name
    """Largest over places; (n, c, h, w) -> (n, c)."""
    return features.float().amax((-2, -1))


def gem(features: Tensor) -> Tensor:
    """Generalised mean of power 3 over places, of values of at least 1e-6; -> (n, c)."""
    return features.float().clamp(min=_GEM_FLOOR).pow(GEM_POWER).mean((-2, -1)).pow(1 / GEM_POWER)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {"avg": avg, "max": max, "gem": gem}

ALL_POOLINGS: Pooling = "each"
"""All poolings concatenated in the order above, so that `compare` needs one forward pass."""


def apply_pooling(pooling: str, one: Callable[[str], Tensor]) -> Tensor:
    """Return what `one` makes of a pooling's name, (n, d); of `EACH` all of them, joined."""
    return (
        torch.cat([one(name) for name in POOLINGS], 1) if pooling == ALL_POOLINGS else one(pooling)
    )
