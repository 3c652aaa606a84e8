"""What every shelf of backbones offers; `backbones.py` knows no more of a shelf than this."""

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
class Card:
    """What can be said of a backbone before it embeds anything; None where nobody has said it."""

    backbone: str
    parameters: int  # with the classifier of its own weights
    dimension: int  # of our vectors, pooling avg
    image_size: int  # pixels a side, as its own weights read them
    gflops: float | None  # 10^9 multiply-adds for one such image
    imagenet_top1: float | None  # share of its validation photos told right, 0 to 1
    imagenet_top5: float | None  # with five guesses


class Shelf(ABC):
    """Networks of one origin, by name."""

    usual: str
    """What is offered to who types a name that is near to nothing."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the backbones, as they are typed."""

    def holds(self, name: str) -> bool:
        """Tell whether there is a backbone of that name."""
        return name in self.names()

    def alike(self, name: str) -> list[str]:  # noqa: ARG002
        """List the names that a mistyped one may have meant."""
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
    def only_classifies(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Give how the keys begin that only classify, during training or after."""

    @abstractmethod
    def fetch(self, name: str) -> State:
        """Fetch the parameters that a backbone has when nobody names others."""

    @abstractmethod
    def own_transform(self, name: str, image_size: int | None) -> Transform:
        """Give the transform of the parameters that `fetch` gives."""

    @abstractmethod
    def plain_transform(self, name: str, image_size: int | None) -> Transform:
        """Give the transform of parameters that come without one."""

    @abstractmethod
    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
        """Make what turns (n, 3, h, w) normalised float32 into (n, d) float32, in eval mode.

        `state` holds all parameters but those that only classify.
        """

    @abstractmethod
    def card(self, name: str) -> Card:
        """Say what is known of a backbone, without fetching its weights."""

    def measured_dimension(self, name: str, side: int) -> int:
        """Embed one blank image with random parameters, pooling avg."""
        model = self.network(name, num_classes=None, state={})
        aside = self.only_classifies(model, name)
        state = {k: value for k, value in model.state_dict().items() if not k.startswith(aside)}
        with torch.inference_mode():
            vectors = self.extractor(name, state, "avg")(torch.zeros(1, 3, side, side))
        return int(vectors.shape[1])


def not_fetched(name: str, why: object) -> InputError:
    """Make the refusal of a shelf that cannot reach its weights."""
    return InputError(
        f"the weights of --backbone {name} could not be fetched ({why}); "
        "name a file with --weights, or a trained bundle with --bundle"
    )
