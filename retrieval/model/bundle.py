"""A model as data: everything that turns bytes into a vector, with a digest.

`model/bundle.json` names backbone, pooling, normalisation and transform and the checksum of
`model/weights.safetensors`. Nothing is unpickled. The digest of a bundle is the SHA-256 of its
bundle.json: two vectors may be compared if their bundles have the same one.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from retrieval.errors import Damaged, InputError, Mismatch
from retrieval.model.backbones import State
from retrieval.storage.files import Folder
from retrieval.storage.seal import read_json, sealed_json
from retrieval.tables import FORMAT, Pooling, Transform

BUNDLE, WEIGHTS = "bundle.json", "weights.safetensors"
MODEL = "model"


@dataclass(frozen=True)
class Bundle:
    """A backbone with its parameters, and what happens before and after it."""

    backbone: str
    pooling: Pooling
    normalize: bool
    transform: Transform
    dimension: int
    weights: bytes  # safetensors, without the classifier

    @cached_property
    def json(self) -> bytes:
        """Give the bytes of bundle.json."""
        return sealed_json(
            {
                "format": FORMAT,
                "backbone": self.backbone,
                "pooling": self.pooling,
                "normalize": self.normalize,
                "transform": self.transform.to_json(),
                "dimension": self.dimension,
                "files": {WEIGHTS: hashlib.sha256(self.weights).hexdigest()},
            }
        )

    @property
    def digest(self) -> str:
        """Give the SHA-256 of bundle.json, hex."""
        return hashlib.sha256(self.json).hexdigest()

    def state(self) -> State:
        """Give the parameters."""
        state: State = load_safetensors(self.weights)
        return state


def pack(state: State) -> bytes:
    """Write parameters as safetensors; the same parameters give the same bytes."""
    data: bytes = save_safetensors({key: state[key].contiguous() for key in sorted(state)})
    return data


def write_bundle(output: Folder, bundle: Bundle) -> None:
    """Put a bundle into the `model/` of an output; what is there already is kept."""
    folder = output.child(MODEL)
    folder.put_new(WEIGHTS, bundle.weights)
    folder.put_new(BUNDLE, bundle.json)


def read_bundle(place: Folder) -> Bundle:
    """Read a bundle from an output (its `model/`) or from the folder that holds bundle.json."""
    try:
        folder = place if place.exists(BUNDLE) else place.child(MODEL)
        data, weights = folder.read(BUNDLE), folder.read(WEIGHTS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{place.uri()} holds no bundle (model/bundle.json and weights.safetensors); "
            "name what `lookalike train` or `embed` wrote"
        ) from None
    values = read_json(data)
    if values is None:
        raise Damaged(f"{folder.uri(BUNDLE)} was altered; get the bundle again")
    if values["format"] != FORMAT:
        raise Mismatch(
            f"{folder.uri(BUNDLE)} has format {values['format']}, this version reads {FORMAT}"
        )
    if hashlib.sha256(weights).hexdigest() != values["files"][WEIGHTS]:
        raise Damaged(f"{folder.uri(WEIGHTS)} was altered; get the bundle again")
    return Bundle(
        values["backbone"],
        values["pooling"],
        values["normalize"],
        Transform.from_json(values["transform"]),
        values["dimension"],
        weights,
    )


def load_weights(data: bytes, name: str) -> State:
    """Read a state dict from the bytes of a .safetensors or .pth file; no code is run.

    A dict that holds the state dict under `state_dict` or `model` is understood.
    """
    loaded: Any
    try:
        if name.lower().endswith(".safetensors"):
            loaded = load_safetensors(data)
        else:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"--weights {name} is neither safetensors nor a state dict that loads without "
            f"running code ({' '.join(str(error).split())[:200]})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(value, torch.Tensor) for value in loaded.values())
    ):
        raise InputError(f"--weights {name} holds no state dict of tensors")
    return dict(loaded)
