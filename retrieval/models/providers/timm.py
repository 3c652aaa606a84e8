"""Provider of timm's image models: `timm:NAME`, `timm:NAME.TAG`, or one of a hub or a folder.

timm's models have an interface for this: `forward_features` returns the last features,
`forward_head(…, pre_logits=True)` the input of the classifier, and the configuration of each name
holds the transform, the classifier's layers and the location of the weights. Only whether channels
come first or last must be inferred from the shape.

A bundle names the network as `timm:NAME?ARGUMENT=VALUE&…`, with the arguments of `create_model`
that differ from its defaults: the input size of a transformer, and the dimension (`num_classes`) of
a tower whose last layer is not a classifier but the projection into the space of images and texts.
Models of a hub are named by their architecture, so that workers and later runs need no hub.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from math import floor
from typing import Any
from urllib.parse import parse_qsl, urlencode

from torch import Tensor, nn

from retrieval.core.errors import Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling, Resize
from retrieval.models.pooling import POOLINGS, apply_pooling
from retrieval.models.providers.base import (
    BackboneCard,
    BackboneProvider,
    FeatureExtractor,
    State,
    WeightSource,
    weights_unavailable,
)
from retrieval.models.providers.timm_hub import check_hub_once, is_hub_name, open_hub_model
from retrieval.models.transforms import describe_transform

TIMM = "timm:"
_RESIZE: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "pad"}
"""Our resize mode for each crop mode of timm."""

_TOWER = re.compile("clip|pe_core")
_TOWER_DIMENSIONS = (384, 512, 640, 768, 1024, 1152, 1280)
"""In names of CLIP-like image towers `num_classes` is the dimension of the projection, one of
these; with weights that were fine-tuned for classification it is the number of classes."""

_REFUSED_ARGUMENTS = re.compile(
    "pretrained.*|checkpoint_path|cache_dir|scriptable|exportable|no_jit|features_only|device|dtype"
)
"""Arguments of `create_model` that load files, or that shape something other than the network."""


class TimmProvider(BackboneProvider):
    """Provides the models that timm lists, if timm is installed; importing it takes seconds."""

    suggestion = f"{TIMM}resnet50, {TIMM}efficientnet_b0"

    def names(self) -> list[str]:
        """Return all models of timm, without tags: a name without tag means its default weights."""
        return self.similar_names(f"{TIMM}NAME")

    def has_name(self, name: str) -> bool:
        """Return whether timm has the model and, if the name has a tag, weights with that tag.

        A name of a hub or a folder is accepted; whether it exists is known when it is read.
        """
        if is_hub_name(name.removeprefix(TIMM)):
            return bool(_library(name))
        base, _ = split_name(name)
        return base in self.similar_names(base)

    def similar_names(self, name: str) -> list[str]:
        """Return all names, with tags if `name` has a tag, else without."""
        return [TIMM + model for model in _library(name).list_models(include_tags="." in name)]

    def name_for_size(self, name: str, image_size: int | None) -> str:
        """Return a name with the arguments of its projection, and of its input size if needed."""
        if is_hub_name(name.removeprefix(TIMM)):
            raise UsageError(f"--backbone {name} brings its own weights; omit --weights")
        base, arguments = split_name(name)
        configuration = _pretrained_config(base)
        if _is_tower(base, configuration.num_classes, configuration.tag):
            arguments.setdefault("num_classes", configuration.num_classes)
        own_size = arguments.get("img_size", configuration.input_size[-1])
        if image_size in (None, own_size) or not configuration.fixed_input_size:
            return join_name(base, arguments)
        resized = join_name(base, {**arguments, "img_size": image_size})
        try:
            self.skeleton(resized, {})
        except TypeError:  # its size is not an argument; whether it fits is measured later
            return join_name(base, arguments)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"--backbone {name} does not take images of {image_size} pixels; change "
                "--image-size"
            ) from error
        return resized

    def pretrained(self, name: str, image_size: int | None) -> WeightSource:
        """Fetch the parameters of a name, or read those of a hub or a folder."""
        if not is_hub_name(name.removeprefix(TIMM)):
            return super().pretrained(name, image_size)
        model = open_hub_model(name.removeprefix(TIMM))
        network = self._name_of_hub_model(name, model)
        transform = _transform(name, _configuration(name, model.configuration), image_size)
        return WeightSource(self.name_for_size(network, image_size), model.state(), transform)

    def _name_of_hub_model(self, name: str, model: Any) -> str:
        """Return the name of the network of a model of a hub or a folder."""
        network = TIMM + model.architecture
        if not self.has_name(network):
            raise UsageError(
                f"--backbone {name} is a {model.architecture}, which timm "
                f"{_library(name).__version__} does not have; install a newer timm"
            )
        arguments = {key: value for key, value in model.arguments.items() if value is not None}
        classes, tag = model.configuration["num_classes"], model.configuration.get("tag")
        if _is_tower(network, classes, tag):
            arguments["num_classes"] = classes
        else:
            arguments.pop("num_classes", None)
        return join_name(network, arguments)

    def adapt_state(self, state: State, model: nn.Module) -> State:
        """Return parameters in the layout and for the input size of `model`, as timm does.

        Parameters that still do not fit are returned unchanged.
        """
        classifier = tuple(layer + "." for layer in _classifier_layers(model))
        expected = {
            key: value.shape
            for key, value in model.state_dict().items()
            if not key.startswith(classifier) and not key.endswith("num_batches_tracked")
        }

        def fits(candidate: State) -> bool:
            return all(k in candidate and candidate[k].shape == v for k, v in expected.items())

        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is None or fits(state):
            return state
        try:
            converted: State = dict(convert(dict(state), model))
        except Exception:  # noqa: BLE001 - written for its own checkpoints only
            return state
        return converted if fits(converted) else state

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:  # noqa: ARG002
        """Build a network; its input size is part of the name, so `state` is not needed.

        Raises UsageError where its classifier cannot be removed, or the name is of a hub.
        """
        base, arguments = split_name(name)
        if is_hub_name(base.removeprefix(TIMM)):
            raise UsageError(f"--backbone {name} has no network before it is fetched")
        if num_classes is not None:
            arguments.setdefault("num_classes", num_classes)
        model: nn.Module = _library(name).create_model(base.removeprefix(TIMM), **arguments)
        if not all(hasattr(model, part) for part in ("forward_head", "get_classifier")):
            raise UsageError(f"--backbone {name} has no classifier that can be removed")
        return model

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:
        """Return the prefixes of the classifier's layers; a projection is not a classifier."""
        if _has_projection(name):
            return ()
        return tuple(layer + "." for layer in _classifier_layers(model))

    def fetch(self, name: str) -> State:
        """Download the weights of a name from timm's hub, once, in the layout of timm's model."""
        timm = _library(name)
        base, arguments = split_name(name)
        if not _pretrained_config(base).has_weights:
            raise UsageError(
                f"--backbone {name} has no weights of its own; name a file with --weights"
            )
        with check_hub_once() as reachable:
            try:
                model = timm.create_model(base.removeprefix(TIMM), pretrained=True, **arguments)
            except Exception as error:  # the hub's client raises various exceptions
                raise weights_unavailable(
                    name, error if reachable else "no answer from its hub"
                ) from error
        return dict(model.state_dict())

    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the transform that timm's configuration of the name describes."""
        return _transform(name, _pretrained_config(split_name(name)[0]), image_size)

    def default_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the pretrained transform: in timm it is part of the model's configuration."""
        return self.pretrained_transform(name, image_size)

    def extractor(self, name: str, state: State, pooling: Pooling) -> FeatureExtractor:
        """Build the network with these parameters and without its classifier.

        It is not built on PyTorch's meta device, since some buffers that it computes itself (such
        as relative positions) are not in the state dict. Raises Mismatch where the parameters
        belong to another version of timm.
        """
        model = self.network(name, num_classes=None, state=state)
        if not _has_projection(name):
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
        network = name
        if is_hub_name(name.removeprefix(TIMM)):
            model = open_hub_model(name.removeprefix(TIMM), with_weights=False)
            network = self._name_of_hub_model(name, model)
            configuration = _configuration(name, model.configuration)
        else:
            configuration = _pretrained_config(split_name(name)[0])
        network = self.name_for_size(network, None)
        parameters = sum(value.numel() for value in self.skeleton(network, {}).parameters())
        size = _transform(name, configuration, None).image_size
        dimension = self.measure_dimension(network, size)
        return BackboneCard(name, parameters, dimension, size, None, None, None)


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """Return a name without its arguments, and the arguments of `timm.create_model`.

    Raises UsageError for arguments that are not JSON values, or that do not shape the network: a
    bundle of unknown origin must not be able to load files.
    """
    base, _, query = name.partition("?")
    arguments: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            arguments[key] = json.loads(text)
        except ValueError:
            raise UsageError(f"--backbone {name}: {key}={text} is not a JSON value") from None
    _check_arguments(name, arguments)
    return base, arguments


