"""From what a person asked for (a name, a file, `random`, a bundle) to a bundle."""

from __future__ import annotations

import torch

from retrieval.errors import InputError, UsageError
from retrieval.model import backbones
from retrieval.model.bundle import Bundle, load_weights, pack, read_bundle
from retrieval.storage.files import open_folder
from retrieval.storage.reading import read_uri
from retrieval.tables import Pooling, Resize

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
        backbones.check_name(stored.backbone)  # here and not in every worker
        return stored
    source = resolve_source(backbone, weights, image_size=image_size, resize=resize, seed=seed)
    return make_bundle(backbone, source, pooling, normalize)


def resolve_source(
    backbone: str, weights: str | None, *, image_size: int | None, resize: Resize | None, seed: int
) -> backbones.Source:
    """Get the parameters that options name, with their transform: its own, a file's, or random."""
    backbones.check_name(backbone)
    if weights is None:
        return backbones.pretrained(backbone, image_size=image_size, resize=resize)
    transform = backbones.first_preset(backbone, image_size=image_size, resize=resize)
    return backbones.Source(_state(backbone, weights, seed), transform)


def _state(backbone: str, weights: str, seed: int) -> backbones.State:
    if weights == RANDOM:
        torch.manual_seed(seed)
        return dict(backbones.network(backbone).state_dict())
    try:
        data = read_uri(weights)
    except (OSError, ValueError, ImportError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--weights {weights} cannot be read ({why})") from error
    return load_weights(data, weights)


def make_bundle(
    backbone: str, source: backbones.Source, pooling: Pooling, normalize: bool
) -> Bundle:
    """Fit parameters to a backbone and find its dimension by embedding one blank image."""
    state = backbones.fit_state(source.state, backbone)
    network = backbones.extractor(backbone, state, pooling)
    side = source.transform.image_size
    try:
        with torch.inference_mode():
            dimension = int(network(torch.zeros(1, 3, side, side)).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"--backbone {backbone} does not take images of {side} pixels; change --image-size"
        ) from error
    return Bundle(backbone, pooling, normalize, source.transform, dimension, pack(state))
