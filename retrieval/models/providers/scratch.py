"""The shelf of one: the compact CNN that `lookalike train` trains."""

from __future__ import annotations

from torch import nn

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models.feature_extractor import classifier_of, traced
from retrieval.models.providers.base import IMAGENET, Card, Shelf, State
from retrieval.models.scratch_cnn import IMAGE_SIZE, WIDTHS, ScratchCNN

SCRATCH = "scratch"


class ScratchShelf(Shelf):
    """The network of `scratch.py`; it has no weights but those that somebody trains."""

    usual = SCRATCH

    def names(self) -> list[str]:
        """List the one name."""
        return [SCRATCH]

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:  # noqa: ARG002
        """Make it, of any number of classes."""
        return ScratchCNN() if num_classes is None else ScratchCNN(num_classes)

    def only_classifies(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Give the prefix of the last layer."""
        return (classifier_of(model, name) + ".",)

    def fetch(self, name: str) -> State:
        """Refuse: there is nothing to fetch."""
        raise UsageError(f"--backbone {name} has no weights of its own; train it, name --bundle")

    def own_transform(self, name: str, image_size: int | None) -> Transform:
        """Give what it is trained on."""
        return self.plain_transform(name, image_size)

    def plain_transform(self, name: str, image_size: int | None) -> Transform:  # noqa: ARG002
        """Give what it is trained on: the middle of a photo, without a margin."""
        size = image_size or IMAGE_SIZE
        return Transform("crop", size, size, "bilinear", *IMAGENET)

    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
        """Trace it like any network with one classifier."""
        return traced(self.skeleton(name, state).eval(), name, state, pooling)

    def card(self, name: str) -> Card:
        """Count its parameters; how well it tells classes depends on who trains it."""
        parameters = sum(value.numel() for value in self.skeleton(name, {}).parameters())
        return Card(name, parameters, WIDTHS[-1], IMAGE_SIZE, None, None, None)
