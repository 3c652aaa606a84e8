"""Pooling of feature maps to vectors: one function per pooling.

Pooling is computed in float32, also for networks in bf16, whose 8-bit significand would blur the
mean.
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
    """Return the mean over positions, (n, c, h, w) -> (n, c) float32."""
    return features.float().mean((-2, -1))


def max(features: Tensor) -> Tensor:  # noqa: A001 - the usual name of this pooling
    """Return the maximum over positions, (n, c, h, w) -> (n, c) float32."""
    return features.float().amax((-2, -1))


def gem(features: Tensor) -> Tensor:
    """Return the generalised mean of power 3 over positions, of values clamped to at least 1e-6."""
    return features.float().clamp(min=_GEM_FLOOR).pow(GEM_POWER).mean((-2, -1)).pow(1 / GEM_POWER)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {"avg": avg, "max": max, "gem": gem}

ALL_POOLINGS: Pooling = "each"
"""All poolings concatenated in the order above, so that `compare` needs one forward pass."""


def apply_pooling(pooling: str, pool: Callable[[str], Tensor]) -> Tensor:
    """Return the vectors of a pooling, (n, d); for `ALL_POOLINGS` those of all, concatenated.

    `pool` computes the vectors of one pooling, given its name.
    """
    return (
        torch.cat([pool(name) for name in POOLINGS], 1)
        if pooling == ALL_POOLINGS
        else pool(pooling)
    )
