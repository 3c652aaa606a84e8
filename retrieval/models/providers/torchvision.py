"""Provider of torchvision's classification models and their weights.

Model families are named only where their weights need special arguments, so new torchvision models
work without changes here.
"""

from __future__ import annotations

from math import isqrt
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models.feature_extractor import find_classifier, trace_extractor
from retrieval.models.providers.base import (
    BackboneCard,
    BackboneProvider,
    FeatureExtractor,
    State,
    weights_unavailable,
)
from retrieval.models.providers.torchvision_dimensions import DIMENSIONS
from retrieval.models.transforms import DEFAULT_IMAGE_SIZE, standard_transform

_POSITIONS = "encoder.pos_embedding"
"""Parameter of a vision transformer whose shape determines the input size."""


class TorchvisionProvider(BackboneProvider):
    """Provides the classification models of torchvision, under its names."""

    suggestion = "resnet50, mobilenet_v2"

    def names(self) -> list[str]:
        """Return all classification models of torchvision, sorted."""
        return sorted(models.list_models(module=models))

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:
        """Build a network, by default with 1000 classes."""
        arguments = _extra_arguments(name, state)
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        model: nn.Module = models.get_model(name, weights=None, **arguments)
        return model

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Return the prefixes of the classifier and of auxiliary classifiers."""
        return (find_classifier(model, name) + ".", "AuxLogits.", "aux1.", "aux2.")

    def fetch(self, name: str) -> State:
        """Download torchvision's default weights, once."""
        try:
            state: State = _weights(name).get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise weights_unavailable(name, error) from error
        return state

    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the preset of the default weights; `image_size` scales resize and crop alike."""
        preset = _weights(name).transforms()
        size, shorter = int(preset.crop_size[0]), int(preset.resize_size[0])
        if image_size is not None:
            size, shorter = image_size, round(image_size * shorter / size)
        bicubic = "bicubic" in str(preset.interpolation).lower()
        mean, std = tuple(preset.mean), tuple(preset.std)
        return Transform("crop", shorter, size, "bicubic" if bicubic else "bilinear", mean, std)

    def default_transform(self, name: str, image_size: int | None) -> Transform:  # noqa: ARG002
        """Return torchvision's usual preset: resize to 256/224 of the size, centre crop."""
        return standard_transform(image_size)

    def extractor(self, name: str, state: State, pooling: Pooling) -> FeatureExtractor:
        """Build the extractor by tracing the network up to its last spatial features."""
        return trace_extractor(self.skeleton(name, state).eval(), name, state, pooling)

    def describe(self, name: str) -> BackboneCard:
        """Return the figures of torchvision's metadata for its default weights."""
        weights = _weights(name)
        meta, size = weights.meta, self.pretrained_transform(name, None).image_size
        accuracy = meta.get("_metrics", {}).get("ImageNet-1K", {})
        shares = [accuracy.get(key) for key in ("acc@1", "acc@5")]
        top1, top5 = (None if percent is None else round(percent / 100, 5) for percent in shares)
        dimension = DIMENSIONS.get(name) or self.measure_dimension(name, DEFAULT_IMAGE_SIZE)
        return BackboneCard(name, meta["num_params"], dimension, size, meta.get("_ops"), top1, top5)


def _weights(name: str) -> Any:
    return models.get_model_weights(name).DEFAULT


def _extra_arguments(name: str, state: State) -> dict[str, Any]:
    """Return the arguments that some networks need to match the weights."""
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False, "aux_logits": True}
    positions = state.get(_POSITIONS, torch.empty(0)).shape
    if name.startswith("vit_") and len(positions) == 3:  # one per patch, and one of the class token
        side = isqrt(max(positions[1] - 1, 1))
        return {"image_size": side * int(name.rsplit("_", 1)[1])}
    return {}
