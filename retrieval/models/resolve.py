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
    """Build the bundle that the model options describe; the driver does this once.

    Raises UsageError for invalid or contradictory options, InputError where weights or bundle
    cannot be read or fetched.
    """
    if bundle is not None:
        if weights is not None:
            raise UsageError("--weights and --bundle are mutually exclusive")
        stored = read_bundle(open_folder(bundle))
        registry.find_provider(stored.backbone)  # fails here rather than in every worker
        return stored
    source = resolve_source(backbone, weights, image_size=image_size, resize=resize, seed=seed)
    return make_bundle(backbone, source, pooling, normalize)


def resolve_source(
    backbone: str, weights: str | None, *, image_size: int | None, resize: Resize | None, seed: int
) -> registry.WeightSource:
    """Return parameters with their transform: pretrained ones, those of a file, or random ones."""
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
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--weights {weights} cannot be read ({reason})") from error
    return load_weights(data, weights)


def make_bundle(
    backbone: str, source: registry.WeightSource, pooling: Pooling, normalize: bool
) -> Bundle:
    """Build a bundle from parameters; its dimension is measured by embedding one blank image."""
    state = registry.fit_state(source.state, backbone)
    dimension = _measure_dimension(backbone, state, pooling, source.transform.image_size)
    return Bundle(backbone, pooling, normalize, source.transform, dimension, serialize_state(state))


def resolve_all_poolings(
    backbone: str, weights: str | None, *, image_size: int | None, resize: Resize | None, seed: int
) -> tuple[Bundle, dict[str, int]]:
    """Build a bundle whose vectors are those of all poolings, concatenated and not normalised.

    Returns the bundle and the dimension of each pooling, in the order of concatenation; that of avg
    (the input of the classifier) may differ from that of the feature map. A network without a
    feature map has avg only.
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
    map_poolings = [name for name in POOLINGS if name != "avg"]
    widths = {"avg": avg_dimension}
    widths |= dict.fromkeys(map_poolings, (total - avg_dimension) // len(map_poolings))
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
