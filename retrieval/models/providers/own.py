"""Provider of the user's own models, which must have been added in this process."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from retrieval.core.errors import Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models.own_model import MEMORY, LoadedModel, ModelCode, OwnModel
from retrieval.models.pooling import POOLINGS, apply_pooling
from retrieval.models.providers.base import (
    BackboneCard,
    BackboneProvider,
    FeatureExtractor,
    State,
)
from retrieval.models.transforms import scale_transform


class OwnModelProvider(BackboneProvider):
    """Provides the models that `add` was called with; others are refused, bundles name them or not.

    A bundle is data of unknown origin: it must not be able to choose the code that is run.
    """

    suggestion = ""

    def __init__(self) -> None:
        self._models: dict[str, OwnModel] = {}
        self._loaded: dict[str, LoadedModel] = {}

    def add(self, model: OwnModel) -> None:
        """Make a model available under its name, in place of an earlier one."""
        self._models[model.backbone] = model
        self._loaded.pop(model.backbone, None)

    def remove(self, name: str) -> None:
        """Make a model unavailable again; do nothing if it is not available."""
        self._models.pop(name, None)
        self._loaded.pop(name, None)

    def find(self, name: str) -> OwnModel | None:
        """Return the model that was added under a name, or None."""
        return self._models.get(name)

    def code(self, name: str) -> ModelCode:
        """Return the identity of the code of an added model."""
        return self._load(name).code

    def check_code(self, name: str, recorded: ModelCode) -> None:
        """Raise Mismatch if the code that a bundle records is not that of the added model."""
        code = self.code(name)
        if code != recorded:
            raise Mismatch(
                f"the vectors were made by {recorded.describe()}, but --backbone {name} is "
                f"{code.describe()} here; use the same source, or embed the images again"
            )

    def names(self) -> list[str]:
        """Return the names of the added models."""
        return list(self._models)

    def has_name(self, name: str) -> bool:
        """Return True for an added model, else raise UsageError: only the user may name code."""
        if name in self._models:
            return True
        remedy = (
            "pass its lookalike.Model"
            if name.startswith(MEMORY)
            else f"name it with --backbone {name}, and its folder with --python-path if it is not "
            "installed"
        )
        raise UsageError(
            f"the model {name} is code of the user's own, which is never chosen by an output; "
            f"{remedy}"
        )

    def network(self, name: str, *, num_classes: int | None, state: State) -> nn.Module:  # noqa: ARG002
        """Return a copy of the module with the parameters that its author gave it."""
        return copy.deepcopy(self._load(name).module)

    def skeleton(self, name: str, state: State) -> nn.Module:  # noqa: ARG002
        """Return the module itself, for its keys; building it again on a meta device may fail."""
        return self._load(name).module

    def classifier_prefixes(self, model: nn.Module, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return no prefixes: the module returns vectors."""
        return ()

    def fetch(self, name: str) -> State:
        """Return the parameters of the module."""
        module = self._load(name).module
        return {key: value.detach().clone() for key, value in module.state_dict().items()}

    def pretrained_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the transform that the model's author describes."""
        return scale_transform(self._load(name).transform, image_size)

    def default_transform(self, name: str, image_size: int | None) -> Transform:
        """Return the same transform for other parameters of the module."""
        return self.pretrained_transform(name, image_size)

    def extractor(self, name: str, state: State, pooling: Pooling) -> FeatureExtractor:
        """Return a copy of the module with these parameters."""
        module = self.network(name, num_classes=None, state=state)
        module.load_state_dict(state)
        return OwnExtractor(module, name, pooling).eval()

    def describe(self, name: str) -> BackboneCard:
        """Return the card of a model, which has no published figures of accuracy."""
        loaded = self._load(name)
        parameters = sum(value.numel() for value in loaded.module.parameters())
        size = loaded.transform.image_size
        dimension = self.measure_dimension(name, size)
        return BackboneCard(name, parameters, dimension, size, None, None, None)

    def _load(self, name: str) -> LoadedModel:
        if name not in self._loaded:
            self.has_name(name)
            self._loaded[name] = self._models[name].load()
        return self._loaded[name]


class OwnExtractor(FeatureExtractor):
    """An own module: (n, 3, h, w) normalised float32 -> (n, d) float32."""

    def __init__(self, module: nn.Module, name: str, pooling: Pooling) -> None:
        super().__init__()
        self.body = module
        self.name = name
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch; vectors are returned as they are, a feature map is pooled."""
        features = self._features(images)
        return apply_pooling(self.pooling, lambda pooling: self._pool(features, pooling))

    def feature_map(self, images: Tensor) -> Tensor | None:
        """Return the feature map of a batch; None if the module returns vectors."""
        features = self._features(images)
        return features if features.ndim == 4 else None

    def _features(self, images: Tensor) -> Tensor:
        features = self.body(images)
        if not isinstance(features, Tensor) or features.ndim not in (2, 4):
            shape = tuple(features.shape) if isinstance(features, Tensor) else "no tensor"
            raise UsageError(
                f"--backbone {self.name} returns {shape}; return vectors (n, d) or a feature map "
                "(n, c, h, w)"
            )
        return features

    def _pool(self, features: Tensor, pooling: str) -> Tensor:
        if features.ndim == 4:
            return POOLINGS[pooling](features)
        if pooling == "avg":
            return features
        raise UsageError(
            f"--backbone {self.name} returns vectors, not a map of features; it takes --pooling "
            "avg only"
        )