def join_name(base: str, arguments: Mapping[str, Any]) -> str:
    """Return the name of a network with arguments; the reverse of `split_name`.

    Raises UsageError for arguments that `split_name` refuses.
    """
    _check_arguments(base, arguments)
    if not arguments:
        return base
    return f"{base}?{urlencode({key: json.dumps(arguments[key]) for key in sorted(arguments)})}"


def _check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    for key, value in arguments.items():
        is_plain = isinstance(value, int | float | str) or (
            isinstance(value, list) and all(isinstance(part, int | float) for part in value)
        )
        if not key.isidentifier() or _REFUSED_ARGUMENTS.fullmatch(key) or not is_plain:
            raise UsageError(f"--backbone {name}: the argument {key} of its network is not allowed")


def _is_tower(name: str, classes: object, tag: object) -> bool:
    """Return whether the last layer of a network is a projection instead of a classifier."""
    return classes in _TOWER_DIMENSIONS and bool(_TOWER.search(f"{name}.{tag}"))


def _has_projection(name: str) -> bool:
    return "num_classes" in split_name(name)[1]


def _configuration(name: str, values: Mapping[str, Any]) -> Any:
    """Return the configuration of a config.json as timm's own type; unknown fields are dropped."""
    import dataclasses

    from timm.models import PretrainedCfg

    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    configuration = PretrainedCfg(**{k: v for k, v in values.items() if k in known})
    size, share = configuration.input_size, configuration.crop_pct
    if (
        not isinstance(size, list | tuple) or len(size) != 3
        or not all(isinstance(value, int) for value in size)
        or not isinstance(share, int | float) or not 0.1 <= share <= 1
        or configuration.crop_mode not in _RESIZE
    ):  # fmt: skip
        raise UsageError(f"--backbone {name}: its config.json describes no transform of timm")
    return configuration


