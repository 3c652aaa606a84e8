"""From what a person asked for (a name, a file, `random`, a bundle) to a bundle."""

from __future__ import annotations

import dataclasses

import torch

from retrieval.core.errors import InputError, UsageError
from retrieval.core.schemas import Pooling, Resize
from retrieval.models import registry
from retrieval.models.bundle import Bundle, load_weights, pack, read_bundle
from retrieval.models.pooling import EACH, POOLINGS
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import open_folder

RANDOM = "random"


def resolve_bundle(
    *,
    backbone: str,
    weights: str | None,
    bundle: str | None,
    pooling: Pooling,
    normalize: bool,
    image_size: int | None,
    resize: Resize | None,
    seed: int,
) -> Bundle:
    """Make the bundle that options describe; weights are fetched here, once, by the driver."""
    if bundle is not None:
        if weights is not None:
            raise UsageError("--weights and --bundle are two answers to one question; keep one")
        stored = read_bundle(open_folder(bundle))
        registry.check_name(stored.backbone)  # here and not in every worker
        return stored
    source = resolve_source(backbone, weights, image_size=image_size, resize=resize, seed=seed)
    return make_bundle(backbone, source, pooling, normalize)


def resolve_source(
    backbone: str, weights: str | None, *, image_size: int | None, resize: Resize | None, seed: int
) -> registry.Source:
    """Get the parameters that options name, with their transform: its own, a file's, or random."""
    registry.check_name(backbone)
    if weights is None:
        return registry.pretrained(backbone, image_size=image_size, resize=resize)
    transform = registry.first_preset(backbone, image_size=image_size, resize=resize)
    return registry.Source(_state(backbone, weights, seed), transform)


def _state(backbone: str, weights: str, seed: int) -> registry.State:
    if weights == RANDOM:
        torch.manual_seed(seed)
        return dict(registry.network(backbone).state_dict())
    try:
        data = read_uri(weights)
    except (OSError, ValueError, ImportError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--weights {weights} cannot be read ({why})") from error
    return load_weights(data, weights)


def make_bundle(
    backbone: str, source: registry.Source, pooling: Pooling, normalize: bool
) -> Bundle:
    """Fit parameters to a backbone and find its dimension by embedding one blank image."""
    state = registry.fit_state(source.state, backbone)
    dimension = _dimension(backbone, state, pooling, source.transform.image_size)
    return Bundle(backbone, pooling, normalize, source.transform, dimension, pack(state))


def resolve_each(
    backbone: str, weights: str | None, *, image_size: int | None, resize: Resize | None, seed: int
) -> tuple[Bundle, dict[str, int]]:
    """Make the bundle that gives raw vectors of all poolings side by side, as `EACH` has them.

    Also tells how many numbers each pooling has, in their order: what a classifier reads (avg) may
    have others than the map before it. A network that ends without a map has avg alone.
    """
    bundle = resolve_bundle(
        backbone=backbone, weights=weights, bundle=None, pooling="avg", normalize=False,
        image_size=image_size, resize=resize, seed=seed,
    )  # fmt: skip
    own = bundle.dimension
    try:
        both = _dimension(backbone, bundle.state(), EACH, bundle.transform.image_size)
    except UsageError:
        return bundle, {"avg": own}
    rest = [name for name in POOLINGS if name != "avg"]
    widths = {"avg": own} | dict.fromkeys(rest, (both - own) // len(rest))
    ordered = {name: widths[name] for name in POOLINGS}
    return dataclasses.replace(bundle, pooling=EACH, dimension=both), ordered


def _dimension(backbone: str, state: registry.State, pooling: Pooling, side: int) -> int:
    network = registry.extractor(backbone, state, pooling)
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, 3, side, side)).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"--backbone {backbone} does not take images of {side} pixels; change --image-size"
        ) from error
