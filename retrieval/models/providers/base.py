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


@dataclass(frozen=True)
class WeightSource:
    """The parameters of a backbone and the transform that they were trained with."""

    backbone: str  # name of the network, with the arguments of its input size, if it has any
    state: State
    transform: Transform


@dataclass(frozen=True)
class BackboneCard:
    """Published figures of a backbone; None where its library states none."""

    backbone: str
    parameters: int  # with the classifier of its own weights
    dimension: int  # of the vectors, with pooling avg
    image_size: int  # side of the input of its own weights, in pixels
    gflops: float | None  # 10^9 multiply-adds for one such image
    imagenet_top1: float | None  # accuracy on the ImageNet validation set, 0 to 1
    imagenet_top5: float | None  # the same, for the five most likely classes


class FeatureExtractor(nn.Module, ABC):
    """A backbone without its classifier: (n, 3, h, w) normalised float32 -> (n, d) float32."""

    pooling: Pooling

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor | None:
        """Return the features that are pooled, (n, c, h, w), of a batch of images.

        None where pooling gives up what the network was trained for: it ends in tokens, in a
        projection, or in vectors.
        """


class BackboneProvider(ABC):
    """The backbones of one library, by name."""

    suggestion: str
    """Names suggested when a mistyped name resembles none."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all backbones."""

    def has_name(self, name: str) -> bool:
        """Return whether there is a backbone of that name."""
        return name in self.names()

    def similar_names(self, name: str) -> list[str]:  # noqa: ARG002
        """Return the names among which suggestions for a mistyped name are searched."""
        return self.names()

    def name_for_size(self, name: str, image_size: int | None) -> str:  # noqa: ARG002
        """Return the name of the network for images of a size; by default it reads any size."""
        return name

    def pretrained(self, name: str, image_size: int | None) -> WeightSource:
        """Fetch the pretrained parameters of a backbone with their transform."""
        name = self.name_for_size(name, image_size)
        state = self.fetch(name)
        return WeightSource(name, state, self.pretrained_transform(name, image_size))

    def adapt_state(self, state: State, model: nn.Module) -> State:  # noqa: ARG002
        """Return parameters of an older layout, or another input size, in the layout of `model`."""
        return state

    @abstractmethod
    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:
        """Build a network with random parameters and its classifier, for the input size of `state`.

        `num_classes` None means the number of classes of its pretrained weights.
        """

    def skeleton(self, name: str, state: State) -> nn.Module:
        """Build a network on the meta device, without memory for parameters."""
        try:
            with torch.device("meta"):
                return self.network(name, num_classes=None, state=state)
        except (
            NotImplementedError,
            RuntimeError,
        ):  # some networks compute their widths with tensors
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
        """Return the transform for parameters that come without one."""

    @abstractmethod
    def extractor(self, name: str, state: State, pooling: Pooling) -> FeatureExtractor:
        """Build the module, in eval mode, from (n, 3, h, w) normalised float32 to (n, d) float32.

        `state` holds all parameters but those that only classify.
        """

    @abstractmethod
    def describe(self, name: str) -> BackboneCard:
        """Return the card of a backbone without fetching its weights."""

    def measure_dimension(self, name: str, side: int) -> int:
        """Measure the dimension of vectors (pooling avg) by embedding one blank image."""
        model = self.network(name, num_classes=None, state={})
        classifier_prefixes = self.classifier_prefixes(model, name)
        state = {
            k: value
            for k, value in model.state_dict().items()
            if not k.startswith(classifier_prefixes)
        }
        with torch.inference_mode():
            vectors = self.extractor(name, state, "avg")(torch.zeros(1, 3, side, side))
        return int(vectors.shape[1])


def weights_unavailable(name: str, reason: object) -> InputError:
    """Return the error for weights that could not be fetched."""
    return InputError(
        f"the weights of --backbone {name} could not be fetched ({reason}); "
        "name a file with --weights, or a trained bundle with --bundle"
    )
