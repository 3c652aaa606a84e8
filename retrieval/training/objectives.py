"""Training objectives: losses of embeddings and their classes.

All but cross-entropy need pytorch-metric-learning (`pip install lookalike[metric]`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.core.errors import UsageError

SMOOTHING = 0.05
"""Label smoothing of cross-entropy: bounds the distance between classes."""


class Objective(nn.Module):
    """A loss whose parameters (a classifier, proxies) are trained together with the network."""

    balanced = True
    """Whether batches must hold several photos of each of their classes."""

    def __init__(
        self, loss: Callable[..., Tensor], miner: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of (n, d) embeddings with (n,) class numbers."""
        batch = (embeddings, classes)
        mined = () if self.miner is None else (self.miner(*batch),)
        loss: Tensor = self.loss(*batch, *mined)
        return loss


class CrossEntropy(Objective):
    """A linear classifier of the embeddings, with smoothed labels."""

    balanced = False

    def __init__(self, dimension: int, classes: int) -> None:
        nn.Module.__init__(self)
        self.classifier = nn.Linear(dimension, classes)

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of (n, d) embeddings with (n,) class numbers."""
        logits = self.classifier(embeddings)
        return functional.cross_entropy(logits, classes, label_smoothing=SMOOTHING)


def _arcface(dimension: int, classes: int) -> Objective:
    """Build the ArcFace loss: Deng et al., "ArcFace" (CVPR 2019)."""
    return Objective(_library().losses.ArcFaceLoss(classes, dimension))


def _supcon(dimension: int, classes: int) -> Objective:  # noqa: ARG001 - one signature for all
    """Build the loss of Khosla et al., "Supervised contrastive learning" (NeurIPS 2020)."""
    return Objective(_library().losses.SupConLoss())


def _proxy_anchor(dimension: int, classes: int) -> Objective:
    """Build the loss of Kim et al., "Proxy anchor loss for deep metric learning" (CVPR 2020)."""
    return Objective(_library().losses.ProxyAnchorLoss(classes, dimension))


def _triplet(dimension: int, classes: int) -> Objective:  # noqa: ARG001 - one signature for all
    """Build the triplet loss of Schroff et al., "FaceNet" (CVPR 2015), with semi-hard triplets."""
    library = _library()
    miner = library.miners.TripletMarginMiner(type_of_triplets="semihard")
    return Objective(library.losses.TripletMarginLoss(margin=0.1), miner)


OBJECTIVES: dict[str, Callable[[int, int], Objective]] = {
    "cross-entropy": CrossEntropy,
    "arcface": _arcface,
    "supcon": _supcon,
    "proxy-anchor": _proxy_anchor,
    "triplet": _triplet,
}


def make_objective(name: str, dimension: int, classes: int, seed: int) -> Objective:
    """Build an objective by name, with seeded initial parameters.

    Raises UsageError where it needs pytorch-metric-learning, which is not installed.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays unchanged
        torch.manual_seed(seed)
        return OBJECTIVES[name](dimension, classes)


def _library() -> Any:
    try:
        import pytorch_metric_learning as library
        from pytorch_metric_learning import losses, miners  # noqa: F401 - submodules used as attributes
    except ImportError as error:
        raise UsageError(
            f"--objective needs pytorch-metric-learning ({error}); install lookalike[metric], or "
            "use cross-entropy"
        ) from error
    return library
