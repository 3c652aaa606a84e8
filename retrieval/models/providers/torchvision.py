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
from retrieval.models.feature_extractor import DEFAULT_IMAGE_SIZE, find_classifier, trace_extractor
from retrieval.models.providers.base import (
    IMAGENET,
    BackboneCard,
    BackboneProvider,
    State,
    weights_unavailable,
)
from retrieval.models.providers.torchvision_dimensions import DIMENSIONS

_POSITIONS = "encoder.pos_embedding"
"""Of a vision transformer: it reads images of one size, and its parameters tell which."""


class TorchvisionProvider(BackboneProvider):
    """The classification models of torchvision, by its own names."""

    suggestion = "resnet50, mobilenet_v2"

    def names(self) -> list[str]:
        """List what torchvision lists."""
        return sorted(models.list_models(module=models))

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:
        """Make a network; 1000 classes unless others are asked for."""
        extra = _extra_arguments(name, state)
        if num_classes is not None:
            extra["num_classes"] = num_classes
        made: nn.Module = models.get_model(name, weights=None, **extra)
        return made

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Return the one child, and the classifiers that only help training."""
        return (find_classifier(model, name) + ".", "AuxLogits.", "aux1.", "aux2.")

    def fetch(self, name: str) -> State:
        """Fetch torchvision's default weights; needs the network once."""
        try:
            state: State = _weights(name).get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise weights_unavailable(name, error) from error
        return state

    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the preset of the default weights; another size keeps its cropped share."""
        preset = _weights(name).transforms()
        size, shorter = int(preset.crop_size[0]), int(preset.resize_size[0])
        if image_size is not None:
            size, shorter = image_size, round(image_size * shorter / size)
        bicubic = "bicubic" in str(preset.interpolation).lower()
        mean, std = tuple(preset.mean), tuple(preset.std)
        return Transform("crop", shorter, size, "bicubic" if bicubic else "bilinear", mean, std)

    def default_transform(self, name: str, image_size: int | None) -> Transform:  # noqa: ARG002
        """Return torchvision's first preset, as other programs take it for weights in a file."""
        size = image_size or DEFAULT_IMAGE_SIZE
        return Transform("crop", round(size * 256 / 224), size, "bilinear", *IMAGENET)

    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
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
    """Return what some networks need so that torchvision's weights mean what they should."""
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False, "aux_logits": True}
    positions = state.get(_POSITIONS, torch.empty(0)).shape
    if name.startswith("vit_") and len(positions) == 3:  # one a patch, and one of the class token
        side = isqrt(max(positions[1] - 1, 1))
        return {"image_size": side * int(name.rsplit("_", 1)[1])}
    return {}
