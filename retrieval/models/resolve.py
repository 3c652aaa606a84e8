"""Resolution of model options (a name, a file, `random` or a bundle) to a `Bundle`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from retrieval.core.errors import InputError, LookalikeError, UsageError
from retrieval.core.schemas import Augmentation, Pooling, Resize
from retrieval.models import registry
from retrieval.models.bundle import ONNX, Bundle, load_weights, read_bundle, serialize_state
from retrieval.models.engine_plan import openvino_installed
from retrieval.models.onnx_file import read_onnx
from retrieval.models.openvino import ConversionFailed
from retrieval.models.pooling import ALL_POOLINGS, POOLINGS
from retrieval.models.providers.base import FeatureExtractor
from retrieval.models.recipes import PLAIN, Recipe, is_rectified
from retrieval.models.transforms import Interpolation, override_transform, standard_transform
from retrieval.storage.input_files import read_uri
from retrieval.storage.local import open_folder

RANDOM = "random"

Output = TypeVar("Output")


def resolve_bundle(
    *,
    backbone: str,
    weights: str | None,
    bundle: str | None,
    pooling: Pooling | None,
    normalize: bool,
    image_size: int | None,
    resize: Resize | None,
    seed: int,
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
    python_path: str | None = None,
    augment_inference: Augmentation | None = None,
    recipe: Recipe = PLAIN,
) -> Bundle:
    """Build the bundle that the model options describe; the driver does this once.

    `pooling` and `resize` None are those of the recipe where they suit the network
    (`choose_pooling`, `choose_resize`).

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
        is_added = augment_inference == "flip" and stored.projection is None
        return stored.with_augmentation(augment_inference) if is_added else stored
    if backbone.startswith(ONNX):
        if weights is not None or pooling not in (None, "avg"):
            raise UsageError(
                f"--backbone {backbone} holds its weights and returns vectors; omit --weights and "
                "--pooling"
            )
        overrides["resize"] = resize or recipe.resize
        made = _make_onnx_bundle(backbone, image_size, overrides, normalize=normalize)
        return made.with_augmentation(augment_inference)
    source = resolve_source(
        backbone, weights, image_size=image_size, resize=resize, seed=seed,
        python_path=python_path, recipe=recipe,
    )  # fmt: skip
    transform = override_transform(source.transform, **overrides)
    source = dataclasses.replace(source, transform=transform)
    made = make_bundle(source, pooling, normalize, recipe)
    return made.with_augmentation(augment_inference)


def choose_resize(backbone: str, recipe: Recipe) -> Resize | None:
    """Return the resize of a recipe; None, the author's, for a model of the user's own."""
    return None if registry.find_own_model(backbone) else recipe.resize


def choose_pooling(source: registry.WeightSource, recipe: Recipe) -> Pooling:
    """Return the pooling of a recipe if the network ends in a map of rectified features.

    Otherwise return avg, the output that the network was trained for.
    """
    state = registry.fit_state(source.state, source.backbone)
    network = registry.build_extractor(source.backbone, state, recipe.pooling)
    return _suitable_pooling(source.backbone, network, source.transform.image_size)


def _suitable_pooling(backbone: str, network: FeatureExtractor, side: int) -> Pooling:
    """Return the pooling of a network if it suits the features of an image of noise, else avg."""
    if network.pooling == "avg":
        return "avg"
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = _run_network(backbone, network.feature_map, noise)
    return network.pooling if is_rectified(features) else "avg"


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
    recipe: Recipe = PLAIN,
) -> registry.WeightSource:
    """Return parameters with their transform: pretrained ones, those of a file, or random ones.

    `resize` None is that of the recipe, see `choose_resize`.
    """
    registry.add_named_model(backbone, python_path)
    resize = resize or choose_resize(backbone, recipe)
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


def make_bundle(
    source: registry.WeightSource, pooling: Pooling | None, normalize: bool, recipe: Recipe = PLAIN
) -> Bundle:
    """Build a bundle from parameters; its dimension is measured by embedding one blank image.

    `pooling` None is that of the recipe where it suits the network.
    """
    name, side = source.backbone, source.transform.image_size
    state = registry.fit_state(source.state, name)
    network = registry.build_extractor(name, state, pooling or recipe.pooling)
    if pooling is None:
        pooling = network.pooling = _suitable_pooling(name, network, side)
    dimension = _measure_dimension(name, network, side)
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
    augment_inference: Augmentation | None = None,
    recipe: Recipe = PLAIN,
) -> tuple[Bundle, dict[str, int]]:
    """Build a bundle whose vectors are those of all poolings, concatenated and not normalised.

    Returns the bundle and the dimension of each pooling, in the order of concatenation; that of avg
    (the input of the classifier) may differ from that of the feature map. A network without a
    feature map has avg only.
    """
    bundle = resolve_bundle(
        backbone=backbone, weights=weights, bundle=None, pooling="avg", normalize=False,
        image_size=image_size, resize=resize, seed=seed, python_path=python_path,
        augment_inference=augment_inference, recipe=recipe,
    )  # fmt: skip
    avg_dimension = bundle.dimension
    if bundle.is_onnx:
        return bundle, {"avg": avg_dimension}
    try:
        network = registry.build_extractor(bundle.backbone, bundle.state(), ALL_POOLINGS)
        total = _measure_dimension(bundle.backbone, network, bundle.transform.image_size)
    except UsageError:
        return bundle, {"avg": avg_dimension}
    map_poolings = [name for name in POOLINGS if name != "avg"]
    widths = {"avg": avg_dimension}
    widths |= dict.fromkeys(map_poolings, (total - avg_dimension) // len(map_poolings))
    ordered = {name: widths[name] for name in POOLINGS}
    return dataclasses.replace(bundle, pooling=ALL_POOLINGS, dimension=total), ordered


def _measure_dimension(backbone: str, network: FeatureExtractor, side: int) -> int:
    vectors: torch.Tensor = _run_network(backbone, network, torch.zeros(1, 3, side, side))
    return int(vectors.shape[1])


def _run_network(
    backbone: str, function: Callable[[torch.Tensor], Output], image: torch.Tensor
) -> Output:
    """Return what a function of a network returns for one image, (1, 3, side, side)."""
    try:
        with torch.inference_mode():
            return function(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"--backbone {backbone} does not take images of {image.shape[-1]} pixels; change "
            "--image-size"
        ) from error
    except LookalikeError:
        raise
    except Exception as error:  # raised by the code of an own model
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UsageError(f"--backbone {backbone} fails on an image ({reason})") from error
