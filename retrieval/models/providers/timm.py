"""Provider of timm's image models, named `timm:NAME` or `timm:NAME.TAG`.

timm's models publish what other providers must find out: `forward_features` ends with the last
features, `forward_head(…, pre_logits=True)` with what the classifier reads, and the configuration
beside each name holds the transform, the classifier's layers and the place of the weights. What is
not said, whether channels come first or last, shows in the shape.
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
"""timm's names for what is done with a photo that is not square."""
_HUB_TIMEOUT = 5.0  # seconds to wait for the first response of the hub


class TimmProvider(BackboneProvider):
    """The models that timm lists, where timm is installed; importing it takes seconds."""

    suggestion = f"{TIMM}resnet50, {TIMM}efficientnet_b0"

    def names(self) -> list[str]:
        """List what timm lists, without tags: a name alone means its first weights."""
        return self.similar_names(f"{TIMM}NAME")

    def has_name(self, name: str) -> bool:
        """Return whether timm lists a name, or has weights of that tag for it."""
        return name in self.similar_names(name)

    def similar_names(self, name: str) -> list[str]:
        """List names with tags for one that has a tag, without for others."""
        return [TIMM + known for known in _library(name).list_models(include_tags="." in name)]

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:  # noqa: ARG002
        """Make a network; the size of images that it reads belongs to the name as well."""
        chosen = {} if num_classes is None else {"num_classes": num_classes}
        made: nn.Module = _library(name).create_model(name.removeprefix(TIMM), **chosen)
        if not all(hasattr(made, part) for part in ("forward_head", "get_classifier")):
            raise UsageError(f"--backbone {name} has no classifier that can be removed")
        return made

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the classifier's layers, and those that only help training."""
        return tuple(layer + "." for layer in _classifier_layers(model))

    def fetch(self, name: str) -> State:
        """Fetch the weights of a name from timm's hub, once, and bring them into timm's layout."""
        timm = _library(name)
        if not _pretrained_config(name).has_weights:
            raise UsageError(
                f"--backbone {name} has no weights of its own; name a file with --weights"
            )
        with _check_hub_once() as answers:
            try:
                model = timm.create_model(name.removeprefix(TIMM), pretrained=True)
            except Exception as error:  # whatever the hub's client of the day raises
                raise weights_unavailable(
                    name, error if answers else "no answer from its hub"
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
        """Return the same: with timm the transform belongs to the name."""
        return self.pretrained_transform(name, image_size)

    def extractor(self, name: str, state: State, pooling: Pooling) -> nn.Module:
        """Make the network with these parameters and no classifier.

        It is made in memory and not on PyTorch's meta device, since some of what it computes for
        itself (relative positions, say) is not among the parameters.
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
        """Count the parameters; timm's package does not say how accurate they are."""
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
        """Embed a batch: avg is what the network's own classifier reads, others pool its places."""
        features = self.body.forward_features(images)
        return apply_pooling(self.pooling, lambda pooling: self._vectors(features, pooling))

    def _vectors(self, features: Tensor | list[Tensor], pooling: str) -> Tensor:
        if pooling == "avg":
            vectors: Tensor = self.body.forward_head(features, pre_logits=True)
            return vectors
        return POOLINGS[pooling](self._map(features))

    def _map(self, features: Tensor | list[Tensor]) -> Tensor:
        """Bring the last features to (n, c, h, w), without class and register tokens."""
        if isinstance(features, Tensor) and features.ndim == 4:
            channels = self.body.num_features
            last = features.shape[1] != channels and features.shape[-1] == channels
            said = getattr(self.body, "output_fmt", "NHWC" if last else "NCHW")
            return features.permute(0, 3, 1, 2) if said == "NHWC" else features
        if isinstance(features, Tensor) and features.ndim == 3:
            tokens = features[:, self._prefix_tokens() :]
            if tokens.shape[1]:
                return tokens.transpose(1, 2)[:, :, None]
        raise UsageError(
            f"--backbone {self.name} ends without one map of features; it takes --pooling avg only"
        )

    def _prefix_tokens(self) -> int:
        """Count the tokens before those of the patches, where a model does not say it itself."""
        said: int | None = getattr(self.body, "num_prefix_tokens", None)
        if said is not None:
            return said
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
    """Name the layers that classify, by timm's configuration and by the model's own account.

    What the model gives may hold more than the layer (a norm, a pooling that `forward_head` needs):
    then the configuration knows it better.
    """
    configured = model.pretrained_cfg.get("classifier") or ()
    layers = [configured] if isinstance(configured, str) else list(configured)
    given = model.get_classifier()
    for part in given if isinstance(given, tuple | list) else (given,):
        name = next((name for name, module in model.named_modules() if module is part), None)
        if name and not any(f"{layer}.".startswith(f"{name}.") for layer in layers):
            layers.append(name)
    return layers


@contextmanager
def _check_hub_once() -> Iterator[bool]:
    """Return whether the hub answers; while it does not, only files fetched before are looked for.

    Without this check its client would retry for a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE
    try:
        answer = None if before else get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
        answers = answer is not None and answer.status_code < 500
    except Exception:  # noqa: BLE001 - whatever its client of the day raises
        answers = False
    constants.HF_HUB_OFFLINE = not answers
    try:
        yield answers
    finally:
        constants.HF_HUB_OFFLINE = before
