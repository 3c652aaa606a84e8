"""What is trained: a backbone without its classifier, in and out of a bundle's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models import registry

Normalisations = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Body:
    """A backbone that learns: its name, all its parameters, and the extractor made of them."""

    backbone: str
    state: registry.State
    extractor: nn.Module
    transform: Transform
    pretrained: bool

    @property
    def device(self) -> torch.device:
        """Give where it is: the processor, or a GPU."""
        return next(self.extractor.parameters()).device

    def parameters(self) -> Iterator[nn.Parameter]:
        """Give those that learn."""
        return (one for one in self.extractor.parameters() if one.requires_grad)

    def learn(self) -> None:
        """Make ready for learning.

        The statistics of batch norms stay what pretraining made them: small batches of few classes
        would replace those of a million photos.
        """
        self.extractor.train()
        for module in self.extractor.modules():
            if isinstance(module, Normalisations) and self.pretrained:
                module.eval()

    def trained_state(self) -> registry.State:
        """Give all parameters as they are now, as a bundle takes them.

        What the extractor does not use stays as it was.
        """
        learnt = {
            key.removeprefix("body."): value.detach().cpu().clone()
            for key, value in self.extractor.state_dict().items()
        }
        return {key: learnt.get(key, value) for key, value in self.state.items()}


def make_body(
    backbone: str,
    source: registry.Source,
    pooling: Pooling,
    *,
    pretrained: bool,
    device: str = "cpu",
) -> Body:
    """Make a backbone of parameters ready to learn, on a device; nothing is frozen."""
    state = registry.fit_state(source.state, backbone)
    extractor = registry.extractor(backbone, dict(state), pooling)
    extractor = extractor.to(memory_format=torch.channels_last).to(device)
    for parameter in extractor.parameters():
        parameter.requires_grad_(True)
    return Body(backbone, state, extractor, source.transform, pretrained)


def normalised(images: Tensor, transform: Transform) -> Tensor:
    """Bring values from 0 to 255 to what the network reads, channels last."""
    mean = torch.tensor(transform.mean, device=images.device).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(transform.std, device=images.device).view(3, 1, 1) * 255)
    return ((images - mean) * scale).contiguous(memory_format=torch.channels_last)
