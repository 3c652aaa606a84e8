"""Model bundles: everything that turns image bytes into a vector, stored with a digest.

`model/bundle.json` names backbone, pooling, normalisation and transform and the checksums of
`model/weights.safetensors` (of an ONNX network `model/weights.onnx`) and, where there is one,
`model/projection.safetensors`. Nothing is unpickled, and no code is stored: of a user's own model a
bundle records the name, version and digest of the code. The digest of a bundle is the SHA-256 of
its bundle.json; vectors are comparable only if their bundles have the same digest.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from retrieval.core.errors import Damaged, InputError, Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.core.schemas import Augmentation, Pooling
from retrieval.models.own_model import ModelCode
from retrieval.models.pca import Projection
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder

State = dict[str, torch.Tensor]

BUNDLE_FORMAT = 1
"""Version of bundle.json; a bundle of another version cannot be read."""

BUNDLE, WEIGHTS, PROJECTION = "bundle.json", "weights.safetensors", "projection.safetensors"
ONNX, ONNX_WEIGHTS = "onnx:", "weights.onnx"
"""Prefix of the backbone `onnx:FILE`, of which a bundle records the file name only."""

MODEL = "model"


@dataclass(frozen=True)
class Bundle:
    """A backbone with its parameters, transform, pooling and optional projection."""

    backbone: str
    pooling: Pooling
    normalize: bool
    transform: Transform
    dimension: int  # of the vectors, after the projection
    weights: bytes  # safetensors, without the classifier; or an ONNX file
    projection_bytes: bytes | None = None  # safetensors
    code: ModelCode | None = None  # of an own model, whose code the bundle does not hold
    augment_inference: Augmentation = "none"  # flip: the mean of an image and its mirror image

    @property
    def is_onnx(self) -> bool:
        """Return whether the network is that of an ONNX file, which only OpenVINO runs."""
        return self.backbone.startswith(ONNX)

    @property
    def files(self) -> dict[str, bytes]:
        """Return the files, by name, whose checksums bundle.json records."""
        files = {ONNX_WEIGHTS if self.is_onnx else WEIGHTS: self.weights}
        if self.projection_bytes is not None:
            files[PROJECTION] = self.projection_bytes
        return files

    @cached_property
    def json(self) -> bytes:
        """Return the bytes of bundle.json."""
        values: dict[str, Any] = {
            "format": BUNDLE_FORMAT,
            "backbone": self.backbone,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "transform": self.transform.to_json(),
            "dimension": self.dimension,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()},
        }
        if self.code is not None:
            values["code"] = asdict(self.code)
        if self.augment_inference != "none":
            values["augment_inference"] = self.augment_inference
        return checksummed_json(values)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of bundle.json, in hex."""
        return hashlib.sha256(self.json).hexdigest()

    def state(self) -> State:
        """Return the state dict of the backbone, without its classifier."""
        state: State = load_safetensors(self.weights)
        return state

    @cached_property
    def projection(self) -> Projection | None:
        """Return the projection, or None if the bundle has none."""
        data = self.projection_bytes
        return None if data is None else Projection.from_bytes(data)

    def with_projection(self, projection: Projection) -> Bundle:
        """Return a copy of the bundle that also applies `projection` to its vectors.

        Raises UsageError if the bundle has a projection already, Mismatch if dimensions differ.
        """
        if self.projection_bytes is not None:
            raise UsageError("--pca: the bundle has a projection already; leave --pca out")
        output_dimension, input_dimension = projection.axes.shape
        if input_dimension != self.dimension:
            raise Mismatch(
                f"the projection takes vectors of dimension {input_dimension}, but the bundle has "
                f"dimension {self.dimension}; fit the projection on vectors of this bundle"
            )
        return replace(self, dimension=output_dimension, projection_bytes=projection.to_bytes())

    def with_augmentation(self, augmentation: Augmentation | None) -> Bundle:
        """Return a copy of the bundle that augments the images; None changes nothing."""
        return replace(self, augment_inference=augmentation or self.augment_inference)

    def without_projection(self) -> Bundle:
        """Return the bundle without its projection; vectors have the backbone's dimension again."""
        if self.projection is None:
            return self
        return replace(self, dimension=len(self.projection.mean), projection_bytes=None)


def serialize_state(state: State) -> bytes:
    """Serialize parameters as safetensors; equal parameters give equal bytes."""
    data: bytes = save_safetensors({key: state[key].contiguous() for key in sorted(state)})
    return data


def write_bundle(output: Folder, bundle: Bundle) -> None:
    """Write a bundle into the `model/` of an output; existing files are kept."""
    folder = output.child(MODEL)
    for name, data in bundle.files.items():
        folder.put_new(name, data)
    folder.put_new(BUNDLE, bundle.json)


def read_bundle(location: Folder) -> Bundle:
    """Read a bundle from an output (its `model/`) or from the folder that holds bundle.json.

    Raises InputError if there is none, Damaged if a checksum does not match, Mismatch if the format
    version differs.
    """
    try:
        folder = location if location.exists(BUNDLE) else location.child(MODEL)
        data = folder.read(BUNDLE)
    except (FileNotFoundError, NotADirectoryError):
        raise _bundle_missing(location, WEIGHTS) from None
    values = parse_checksummed_json(data)
    if values is None:
        raise Damaged(f"{folder.uri(BUNDLE)} was altered; copy the bundle again")
    if values["format"] != BUNDLE_FORMAT:
        raise Mismatch(
            f"{folder.uri(BUNDLE)} has format {values['format']}, but this version reads format "
            f"{BUNDLE_FORMAT}; write the bundle again, or use the version that wrote it"
        )
    weights_file = ONNX_WEIGHTS if values["backbone"].startswith(ONNX) else WEIGHTS
    files: dict[str, bytes] = {}
    for name in (weights_file, *({PROJECTION} & values["files"].keys())):
        try:
            files[name] = folder.read(name)
        except FileNotFoundError:
            raise _bundle_missing(location, name) from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != values["files"][name]:
            raise Damaged(f"{folder.uri(name)} was altered; copy the bundle again")
    return Bundle(
        values["backbone"],
        values["pooling"],
        values["normalize"],
        Transform.from_json(values["transform"]),
        values["dimension"],
        files[weights_file],
        files.get(PROJECTION),
        ModelCode(**values["code"]) if "code" in values else None,
        values.get("augment_inference", "none"),
    )


def _bundle_missing(location: Folder, file: str) -> InputError:
    return InputError(
        f"{location.uri()} holds no bundle (model/bundle.json and {file}); "
        "name an output of `lookalike train` or `lookalike embed`"
    )


_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs store the state dict of the network."""


def load_weights(data: bytes, name: str) -> State:
    """Read a state dict from the bytes of a .safetensors or .pth file without running code.

    `name` is the file name: its extension selects the format. A checkpoint that nests the state
    dict under one of `_STATE_DICT_KEYS` is accepted. Raises InputError for anything else.
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
    for _ in _STATE_DICT_KEYS:  # checkpoints may nest one in the other
        for key in _STATE_DICT_KEYS:
            if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
                loaded = loaded[key]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(value, torch.Tensor) for value in loaded.values())
    ):
        raise InputError(f"--weights {name} holds no state dict of tensors")
    return dict(loaded)
