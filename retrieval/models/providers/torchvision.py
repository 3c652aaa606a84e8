"""The shelf of torchvision: its classification models, their weights and what it says of them.

Nothing here names a family but where torchvision's own weights need it, so that a new model of
torchvision works on the day it appears.
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
from retrieval.models.feature_extractor import PLAIN_SIZE, classifier_of, traced
from retrieval.models.providers.base import IMAGENET, Card, Shelf, State, not_fetched
from retrieval.models.providers.torchvision_dimensions import DIMENSIONS

_POSITIONS = "encoder.pos_embedding"
"""Of a vision transformer: it reads images of one size, and its parameters tell which."""


class TorchvisionShelf(Shelf):
    """The classification models of torchvision, by its own names."""

    usual = "resnet50, mobilenet_v2"

    def names(self) -> list[str]:
        """List what torchvision lists."""
        return sorted(models.list_models(module=models))

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:
        """Make a network; 1000 classes unless others are asked for."""
        extra = _extra(name, state)
        if num_classes is not None:
            extra["num_classes"] = num_classes
        made: nn.Module = models.get_model(name, weights=None, **extra)
        return made

    def only_classifies(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Give the one child, and the classifiers that only help training."""
        return (classifier_of(model, name) + ".", "AuxLogits.", "aux1.", "aux2.")

    def fetch(self, name: str) -> State:
        """Fetch torchvision's default weights; needs the network once."""
        try:
            state: State = _weights(name).get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise not_fetched(name, error) from error
        return state

    def own_transform(self, name: str, image_size: int | None) -> Transform:
        """Give the preset of the default weights; another size keeps the share that is cropped."""
        preset = _weights(name).transforms()
        size, shorter = int(preset.crop_size[0]), int(preset.resize_size[0])
        if image_size is not None:
            size, shorter = image_size, round(image_size * shorter / size)
        bicubic = "bicubic" in str(preset.interpolation).lower()
        mean, std = tuple(preset.mean), tuple(preset.std)
        return Transform("crop", shorter, size, "bicubic" if bicubic else "bilinear", mean, std)

    def plain_transform(self, name: str, image_size: int | None) -> Transform:  # noqa: ARG002
        """Give torchvision's first preset, as other programs take it for weights in a file."""
        size = image_size or PLAIN_SIZE
        return Transform("crop", round(size * 256 / 224), size, "bilinear", *IMAGENET)

    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
        """Trace the network up to the last features with places."""
        return traced(self.skeleton(name, state).eval(), name, state, pooling)

    def card(self, name: str) -> Card:
        """Read what torchvision notes beside its default weights."""
        weights = _weights(name)
        meta, size = weights.meta, self.own_transform(name, None).image_size
        accuracy = meta.get("_metrics", {}).get("ImageNet-1K", {})
        shares = [accuracy.get(key) for key in ("acc@1", "acc@5")]
        top1, top5 = (None if percent is None else round(percent / 100, 5) for percent in shares)
        dimension = DIMENSIONS.get(name) or self.measured_dimension(name, PLAIN_SIZE)
        return Card(name, meta["num_params"], dimension, size, meta.get("_ops"), top1, top5)


def _weights(name: str) -> Any:
    return models.get_model_weights(name).DEFAULT


def _extra(name: str, state: State) -> dict[str, Any]:
    """Give what some networks need so that torchvision's weights mean what they should."""
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False, "aux_logits": True}
    positions = state.get(_POSITIONS, torch.empty(0)).shape
    if name.startswith("vit_") and len(positions) == 3:  # one a patch, and one of the class token
        side = isqrt(max(positions[1] - 1, 1))
        return {"image_size": side * int(name.rsplit("_", 1)[1])}
    return {}
