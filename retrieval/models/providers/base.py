"""The interface of backbone providers, which `registry.py` relies on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrieval.core.errors import InputError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling

State = dict[str, Tensor]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of its photos, red, green and blue, for values between 0 and 1."""


@dataclass(frozen=True)
class BackboneCard:
    """Published figures of a backbone; None where its library states none."""

    backbone: str
    parameters: int  # with the classifier of its own weights
    dimension: int  # of our vectors, pooling avg
    image_size: int  # pixels a side, as its own weights read them
    gflops: float | None  # 10^9 multiply-adds for one such image
    imagenet_top1: float | None  # share of its validation photos told right, 0 to 1
    imagenet_top5: float | None  # with five guesses


class BackboneProvider(ABC):
    """The backbones of one library, by name."""

    suggestion: str
    """Names suggested when a mistyped name resembles none."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the backbones, as they are typed."""

    def has_name(self, name: str) -> bool:
        """Return whether there is a backbone of that name."""
        return name in self.names()

    def similar_names(self, name: str) -> list[str]:  # noqa: ARG002
        """List the names to compare a mistyped name with."""
        return self.names()

    @abstractmethod
    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:
        """Make a network of random parameters, with its classifier, of the size `state` is for.

        Without a number of classes it has those of its own weights.
        """

    def skeleton(self, name: str, state: State) -> nn.Module:
        """Make a network without memory for parameters, where that can be done."""
        try:
            with torch.device("meta"):
                return self.network(name, num_classes=None, state=state)
        except (NotImplementedError, RuntimeError):  # its widths are computed with tensors
            return self.network(name, num_classes=None, state=state).to("meta")

    @abstractmethod
    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Return the key prefixes of classifier parameters, auxiliary classifiers included."""

    @abstractmethod
    def fetch(self, name: str) -> State:
        """Download the default pretrained parameters of a backbone."""

    @abstractmethod
    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the transform of the parameters that `fetch` returns."""

    @abstractmethod
    def default_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the transform of parameters that come without one."""

    @abstractmethod
    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
        """Build the module, in eval mode, from (n, 3, h, w) normalised float32 to (n, d) float32.

        `state` holds all parameters but those that only classify.
        """

    @abstractmethod
    def describe(self, name: str) -> BackboneCard:
        """Return the card of a backbone without fetching its weights."""

    def measure_dimension(self, name: str, side: int) -> int:
        """Measure the dimension of vectors (pooling avg) by embedding one blank image."""
        model = self.network(name, num_classes=None, state={})
        aside = self.classifier_prefixes(model, name)
        state = {k: value for k, value in model.state_dict().items() if not k.startswith(aside)}
        with torch.inference_mode():
            vectors = self.extractor(name, state, "avg")(torch.zeros(1, 3, side, side))
        return int(vectors.shape[1])


def weights_unavailable(name: str, why: object) -> InputError:
    """Build the error of a provider that cannot fetch its weights."""
    return InputError(
        f"the weights of --backbone {name} could not be fetched ({why}); "
        "name a file with --weights, or a trained bundle with --bundle"
    )
