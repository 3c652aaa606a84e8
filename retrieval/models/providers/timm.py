"""Provider of timm's image models, named `timm:NAME` or `timm:NAME.TAG`.

timm's models have an interface for this: `forward_features` returns the last features,
`forward_head(…, pre_logits=True)` the input of the classifier, and the configuration of each name
holds the transform, the classifier's layers and the location of the weights. Only whether channels
come first or last must be inferred from the shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import floor
from typing import Any

from torch import Tensor, nn

from retrieval.core.errors import Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling, Resize
from retrieval.models.pooling import POOLINGS, apply_pooling
from retrieval.models.providers.base import (
    BackboneCard,
    BackboneProvider,
    State,
    weights_unavailable,
)

TIMM = "timm:"
_RESIZE: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "pad"}
"""Our resize mode for each crop mode of timm."""
_HUB_TIMEOUT = 5.0  # seconds to wait for a response of the hub


class TimmProvider(BackboneProvider):
    """Provides the models that timm lists, if timm is installed; importing it takes seconds."""

    suggestion = f"{TIMM}resnet50, {TIMM}efficientnet_b0"

    def names(self) -> list[str]:
        """Return all models of timm, without tags: a name without tag means its default weights."""
        return self.similar_names(f"{TIMM}NAME")

    def has_name(self, name: str) -> bool:
        """Return whether timm has the model and, if the name has a tag, weights with that tag."""
        return name in self.similar_names(name)

    def similar_names(self, name: str) -> list[str]:
        """Return all names, with tags if `name` has a tag, else without."""
        return [TIMM + model for model in _library(name).list_models(include_tags="." in name)]

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:  # noqa: ARG002
        """Build a network; its input size is part of the name, so `state` is not needed.

        Raises UsageError where its classifier cannot be removed.
        """
        arguments = {} if num_classes is None else {"num_classes": num_classes}
        model: nn.Module = _library(name).create_model(name.removeprefix(TIMM), **arguments)
        if not all(hasattr(model, part) for part in ("forward_head", "get_classifier")):
            raise UsageError(f"--backbone {name} has no classifier that can be removed")
        return model

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the prefixes of the classifier's layers, auxiliary classifiers included."""
        return tuple(layer + "." for layer in _classifier_layers(model))

    def fetch(self, name: str) -> State:
        """Download the weights of a name from timm's hub, once, in the layout of timm's model."""
        timm = _library(name)
        if not _pretrained_config(name).has_weights:
            raise UsageError(
                f"--backbone {name} has no weights of its own; name a file with --weights"
            )
        with _check_hub_once() as reachable:
            try:
                model = timm.create_model(name.removeprefix(TIMM), pretrained=True)
            except Exception as error:  # the hub's client raises various exceptions
                raise weights_unavailable(
                    name, error if reachable else "no answer from its hub"
                ) from error
        return dict(model.state_dict())

    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the transform that timm's configuration of the name describes."""
        configuration = _pretrained_config(name)
        height, width = configuration.input_size[1:]
        if height != width:
            raise UsageError(
                f"--backbone {name} reads images of {width} x {height} pixels, not squares"
            )
        size = image_size or width
        shorter = floor(size / configuration.crop_pct)
        resize = _RESIZE[configuration.crop_mode]
        if resize == "squash" and shorter != size:
            resize = "squash-crop"
        mean, std = tuple(configuration.mean), tuple(configuration.std)
        return Transform(resize, shorter, size, configuration.interpolation, mean, std)

    def default_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the pretrained transform: in timm it is part of the model's configuration."""
        return self.pretrained_transform(name, image_size)

    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
        """Build the network with these parameters and without its classifier.

        It is not built on PyTorch's meta device, since some buffers that it computes itself (such
        as relative positions) are not in the state dict. Raises Mismatch where the parameters
        belong to another version of timm.
        """
        model = self.network(name, num_classes=None, state=state)
        for layer in _classifier_layers(model):
            model.set_submodule(layer, nn.Identity())
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise Mismatch(
                f"the parameters of --backbone {name} are not those of timm "
                f"{_library(name).__version__}; install the version that they were made with"
            ) from error
        return TimmExtractor(model, name, pooling).eval()

    def describe(self, name: str) -> BackboneCard:
        """Return the card of a model; timm's package has no accuracies."""
        parameters = sum(value.numel() for value in self.skeleton(name, {}).parameters())
        size = self.pretrained_transform(name, None).image_size
        dimension = self.measure_dimension(name, size)
        return BackboneCard(name, parameters, dimension, size, None, None, None)


