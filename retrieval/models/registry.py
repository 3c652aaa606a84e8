"""Registry of backbones: resolves a name to its provider, weights and feature extractor.

A name with a prefix (`timm:resnet50`) belongs to the provider of that prefix, any other name except
`scratch` to torchvision. Providers (`providers/`) build a network, fetch its weights and remove its
classifier; this module holds what all providers share.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling, Resize
from retrieval.models.providers.base import BackboneCard, BackboneProvider, State
from retrieval.models.providers.scratch import SCRATCH, ScratchProvider
from retrieval.models.providers.timm import TIMM, TimmProvider
from retrieval.models.providers.torchvision import TorchvisionProvider

__all__ = [
    "SCRATCH",
    "BackboneCard",
    "State",
    "WeightSource",
    "build_extractor",
    "build_network",
    "default_transform",
    "describe_backbone",
    "fetch_pretrained",
    "find_provider",
    "fit_state",
    "list_backbones",
    "provider_of",
]

_TORCHVISION, _SCRATCH = TorchvisionProvider(), ScratchProvider()
_PREFIXED: dict[str, BackboneProvider] = {TIMM: TimmProvider()}


@dataclass(frozen=True)
class WeightSource:
    """The parameters of a backbone and the transform that they were trained with."""

    state: State
    transform: Transform


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
    provider = provider_of(name)
    if not provider.has_name(name):
        from difflib import get_close_matches

        names = list_backbones() if provider is _TORCHVISION else provider.similar_names(name)
        suggestions = ", ".join(get_close_matches(name, names, 3, 0.4)) or provider.suggestion
        raise UsageError(f"{flag} {name} is not known; did you mean {suggestions}?")
    return provider


def build_network(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Build a network with random parameters and its classifier."""
    return find_provider(name).network(name, num_classes=num_classes, state={})


def fetch_pretrained(name: str, *, image_size: int | None, resize: Resize | None) -> WeightSource:
    """Fetch a backbone's pretrained weights, with their transform; downloads them once.

    `image_size` and `resize` override those of the transform. Raises InputError where the download
    fails, UsageError where the backbone has no pretrained weights.
    """
    provider = find_provider(name)
    state = provider.fetch(name)
    return WeightSource(state, _resized(provider.pretrained_transform(name, image_size), resize))


def default_transform(name: str, *, image_size: int | None, resize: Resize | None) -> Transform:
    """Return the transform for weights from a file, which come without one."""
    return _resized(find_provider(name).default_transform(name, image_size), resize)


def _resized(transform: Transform, resize: Resize | None) -> Transform:
    return transform if resize is None else dataclasses.replace(transform, resize=resize)


def fit_state(state: State, name: str) -> State:
    """Return the parameters of a backbone without its classifier, taken from a state dict.

    Prefixes of wrappers (`_unwrapped`), a missing or different classifier and missing batch
    counters are accepted. Raises UsageError that names the missing, unknown or misshapen keys.
    """
    provider = find_provider(name)
    loaded = _unwrapped(state)
    model = provider.skeleton(name, loaded)
    classifier_prefixes = provider.classifier_prefixes(model, name)
    expected = {
        key: v for key, v in model.state_dict().items() if not key.startswith(classifier_prefixes)
    }
    loaded = {
        key: value for key, value in loaded.items() if not key.startswith(classifier_prefixes)
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


def build_extractor(name: str, state: State, pooling: Pooling) -> nn.Module:
    """Build the feature extractor of a backbone from the parameters that `fit_state` returned."""
    return find_provider(name).extractor(name, state, pooling)


def describe_backbone(name: str, *, flag: str = "--backbone") -> BackboneCard:
    """Return the published figures of a backbone without fetching its weights."""
    return find_provider(name, flag=flag).describe(name)
