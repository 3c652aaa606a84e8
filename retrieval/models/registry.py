"""A backbone by its name: which shelf it stands on, its parameters, its feature extractor.

A name with a prefix (`timm:resnet50`) belongs to the shelf of that prefix, any other but `scratch`
to torchvision. What a network is, where its weights are and how its classifier is removed is the
affair of the shelf (`retrieval/model/shelves`); what holds for all of them is here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Pooling, Resize
from retrieval.models.providers.base import Card, Shelf, State
from retrieval.models.providers.scratch import SCRATCH, ScratchShelf
from retrieval.models.providers.timm import TIMM, TimmShelf
from retrieval.models.providers.torchvision import TorchvisionShelf

__all__ = ["SCRATCH", "Card", "Source", "State", "card", "check_name", "extractor", "first_preset",
           "fit_state", "names", "network", "pretrained", "shelf_of"]  # fmt: skip

_TORCHVISION, _SCRATCH = TorchvisionShelf(), ScratchShelf()
_PREFIXED: dict[str, Shelf] = {TIMM: TimmShelf()}


@dataclass(frozen=True)
class Source:
    """Where the parameters of a backbone come from, and the transform they were made for."""

    state: State
    transform: Transform


def names() -> list[str]:
    """List the backbones whose names have no prefix: torchvision's, and `scratch`."""
    return [*_TORCHVISION.names(), *_SCRATCH.names()]


def shelf_of(name: str) -> Shelf:
    """Give the shelf on which a name would stand."""
    prefix, colon, _ = name.partition(":")
    if colon:
        return _PREFIXED.get(prefix + colon, _TORCHVISION)
    return _SCRATCH if name == SCRATCH else _TORCHVISION


def check_name(name: str, *, flag: str = "--backbone") -> Shelf:
    """Give the shelf of a backbone; one that does not exist is refused, naming near ones."""
    shelf = shelf_of(name)
    if not shelf.holds(name):
        from difflib import get_close_matches

        known = names() if shelf is _TORCHVISION else shelf.alike(name)
        near = ", ".join(get_close_matches(name, known, 3, 0.4)) or shelf.usual
        raise UsageError(f"{flag} {name} is not known; did you mean {near}?")
    return shelf


def network(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Make a network of random parameters, with its classifier."""
    return check_name(name).network(name, num_classes=num_classes, state={})


def pretrained(name: str, *, image_size: int | None, resize: Resize | None) -> Source:
    """Fetch a backbone's own weights, with their own transform; needs the network once."""
    shelf = check_name(name)
    state = shelf.fetch(name)
    return Source(state, _resized(shelf.own_transform(name, image_size), resize))


def first_preset(name: str, *, image_size: int | None, resize: Resize | None) -> Transform:
    """Give the transform for weights that come without one."""
    return _resized(check_name(name).plain_transform(name, image_size), resize)


def _resized(transform: Transform, resize: Resize | None) -> Transform:
    return transform if resize is None else dataclasses.replace(transform, resize=resize)


def fit_state(state: State, name: str) -> State:
    """Bring a state dict to the parameters of a backbone without its classifier.

    The prefixes of wrappers (`_unwrapped`), a missing or another classifier and missing batch
    counters are understood; anything else is refused, naming the keys.
    """
    shelf = check_name(name)
    given = _unwrapped(state)
    model = shelf.skeleton(name, given)
    aside = shelf.only_classifies(model, name)
    wanted = {key: v for key, v in model.state_dict().items() if not key.startswith(aside)}
    given = {key: value for key, value in given.items() if not key.startswith(aside)}
    missing = sorted(k for k in wanted if k not in given and not k.endswith("num_batches_tracked"))
    extra = sorted(key for key in given if key not in wanted)
    shaped = sorted(k for k in given if k in wanted and given[k].shape != wanted[k].shape)
    problems = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shaped))
        if keys
    ]
    if problems:
        raise UsageError(f"--weights do not fit --backbone {name}: {'; '.join(problems)}")
    return {
        key: given[key].to(wanted[key].dtype).contiguous() if key in given else torch.tensor(0)
        for key in sorted(wanted)
    }


def _unwrapped(state: State) -> State:
    """Return a state dict with its keys as the network itself has them.

    `module.` is put before them by DistributedDataParallel, `_orig_mod.` by torch.compile, `model.`
    by a LightningModule, which keeps a loss or a measure beside its model: those are left out.
    """
    plain = {_without_wrappers(key): value for key, value in state.items()}
    inner = {k.removeprefix("model."): v for k, v in plain.items() if k.startswith("model.")}
    return {_without_wrappers(key): value for key, value in (inner or plain).items()}


def _without_wrappers(key: str) -> str:
    return key.replace("_orig_mod.", "").removeprefix("module.")


def extractor(name: str, state: State, pooling: Pooling) -> nn.Module:
    """Make the feature extractor of a backbone with the parameters that `fit_state` gave."""
    return check_name(name).extractor(name, state, pooling)


def card(name: str, *, flag: str = "--backbone") -> Card:
    """Say what is known of a backbone; nothing is fetched."""
    return check_name(name, flag=flag).card(name)
