"""Trainable backbones: built from a bundle's parameters and exported to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models import registry

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class TrainableBackbone:
    """A backbone in training: its initial parameters, and the extractor built from them."""

    state: registry.State
    extractor: nn.Module
    transform: Transform
    pretrained: bool

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.extractor.parameters()).device

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that are not frozen."""
        return (p for p in self.extractor.parameters() if p.requires_grad)

    def set_training_mode(self) -> None:
        """Switch to training mode, except for the batch norms of a pretrained backbone.

        Small batches of few classes would replace statistics of a million photos.
        """
        self.extractor.train()
        for module in self.extractor.modules():
            if isinstance(module, _BATCH_NORMS) and self.pretrained:
                module.eval()

    def trained_state(self) -> registry.State:
        """Return the current parameters in the layout of a bundle.

        Parameters that the extractor does not use keep their initial values.
        """
        trained = {
            key.removeprefix("body."): value.detach().cpu().clone()
            for key, value in self.extractor.state_dict().items()
        }
        return {key: trained.get(key, value) for key, value in self.state.items()}


def build_trainable_backbone(
    source: registry.WeightSource,
    pooling: Pooling,
    *,
    pretrained: bool,
    device: str = "cpu",
) -> TrainableBackbone:
    """Build a trainable backbone from parameters, on a device; no layer is frozen."""
    state = registry.fit_state(source.state, source.backbone)
    extractor = registry.build_extractor(source.backbone, dict(state), pooling)
    extractor = extractor.to(memory_format=torch.channels_last).to(device)
    for parameter in extractor.parameters():
        parameter.requires_grad_(True)
    return TrainableBackbone(state, extractor, source.transform, pretrained)


def normalise_pixels(images: Tensor, transform: Transform) -> Tensor:
    """Normalise (n, 3, h, w) pixel values from 0 to 255 by mean and std; channels last."""
    mean = torch.tensor(transform.mean, device=images.device).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(transform.std, device=images.device).view(3, 1, 1) * 255)
    return ((images - mean) * scale).contiguous(memory_format=torch.channels_last)
