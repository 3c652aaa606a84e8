"""Registry of backbones: resolves a name to its provider, weights and feature extractor.

A name with a prefix (`timm:resnet50`) belongs to the provider of that prefix, any other name except
`scratch` to torchvision. Providers (`providers/`) build a network, fetch its weights and remove its
classifier; this module holds what all providers share. Models of the user's own are available only
after `add_model`, which is called for the user's options alone and never for a name in an output.
"""

from __future__ import annotations

import torch
from torch import nn

from retrieval.core.errors import Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling
from retrieval.models.bundle import ONNX
from retrieval.models.own_model import MEMORY, PYTHON, ModelCode, OwnModel, named_model
from retrieval.models.providers.base import (
    BackboneCard,
    BackboneProvider,
    FeatureExtractor,
    State,
    WeightSource,
)
from retrieval.models.providers.own import OwnModelProvider
from retrieval.models.providers.scratch import SCRATCH, ScratchProvider
from retrieval.models.providers.timm import TIMM, TimmProvider
from retrieval.models.providers.torchvision import TorchvisionProvider

__all__ = [
    "SCRATCH",
    "BackboneCard",
    "State",
    "WeightSource",
    "add_model",
    "add_named_model",
    "build_extractor",
    "build_network",
    "check_code",
    "default_transform",
    "describe_backbone",
    "fetch_pretrained",
    "find_own_model",
    "find_provider",
    "fit_state",
    "list_backbones",
    "name_for_size",
    "own_code",
    "provider_of",
    "remove_model",
]

_TORCHVISION, _SCRATCH, _OWN = TorchvisionProvider(), ScratchProvider(), OwnModelProvider()
_PREFIXED: dict[str, BackboneProvider] = {TIMM: TimmProvider(), PYTHON: _OWN, MEMORY: _OWN}


def list_backbones() -> list[str]:
    """List the backbones whose names have no prefix: torchvision's, and `scratch`."""
    return [*_TORCHVISION.names(), *_SCRATCH.names()]


def provider_of(name: str) -> BackboneProvider:
    """Return the provider responsible for a name, whether or not it exists there."""
    prefix, colon, _ = name.partition(":")
    if colon:
        return _PREFIXED.get(prefix + colon, _TORCHVISION)
    return _SCRATCH if name == SCRATCH else _TORCHVISION


def find_provider(name: str, *, flag: str = "--backbone") -> BackboneProvider:
    """Return the provider of a backbone; raise UsageError with similar names if there is none."""
    if name.startswith(ONNX):
        raise UsageError(
            f"{flag} {name}: embed, run and compare --data take an ONNX file; it has no network of "
            "torch, which training needs"
        )
    provider = provider_of(name)
    if not provider.has_name(name):
        from difflib import get_close_matches

        names = list_backbones() if provider is _TORCHVISION else provider.similar_names(name)
        suggestions = ", ".join(get_close_matches(name, names, 3, 0.4)) or provider.suggestion
        raise UsageError(f"{flag} {name} is not known; did you mean {suggestions}?")
    return provider


def add_model(model: OwnModel) -> None:
    """Make an own model available in this process under its name."""
    _OWN.add(model)


def remove_model(name: str) -> None:
    """Make an own model unavailable again; do nothing if it is not available."""
    _OWN.remove(name)


def add_named_model(name: str, python_path: str | None) -> None:
    """Make the model of `--backbone python:…` available; do nothing for other backbones.

    Raises UsageError if the name or the folder is invalid; the code is run later.
    """
    model = named_model(name, python_path)
    if model is not None:
        add_model(model)


def find_own_model(name: str) -> OwnModel | None:
    """Return the own model that was added under a name, to be sent to workers; else None."""
    return _OWN.find(name)


def own_code(name: str) -> ModelCode | None:
    """Return the identity of the code of an own model, None for other backbones."""
    return _OWN.code(name) if provider_of(name) is _OWN else None


