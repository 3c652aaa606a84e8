"""Provider of `scratch`, the compact CNN that `lookalike train` trains without pretraining."""

from __future__ import annotations

from torch import nn

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models.feature_extractor import find_classifier, trace_extractor
from retrieval.models.providers.base import (
    BackboneCard,
    BackboneProvider,
    FeatureExtractor,
    State,
)
from retrieval.models.scratch_cnn import IMAGE_SIZE, WIDTHS, ScratchCNN
from retrieval.models.transforms import IMAGENET

SCRATCH = "scratch"


class ScratchProvider(BackboneProvider):
    """Provides `ScratchCNN`, which has no pretrained weights."""

    suggestion = SCRATCH

    def names(self) -> list[str]:
        """Return the only name, `scratch`."""
        return [SCRATCH]

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:  # noqa: ARG002
        """Build the network, by default with 1000 classes."""
        return ScratchCNN() if num_classes is None else ScratchCNN(num_classes)

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Return the prefix of the last layer."""
        return (find_classifier(model, name) + ".",)

    def fetch(self, name: str) -> State:
        """Raise UsageError: there are no pretrained weights."""
        raise UsageError(f"--backbone {name} has no pretrained weights; train it and name --bundle")

    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the default transform."""
        return self.default_transform(name, image_size)

    def default_transform(self, name: str, image_size: int | None) -> Transform:  # noqa: ARG002
        """Return the training transform: a centre crop without margin."""
        size = image_size or IMAGE_SIZE
        return Transform("crop", size, size, "bilinear", *IMAGENET)

    def extractor(self, name: str, state: State, pooling: Pooling) -> FeatureExtractor:
        """Build the extractor by tracing the network."""
        return trace_extractor(self.skeleton(name, state).eval(), name, state, pooling)

    def describe(self, name: str) -> BackboneCard:
        """Return the card of the network, which has no published figures of accuracy."""
        parameters = sum(value.numel() for value in self.skeleton(name, {}).parameters())
        return BackboneCard(name, parameters, WIDTHS[-1], IMAGE_SIZE, None, None, None)
