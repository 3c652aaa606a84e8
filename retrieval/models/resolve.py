"""Resolution of model options (a name, a file, `random` or a bundle) to a `Bundle`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from retrieval.core.errors import InputError, LookalikeError, UsageError
from retrieval.core.schemas import Pooling, Resize
from retrieval.models import registry
from retrieval.models.bundle import ONNX, Bundle, load_weights, read_bundle, serialize_state
from retrieval.models.engine_plan import openvino_installed
from retrieval.models.onnx_file import read_onnx
from retrieval.models.openvino import ConversionFailed
from retrieval.models.pooling import ALL_POOLINGS, POOLINGS
from retrieval.models.transforms import Interpolation, override_transform, standard_transform
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
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
    python_path: str | None = None,
) -> Bundle:
    """Build the bundle that the model options describe; the driver does this once.

    Raises UsageError for invalid or contradictory options, InputError where weights or bundle
    cannot be read or fetched, Mismatch if the code of an own model is not that of `bundle`.
    """
    overrides: dict[str, Any] = {"mean": mean, "std": std, "interpolation": interpolation}
    if bundle is not None:
        if weights is not None:
            raise UsageError("--weights and --bundle are mutually exclusive")
        registry.add_named_model(backbone, python_path)
        stored = read_bundle(open_folder(bundle))
        check_runnable(stored)  # fails here rather than in every worker
        return stored
    if backbone.startswith(ONNX):
        if weights is not None or pooling != "avg":
            raise UsageError(
                f"--backbone {backbone} holds its weights and returns vectors; omit --weights and "
                "--pooling"
            )
        return _make_onnx_bundle(
            backbone, image_size, {"resize": resize, **overrides}, normalize=normalize
        )
    source = resolve_source(
        backbone, weights, image_size=image_size, resize=resize, seed=seed, python_path=python_path
    )
    transform = override_transform(source.transform, **overrides)
    return make_bundle(dataclasses.replace(source, transform=transform), pooling, normalize)


def _make_onnx_bundle(
    backbone: str, image_size: int | None, overrides: dict[str, Any], *, normalize: bool
) -> Bundle:
    """Build the bundle of `onnx:FILE`, whose transform comes from options."""
    from retrieval.models.openvino_onnx import (
        convert_onnx,
        describe_input,
        measure_onnx_dimension,
    )

    _require_openvino(backbone)
    path = backbone.removeprefix(ONNX)
    data, name = read_onnx(path), ONNX + path.rpartition("/")[2]
    side = image_size or describe_input(data, name).image_size
    transform = override_transform(standard_transform(side), **overrides)
    side = transform.image_size
    try:
        ir = convert_onnx(data, name, transform, (1, 3, side, side))
    except ConversionFailed as error:
        raise UsageError(
            f"--backbone {backbone} cannot be run by OpenVINO on images of {side} pixels "
            f"({error}); change --image-size, or export it again"
        ) from error
    dimension = measure_onnx_dimension(ir)
    return Bundle(name, "avg", normalize, transform, dimension, data)


def _require_openvino(backbone: str) -> None:
    if not openvino_installed():
        raise UsageError(f"--backbone {backbone} needs OpenVINO; pip install openvino")


def is_same_backbone(requested: str, stored: str) -> bool:
    """Return whether the name of an option is that in a bundle.

    A bundle has the file name of an ONNX file, and the arguments of a network after a `?`.
    """
    if requested.startswith(ONNX):
        return stored == ONNX + requested.removeprefix(ONNX).rpartition("/")[2]
    return requested in (stored, stored.partition("?")[0])


def check_runnable(bundle: Bundle) -> None:
    """Raise UsageError if the network of a bundle cannot be built here, Mismatch if it differs.

    The code of an own model must have been named by the user, and be that of the bundle.
    """
    if bundle.is_onnx:
        _require_openvino(bundle.backbone)
        return
    registry.find_provider(bundle.backbone)
    registry.check_code(bundle.backbone, bundle.code)


def resolve_source(
    backbone: str,
    weights: str | None,
    *,
    image_size: int | None,
    resize: Resize | None,
    seed: int,
    python_path: str | None = None,
) -> registry.WeightSource:
    """Return parameters with their transform: pretrained ones, those of a file, or random ones."""
    registry.add_named_model(backbone, python_path)
    if weights is None:
        source = registry.fetch_pretrained(backbone, image_size=image_size)
    else:
        name = registry.name_for_size(backbone, image_size)
        transform = registry.default_transform(name, image_size=image_size)
        source = registry.WeightSource(name, _load_state(name, weights, seed), transform)
    transform = override_transform(source.transform, resize=resize)
    return dataclasses.replace(source, transform=transform)


def _load_state(backbone: str, weights: str, seed: int) -> registry.State:
    if weights == RANDOM:
        if registry.find_own_model(backbone) is not None:
            raise UsageError(
                f"--weights random: {backbone} sets its own parameters; omit --weights"
            )
        torch.manual_seed(seed)
        return dict(registry.build_network(backbone).state_dict())
    try:
        data = read_uri(weights)
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--weights {weights} cannot be read ({reason})") from error
    return load_weights(data, weights)


def make_bundle(source: registry.WeightSource, pooling: Pooling, normalize: bool) -> Bundle:
    """Build a bundle from parameters; its dimension is measured by embedding one blank image."""
    name = source.backbone
    state = registry.fit_state(source.state, name)
    dimension = _measure_dimension(name, state, pooling, source.transform.image_size)
    return Bundle(
        name, pooling, normalize, source.transform, dimension, serialize_state(state),
        code=registry.own_code(name),
    )  # fmt: skip


def resolve_all_poolings(
    backbone: str,
    weights: str | None,
    *,
    image_size: int | None,
    resize: Resize | None,
    seed: int,
    python_path: str | None = None,
) -> tuple[Bundle, dict[str, int]]:
    """Build a bundle whose vectors are those of all poolings, concatenated and not normalised.

    Returns the bundle and the dimension of each pooling, in the order of concatenation; that of avg
    (the input of the classifier) may differ from that of the feature map. A network without a
    feature map has avg only.
    """
    bundle = resolve_bundle(
        backbone=backbone, weights=weights, bundle=None, pooling="avg", normalize=False,
        image_size=image_size, resize=resize, seed=seed, python_path=python_path,
    )  # fmt: skip
    avg_dimension = bundle.dimension
    if bundle.is_onnx:
        return bundle, {"avg": avg_dimension}
    try:
        total = _measure_dimension(
            bundle.backbone, bundle.state(), ALL_POOLINGS, bundle.transform.image_size
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
    except LookalikeError:
        raise
    except Exception as error:  # raised by the code of an own model
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UsageError(f"--backbone {backbone} fails on a blank image ({reason})") from error
