"""Resolution of model options (a name, a file, `random` or a bundle) to a `Bundle`."""

from __future__ import annotations

import dataclasses

import torch

from retrieval.core.errors import InputError, UsageError
from retrieval.core.schemas import Pooling, Resize
from retrieval.models import registry
from retrieval.models.bundle import Bundle, load_weights, read_bundle, serialize_state
from retrieval.models.pooling import ALL_POOLINGS, POOLINGS
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
            raise UsageError("--weights and --bundle are mutually exclusive")
        stored = read_bundle(open_folder(bundle))
        registry.find_provider(stored.backbone)  # here and not in every worker
        return stored
    source = resolve_source(backbone, weights, image_size=image_size, resize=resize, seed=seed)
    return make_bundle(backbone, source, pooling, normalize)


def resolve_source(
    backbone: str, weights: str | None, *, image_size: int | None, resize: Resize | None, seed: int
) -> registry.WeightSource:
    """Get the parameters that options name, with their transform: its own, a file's, or random."""
    registry.find_provider(backbone)
    if weights is None:
        return registry.fetch_pretrained(backbone, image_size=image_size, resize=resize)
    transform = registry.default_transform(backbone, image_size=image_size, resize=resize)
    return registry.WeightSource(_load_state(backbone, weights, seed), transform)


def _load_state(backbone: str, weights: str, seed: int) -> registry.State:
    if weights == RANDOM:
        torch.manual_seed(seed)
        return dict(registry.build_network(backbone).state_dict())
    try:
        data = read_uri(weights)
    except (OSError, ValueError, ImportError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--weights {weights} cannot be read ({why})") from error
    return load_weights(data, weights)


def make_bundle(
    backbone: str, source: registry.WeightSource, pooling: Pooling, normalize: bool
) -> Bundle:
    """Fit parameters to a backbone and find its dimension by embedding one blank image."""
    state = registry.fit_state(source.state, backbone)
    dimension = _measure_dimension(backbone, state, pooling, source.transform.image_size)
    return Bundle(backbone, pooling, normalize, source.transform, dimension, serialize_state(state))


def resolve_all_poolings(
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
    avg_dimension = bundle.dimension
    try:
        total = _measure_dimension(
            backbone, bundle.state(), ALL_POOLINGS, bundle.transform.image_size
        )
    except UsageError:
        return bundle, {"avg": avg_dimension}
    rest = [name for name in POOLINGS if name != "avg"]
    widths = {"avg": avg_dimension}
    widths |= dict.fromkeys(rest, (total - avg_dimension) // len(rest))
    ordered = {name: widths[name] for name in POOLINGS}
    return dataclasses.replace(bundle, pooling=ALL_POOLINGS, dimension=total), ordered


def _measure_dimension(backbone: str, state: registry.State, pooling: Pooling, side: int) -> int:
    network = registry.build_extractor(backbone, state, pooling)
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, 3, side, side)).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"--backbone {backbone} does not take images of {side} pixels; change --image-size"
        ) from error