def check_code(name: str, recorded: ModelCode | None) -> None:
    """Raise Mismatch if the code that a bundle records is not that of the added own model.

    Raises UsageError if the user has not added it. Does nothing for other backbones.
    """
    if provider_of(name) is not _OWN:
        return
    _OWN.has_name(name)
    if recorded is None:
        raise Mismatch(f"the bundle of {name} records no source; embed the images again")
    _OWN.check_code(name, recorded)


def build_network(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Build a network with random parameters and its classifier."""
    return find_provider(name).network(name, num_classes=num_classes, state={})


def fetch_pretrained(name: str, *, image_size: int | None) -> WeightSource:
    """Fetch a backbone's pretrained weights, with their transform; downloads them once.

    `image_size` overrides that of the transform. Raises InputError where the download fails,
    UsageError where the backbone has no pretrained weights.
    """
    return find_provider(name).pretrained(name, image_size)


def default_transform(name: str, *, image_size: int | None) -> Transform:
    """Return the transform for weights from a file, which come without one."""
    return find_provider(name).default_transform(name, image_size)


def name_for_size(name: str, image_size: int | None) -> str:
    """Return the name of the network that reads images of a size; None means its own size."""
    return find_provider(name).name_for_size(name, image_size)


def fit_state(state: State, name: str) -> State:
    """Return the parameters of a backbone without its classifier, taken from a state dict.

    Prefixes of wrappers (`_unwrapped`), a missing or different classifier and missing batch
    counters are accepted. Raises UsageError that names the missing, unknown or misshapen keys.
    """
    provider = find_provider(name)
    unwrapped = _unwrapped(state)
    model = provider.skeleton(name, unwrapped)
    classifier_prefixes = provider.classifier_prefixes(model, name)
    expected = {
        key: v for key, v in model.state_dict().items() if not key.startswith(classifier_prefixes)
    }
    # the network's own keys may begin like those of a wrapper
    loaded = state if expected.keys() <= state.keys() else unwrapped
    loaded = {
        key: value
        for key, value in provider.adapt_state(loaded, model).items()
        if not key.startswith(classifier_prefixes)
    }
    missing = sorted(
        k for k in expected if k not in loaded and not k.endswith("num_batches_tracked")
    )
    extra = sorted(key for key in loaded if key not in expected)
    mismatched = sorted(k for k in loaded if k in expected and loaded[k].shape != expected[k].shape)
    problems = [
        f"{problem} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for problem, keys in (
            ("missing", missing),
            ("unknown", extra),
            ("of another shape", mismatched),
        )
        if keys
    ]
    if problems:
        raise UsageError(f"--weights do not fit --backbone {name}: {'; '.join(problems)}")
    return {
        key: loaded[key].to(expected[key].dtype).contiguous() if key in loaded else torch.tensor(0)
        for key in sorted(expected)
    }


def _unwrapped(state: State) -> State:
    """Return a state dict with the keys of the network itself.

    DistributedDataParallel prefixes keys with `module.`, torch.compile with `_orig_mod.`, and a
    LightningModule with `model.`; other entries of a LightningModule (losses, metrics) are dropped.
    """
    plain = {_without_wrappers(key): value for key, value in state.items()}
    inner = {k.removeprefix("model."): v for k, v in plain.items() if k.startswith("model.")}
    return {_without_wrappers(key): value for key, value in (inner or plain).items()}


def _without_wrappers(key: str) -> str:
    return key.replace("_orig_mod.", "").removeprefix("module.")


def build_extractor(name: str, state: State, pooling: Pooling) -> FeatureExtractor:
    """Build the feature extractor of a backbone from the parameters that `fit_state` returned."""
    return find_provider(name).extractor(name, state, pooling)


def describe_backbone(name: str, *, flag: str = "--backbone") -> BackboneCard:
    """Return the published figures of a backbone without fetching its weights."""
    return find_provider(name, flag=flag).describe(name)