class TimmExtractor(nn.Module):
    """A model of timm up to its classifier: (n, 3, h, w) normalised float32 -> (n, d) float32."""

    def __init__(self, model: nn.Module, name: str, pooling: Pooling) -> None:
        super().__init__()
        self.body: Any = model
        self.name = name
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch; avg is the input of the classifier, others pool the feature map."""
        features = self.body.forward_features(images)
        return apply_pooling(self.pooling, lambda pooling: self._vectors(features, pooling))

    def _vectors(self, features: Tensor | list[Tensor], pooling: str) -> Tensor:
        if pooling == "avg":
            vectors: Tensor = self.body.forward_head(features, pre_logits=True)
            return vectors
        return POOLINGS[pooling](self._map(features))

    def _map(self, features: Tensor | list[Tensor]) -> Tensor:
        """Return the last features as (n, c, h, w), without class and register tokens."""
        if isinstance(features, Tensor) and features.ndim == 4:
            channels = self.body.num_features
            is_channels_last = features.shape[1] != channels and features.shape[-1] == channels
            layout = getattr(self.body, "output_fmt", "NHWC" if is_channels_last else "NCHW")
            return features.permute(0, 3, 1, 2) if layout == "NHWC" else features
        if isinstance(features, Tensor) and features.ndim == 3:
            tokens = features[:, self._prefix_tokens() :]
            if tokens.shape[1]:
                return tokens.transpose(1, 2)[:, :, None]
        raise UsageError(
            f"--backbone {self.name} ends without one map of features; it takes --pooling avg only"
        )

    def _prefix_tokens(self) -> int:
        """Return the number of tokens before the patch tokens."""
        count: int | None = getattr(self.body, "num_prefix_tokens", None)
        if count is not None:
            return count
        if getattr(self.body, "global_pool", None) != "token":
            return 0
        token = getattr(self.body, "cls_token", None)
        return int(token.shape[1]) if isinstance(token, Tensor) else 1


def _library(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"--backbone {name} needs timm; pip install 'lookalike[timm]'") from error
    return timm


def _pretrained_config(name: str) -> Any:
    return _library(name).get_pretrained_cfg(name.removeprefix(TIMM))


def _classifier_layers(model: Any) -> list[str]:
    """Return the names of the classifier's layers, from timm's configuration and the model.

    The module that the model returns may contain more than the layer (a norm or a pooling that
    `forward_head` needs); then the layer of the configuration is used.
    """
    configured = model.pretrained_cfg.get("classifier") or ()
    layers = [configured] if isinstance(configured, str) else list(configured)
    classifier = model.get_classifier()
    for part in classifier if isinstance(classifier, tuple | list) else (classifier,):
        name = next((name for name, module in model.named_modules() if module is part), None)
        if name and not any(f"{layer}.".startswith(f"{name}.") for layer in layers):
            layers.append(name)
    return layers


@contextmanager
def _check_hub_once() -> Iterator[bool]:
    """Yield whether the hub is reachable; while it is not, its client only uses cached files.

    Without this check the client would retry for a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    was_offline = constants.HF_HUB_OFFLINE
    try:
        response = (
            None if was_offline else get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
        )
        reachable = response is not None and response.status_code < 500
    except Exception:  # noqa: BLE001 - its client raises various exceptions
        reachable = False
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = was_offline
