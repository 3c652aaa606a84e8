"""Transforms from options and from descriptions, for models that come without one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from retrieval.core.errors import UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Resize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet per channel (R, G, B), for values from 0 to 1."""

DEFAULT_IMAGE_SIZE = 224
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096
Interpolation = Literal["bilinear", "bicubic"]


def standard_transform(image_size: int | None) -> Transform:
    """Return torchvision's usual preset: resize to 256/224 of the size, crop the centre."""
    size = image_size or DEFAULT_IMAGE_SIZE
    return Transform("crop", round(size * 256 / 224), size, "bilinear", *IMAGENET)


def parse_channels(text: str, flag: str) -> tuple[float, float, float]:
    """Parse `R,G,B` of --mean or --std, or one number for all three channels.

    Raises UsageError for anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise UsageError(f"{flag} {text!r}: write three numbers from 0 to 1, such as 0.5,0.5,0.5")
    if flag == "--std" and min(values) <= 0:
        raise UsageError(f"{flag} {text!r}: write numbers greater than 0")
    return values[0], values[1], values[2]


def override_transform(
    transform: Transform,
    *,
    resize: Resize | None = None,
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
) -> Transform:
    """Return a transform with the values of the options that are given.

    Raises UsageError for a `mean` or `std` that is not three numbers.
    """
    changes: dict[str, Any] = {"resize": resize, "interpolation": interpolation}
    changes["mean"] = None if mean is None else parse_channels(mean, "--mean")
    changes["std"] = None if std is None else parse_channels(std, "--std")
    return dataclasses.replace(transform, **{k: v for k, v in changes.items() if v is not None})


def scale_transform(transform: Transform, image_size: int | None) -> Transform:
    """Return a transform for another input size; resize and crop are scaled alike."""
    if image_size is None or image_size == transform.image_size:
        return transform
    shorter = round(image_size * transform.resize_size / transform.image_size)
    return dataclasses.replace(transform, image_size=image_size, resize_size=shorter)


def describe_transform(description: object, owner: str) -> Transform:
    """Return the transform that a model's author describes.

    Args:
        description: A `Transform`; a mapping of its fields, of which only `image_size` is required
            (default: that of `standard_transform`); or a transform preset of torchvision's weights.
        owner: Name of the model, for error messages.

    Raises:
        UsageError: If a field is missing, unknown or out of range.
    """
    if isinstance(description, Transform):
        values = dataclasses.asdict(description)
    elif isinstance(description, Mapping):
        values = dict(description)
    elif all(hasattr(description, name) for name in ("crop_size", "resize_size", "mean", "std")):
        values = _preset_values(description)
    else:
        raise UsageError(
            f"{owner} has no transform: describe it as a mapping, such as "
            '{"image_size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
        )
    fields = [field.name for field in dataclasses.fields(Transform)]
    if unknown := sorted(set(map(str, values)) - set(fields)):
        raise UsageError(
            f"the transform of {owner} has unknown fields {', '.join(unknown)}; write some of "
            f"{', '.join(fields)}"
        )
    size = values.get("image_size")
    if not isinstance(size, int) or not MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE:
        raise UsageError(
            f"the transform of {owner} needs image_size, the input's width and height in pixels, "
            f"from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}"
        )
    transform = dataclasses.replace(
        standard_transform(size), **{k: v for k, v in values.items() if v is not None}
    )
    return _check_values(transform, owner)


def _preset_values(preset: Any) -> dict[str, Any]:
    """Return the fields of a preset of torchvision (`weights.transforms()`)."""
    bicubic = "bicubic" in str(getattr(preset, "interpolation", "")).lower()
    return {
        "image_size": int(preset.crop_size[0]), "resize_size": int(preset.resize_size[0]),
        "interpolation": "bicubic" if bicubic else "bilinear",
        "mean": preset.mean, "std": preset.std,
    }  # fmt: skip


def _check_values(transform: Transform, owner: str) -> Transform:
    """Return a transform with mean and std as tuples; raise UsageError for an invalid value."""
    for name, choices in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
        if getattr(transform, name) not in choices:
            raise UsageError(
                f"the transform of {owner} has {name} {getattr(transform, name)!r}; write one of "
                f"{', '.join(choices)}"
            )
    if not isinstance(transform.resize_size, int) or transform.resize_size < transform.image_size:
        raise UsageError(
            f"the transform of {owner} has resize_size {transform.resize_size!r}; write at least "
            f"image_size, {transform.image_size}"
        )
    mean, std = _as_channels(transform.mean), _as_channels(transform.std)
    if mean is None or std is None or min(std) <= 0:
        raise UsageError(
            f"the transform of {owner} needs mean and std of three channels, for pixel values from "
            "0 to 1; a std is greater than 0"
        )
    return dataclasses.replace(transform, mean=mean, std=std)


def _as_channels(values: Any) -> tuple[float, float, float] | None:
    """Return three finite numbers as a tuple, None for anything else."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        return None
    return numbers[0], numbers[1], numbers[2]
