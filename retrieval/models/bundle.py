"""A model as data: everything that turns bytes into a vector, with a digest.

`model/bundle.json` names backbone, pooling, normalisation and transform and the checksums of
`model/weights.safetensors` and, where there is one, `model/projection.safetensors`. Nothing is
unpickled. The digest of a bundle is the SHA-256 of its bundle.json: two vectors may be compared if
their bundles have the same one.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from retrieval.core.errors import Damaged, InputError, Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import FORMAT, Pooling
from retrieval.models.pca import Projection
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.local import Folder

State = dict[str, torch.Tensor]

BUNDLE, WEIGHTS, PROJECTION = "bundle.json", "weights.safetensors", "projection.safetensors"
MODEL = "model"


@dataclass(frozen=True)
class Bundle:
    """A backbone with its parameters, and what happens before and after it."""

    backbone: str
    pooling: Pooling
    normalize: bool
    transform: Transform
    dimension: int  # of the vectors that come out
    weights: bytes  # safetensors, without the classifier
    projection_bytes: bytes | None = None  # safetensors

    @property
    def files(self) -> dict[str, bytes]:
        """Give the files that bundle.json vouches for."""
        files = {WEIGHTS: self.weights}
        if self.projection_bytes is not None:
            files[PROJECTION] = self.projection_bytes
        return files

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
                "files": {n: hashlib.sha256(data).hexdigest() for n, data in self.files.items()},
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

    @cached_property
    def projection(self) -> Projection | None:
        """Give the projection, if there is one."""
        data = self.projection_bytes
        return None if data is None else Projection.from_bytes(data)

    def with_projection(self, projection: Projection) -> Bundle:
        """Give the bundle whose vectors pass through a projection of this one's vectors."""
        if self.projection_bytes is not None:
            raise UsageError("--pca: the bundle has a projection already; leave --pca out")
        numbers = projection.axes.shape
        if numbers[1] != self.dimension:
            raise Mismatch(
                f"a projection of vectors of {numbers[1]} numbers does not fit a bundle that "
                f"gives {self.dimension}; fit it on vectors of that bundle"
            )
        return replace(self, dimension=numbers[0], projection_bytes=projection.to_bytes())

    def without_projection(self) -> Bundle:
        """Give the bundle that the projection was fitted for."""
        if self.projection is None:
            return self
        return replace(self, dimension=len(self.projection.mean), projection_bytes=None)


def pack(state: State) -> bytes:
    """Write parameters as safetensors; the same parameters give the same bytes."""
    data: bytes = save_safetensors({key: state[key].contiguous() for key in sorted(state)})
    return data


def write_bundle(output: Folder, bundle: Bundle) -> None:
    """Put a bundle into the `model/` of an output; what is there already is kept."""
    folder = output.child(MODEL)
    for name, data in bundle.files.items():
        folder.put_new(name, data)
    folder.put_new(BUNDLE, bundle.json)


def read_bundle(place: Folder) -> Bundle:
    """Read a bundle from an output (its `model/`) or from the folder that holds bundle.json."""
    try:
        folder = place if place.exists(BUNDLE) else place.child(MODEL)
        data, weights = folder.read(BUNDLE), folder.read(WEIGHTS)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_bundle(place, WEIGHTS) from None
    values = read_json(data)
    if values is None:
        raise Damaged(f"{folder.uri(BUNDLE)} was altered; get the bundle again")
    if values["format"] != FORMAT:
        raise Mismatch(
            f"{folder.uri(BUNDLE)} has format {values['format']}, this version reads {FORMAT}; "
            "make it again, or use the version that made it"
        )
    files = {WEIGHTS: weights}
    if PROJECTION in values["files"]:
        try:
            files[PROJECTION] = folder.read(PROJECTION)
        except FileNotFoundError:
            raise _no_bundle(place, PROJECTION) from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != values["files"][name]:
            raise Damaged(f"{folder.uri(name)} was altered; get the bundle again")
    return Bundle(
        values["backbone"],
        values["pooling"],
        values["normalize"],
        Transform.from_json(values["transform"]),
        values["dimension"],
        weights,
        files.get(PROJECTION),
    )


def _no_bundle(place: Folder, file: str) -> InputError:
    return InputError(
        f"{place.uri()} holds no bundle (model/bundle.json and {file}); "
        "name what `lookalike train` or `embed` wrote"
    )


_HOLDERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep the state dict of the network."""


def load_weights(data: bytes, name: str) -> State:
    """Read a state dict from the bytes of a .safetensors or .pth file; no code is run.

    A dict that holds the state dict under one of `_HOLDERS` is understood.
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
    for _ in _HOLDERS:  # a checkpoint may hold one in the other
        for key in _HOLDERS:
            if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
                loaded = loaded[key]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(value, torch.Tensor) for value in loaded.values())
    ):
        raise InputError(f"--weights {name} holds no state dict of tensors")
    return dict(loaded)