def _transform(name: str, configuration: Any, image_size: int | None) -> Transform:
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
    transform = Transform(resize, shorter, size, configuration.interpolation, mean, std)
    return describe_transform(transform, f"--backbone {name}")


class TimmExtractor(FeatureExtractor):
    """A model of timm up to its classifier: (n, 3, h, w) normalised float32 -> (n, d) float32."""

    def __init__(self, model: nn.Module, name: str, pooling: Pooling) -> None:
        super().__init__()
        self.body: Any = model
        self.name = name
        self.pooling = pooling
        self.has_projection = _has_projection(name)

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch; avg is the input of the classifier, or the output of the projection.

        Other poolings pool the feature map.
        """
        features = self.body.forward_features(images)
        return apply_pooling(self.pooling, lambda pooling: self._vectors(features, pooling))

    def feature_map(self, images: Tensor) -> Tensor | None:
        """Return the last feature map of a batch; None for tokens, and before a projection."""
        features = self.body.forward_features(images)
        if self.has_projection or not isinstance(features, Tensor) or features.ndim != 4:
            return None
        return self._map(features)

    def _vectors(self, features: Tensor | list[Tensor], pooling: str) -> Tensor:
        if pooling == "avg":
            vectors: Tensor = self.body.forward_head(features, pre_logits=not self.has_projection)
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
