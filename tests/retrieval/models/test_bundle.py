"""Tests of bundles: round trip, digests, detection of altered files, and safe loading."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from retrieval.core.errors import Damaged, InputError, Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.models.bundle import (
    BUNDLE,
    MODEL,
    PROJECTION,
    WEIGHTS,
    Bundle,
    load_weights,
    read_bundle,
    serialize_state,
    write_bundle,
)
from retrieval.models.pca import Projection
from retrieval.models.registry import State
from retrieval.storage import transaction
from retrieval.storage.checksum import checksummed_json, parse_checksummed_json
from retrieval.storage.local import Folder, open_folder
from retrieval.storage.verify import verify
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, record_operations

TRANSFORM = Transform("pad", 256, 224, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def make_state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator)
    return {"a.weight": weight, "a.count": torch.tensor(7), "b.bias": weight.t()}


def make_bundle(**changes: object) -> Bundle:
    bundle = Bundle("resnet18", "gem", True, TRANSFORM, 512, serialize_state(make_state()))
    return dataclasses.replace(bundle, **changes)


def make_projection(seed: int = 0, dimensions: int = 3, width: int = 512) -> Projection:
    axes = np.random.default_rng(seed).normal(size=(dimensions, width)).astype(np.float32)
    return Projection(axes.mean(0), axes)


def projected_bundle(**changes: object) -> Bundle:
    return make_bundle(**changes).with_projection(make_projection())


@pytest.fixture
def folder(tmp_path) -> Folder:
    return open_folder(str(tmp_path / "output"))


def test_bundle_round_trip(folder):
    write_bundle(folder, make_bundle())
    read = read_bundle(folder)
    assert read == make_bundle()
    assert read.digest == make_bundle().digest
    state = read.state()
    assert state.keys() == make_state().keys()
    assert all(torch.equal(state[key], value) for key, value in make_state().items())


def test_bundle_is_read_from_its_own_folder(folder):
    write_bundle(folder, make_bundle())
    assert read_bundle(folder.child(MODEL)) == make_bundle()


def test_serialized_state_does_not_depend_on_key_order_or_layout():
    state = make_state()
    reordered = {key: state[key].clone() for key in reversed(state)}
    reordered["b.bias"] = reordered["b.bias"].contiguous()
    assert serialize_state(reordered) == serialize_state(state)
    assert serialize_state(make_state(seed=1)) != serialize_state(state)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet34"},
        {"pooling": "avg"},
        {"normalize": False},
        {"dimension": 2048},
        {"weights": serialize_state(make_state(seed=1))},
        *(
            {"transform": dataclasses.replace(TRANSFORM, **other)}
            for other in (
                {"resize": "crop"},
                {"resize_size": 257},
                {"image_size": 225},
                {"interpolation": "bilinear"},
                {"mean": (0.1, 0.2, 0.4)},
                {"std": (0.4, 0.5, 0.7)},
            )
        ),
    ],
    ids=str,
)
def test_digest_changes_with_every_field(change):
    assert make_bundle(**change).digest != make_bundle().digest


@pytest.mark.parametrize("name", [BUNDLE, WEIGHTS])
def test_altered_byte_raises_damaged(folder, name):
    write_bundle(folder, make_bundle())
    path = f"{MODEL}/{name}"
    data = bytearray(folder.read(path))
    data[len(data) // 2] ^= 1
    folder.put(path, bytes(data))
    with pytest.raises(Damaged, match=f"{name} was altered"):
        read_bundle(folder)


def test_weights_of_another_bundle_raise_damaged(folder):
    write_bundle(folder, make_bundle())
    folder.put(f"{MODEL}/{WEIGHTS}", serialize_state(make_state(seed=1)))
    with pytest.raises(Damaged, match=f"{WEIGHTS} was altered"):
        read_bundle(folder)


def test_unsupported_format_raises_mismatch(folder):
    write_bundle(folder, make_bundle())
    values = parse_checksummed_json(make_bundle().json)
    folder.put(f"{MODEL}/{BUNDLE}", checksummed_json({**values, "format": 2}))
    with pytest.raises(Mismatch, match="has format 2, but this version reads format 1"):
        read_bundle(folder)


@pytest.mark.parametrize("missing", [(BUNDLE,), (WEIGHTS,), (BUNDLE, WEIGHTS)])
def test_missing_bundle_files_raise_input_error(folder, missing):
    write_bundle(folder, make_bundle())
    for name in missing:
        folder.delete(f"{MODEL}/{name}")
    with pytest.raises(
        InputError, match=r"holds no bundle .* `lookalike train` or `lookalike embed`"
    ):
        read_bundle(folder)


def test_bundle_path_that_is_a_file_raises_input_error(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match="holds no bundle"):
        read_bundle(open_folder(str(tmp_path / "weights.pth")))


def test_existing_bundle_is_kept(folder):
    write_bundle(folder, make_bundle())
    write_bundle(folder, make_bundle(pooling="max"))
    assert read_bundle(folder) == make_bundle()


def test_bundle_json_contents():
    """The JSON is readable and complete; the digest is the hash of its bytes."""
    values = json.loads(make_bundle().json)
    assert values.pop("seal").startswith("lookalike-sha256:")
    files = values.pop("files")
    assert list(files) == [WEIGHTS]
    assert values == {
        "format": 1,
        "backbone": "resnet18",
        "pooling": "gem",
        "normalize": True,
        "dimension": 512,
        "transform": {
            "resize": "pad",
            "resize_size": 256,
            "image_size": 224,
            "interpolation": "bicubic",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        },
    }


# --- bundles with a projection --------------------------------------------------------------------


def test_bundle_with_projection_round_trip(folder):
    write_bundle(folder, projected_bundle())
    read = read_bundle(folder)
    assert read == projected_bundle()
    assert read.digest == projected_bundle().digest
    assert read.dimension == 3
    np.testing.assert_array_equal(read.projection.mean, make_projection().mean)
    np.testing.assert_array_equal(read.projection.axes, make_projection().axes)
    assert list(parse_checksummed_json(read.json)["files"]) == [PROJECTION, WEIGHTS]


def test_bundle_without_projection_keeps_its_format_and_digest(folder):
    assert make_bundle(weights=b"weights").digest == (
        "7dbd165120465bdcb08754d89f6a12a43604576adc58ead25a978f1bd76748a5"
    )
    write_bundle(folder, make_bundle())
    assert sorted(e.path for e in folder.child(MODEL).entries()) == [BUNDLE, WEIGHTS]
    assert read_bundle(folder).projection is None


def test_digest_changes_with_projection():
    other = make_bundle().with_projection(make_projection(seed=1))
    bundles = (make_bundle(), make_bundle(dimension=3), projected_bundle(), other)
    digests = {bundle.digest for bundle in bundles}
    assert len(digests) == 4


def test_with_projection_leaves_original_bundle_unchanged():
    original = make_bundle()
    with_projection = original.with_projection(make_projection())
    assert original == make_bundle()
    assert with_projection.weights == original.weights
    assert dataclasses.replace(with_projection, dimension=512, projection_bytes=None) == original


def test_second_projection_raises_usage_error():
    with pytest.raises(UsageError, match=r"--pca: the bundle has a projection .*leave --pca out"):
        projected_bundle().with_projection(make_projection(width=3))


def test_projection_of_other_dimension_raises_mismatch():
    with pytest.raises(Mismatch, match="dimension 7, but the bundle has dimension 512"):
        make_bundle().with_projection(make_projection(width=7))


@pytest.mark.parametrize("position", [0, 100, -1])
def test_altered_projection_raises_damaged(folder, position):
    write_bundle(folder, projected_bundle())
    path = f"{MODEL}/{PROJECTION}"
    data = bytearray(folder.read(path))
    data[position] ^= 1
    folder.put(path, bytes(data))
    with pytest.raises(Damaged, match=f"{PROJECTION} was altered") as error:
        read_bundle(folder)
    assert error.value.exit_code == 7


def test_projection_of_another_bundle_raises_damaged(folder):
    write_bundle(folder, projected_bundle())
    folder.put(f"{MODEL}/{PROJECTION}", make_projection(seed=1).to_bytes())
    with pytest.raises(Damaged, match=f"{PROJECTION} was altered"):
        read_bundle(folder)


def test_missing_projection_raises_input_error(folder):
    write_bundle(folder, projected_bundle())
    folder.delete(f"{MODEL}/{PROJECTION}")
    with pytest.raises(
        InputError, match=r"holds no bundle \(.* and projection\.safetensors\); name"
    ):
        read_bundle(folder)


def test_interrupted_write_leaves_complete_or_no_bundle(tmp_path):
    def kill(*operation: object) -> None:
        raise Killed

    operations = record_operations(
        lambda: write_bundle(open_folder(str(tmp_path / "complete")), projected_bundle())
    )
    assert len(operations) >= 6  # before and after each of three files
    for number in range(len(operations)):
        folder = open_folder(str(tmp_path / str(number)))
        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            write_bundle(folder, projected_bundle())
        if folder.exists(f"{MODEL}/{BUNDLE}"):
            assert read_bundle(folder) == projected_bundle()
        write_bundle(folder, projected_bundle())
        assert read_bundle(folder) == projected_bundle()


@pytest.mark.parametrize("kind", ["bundle", "store", "index"])
def test_outputs_with_bundle_verify_its_projection(folder, kind):
    """Verify accepts the projection and detects changes in finished and unfinished outputs."""
    path = f"{MODEL}/{PROJECTION}"
    counts = {"store": {"segments": 0}, "index": {"shards": 0}}.get(kind, {})
    transaction.claim_output(folder, kind, {})
    write_bundle(folder, projected_bundle())
    for state in ("unfinished", "finished"):
        (verdict,) = verify(folder)
        assert (verdict.state, verdict.problems) == (state, ())
        original = folder.read(path)
        folder.put(path, original[:-1] + bytes([original[-1] ^ 1]))
        (verdict,) = verify(folder)
        assert verdict.state == "damaged"
        assert verdict.problems[0].startswith(f"{folder.uri(path)} was altered")
        if state == "unfinished":
            with pytest.raises(Damaged, match=f"{PROJECTION} was altered"):
                transaction.finish_output(folder, kind, counts)
        folder.put(path, original)
        transaction.finish_output(folder, kind, counts)


# --- loading weights files ------------------------------------------------------------------------


def serialize_pth(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def contiguous_state() -> State:
    return {key: value.contiguous() for key, value in make_state().items()}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.safetensors", save_safetensors(contiguous_state())),
        ("W.SafeTensors", save_safetensors(contiguous_state())),
        ("w.pth", serialize_pth(make_state())),
        ("w.pt", serialize_pth({"state_dict": make_state(), "epoch": 3})),
        ("w.bin", serialize_pth({"model": make_state(), "optimizer": {}})),
        ("w.ckpt", serialize_pth({"state_dict": {"model": make_state()}})),
        ("w.pt", serialize_pth({"model_state_dict": make_state(), "epoch": 3})),
        ("w.pt", serialize_pth({"model": {"state_dict": make_state()}})),
    ],
)
def test_state_dicts_of_common_layouts_are_loaded(name, data):
    state = load_weights(data, name)
    assert state.keys() == make_state().keys()
    assert all(torch.equal(state[key], value) for key, value in make_state().items())


class CreatesFolderWhenUnpickled:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"mkdir {self.path}",)


@pytest.mark.parametrize("file_format", ["zip", "pickle"])
def test_code_in_weights_raises_input_error_without_running(tmp_path, file_format):
    marker = tmp_path / "ran"
    value = {**make_state(), "code": CreatesFolderWhenUnpickled(str(marker))}
    data = (
        serialize_pth(value)
        if file_format == "zip"
        else pickle.dumps({"code": CreatesFolderWhenUnpickled(str(marker))})
    )
    with pytest.raises(InputError, match=r"w\.pth is neither .* without running code"):
        load_weights(data, "w.pth")
    assert not marker.exists()
    # confirm that unpickling would run the code
    pickle.loads(pickle.dumps(CreatesFolderWhenUnpickled(str(marker))))
    assert marker.exists()


@pytest.mark.parametrize("data", [b"", b"GIF89a", serialize_pth(make_state())[:-100]])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_invalid_weights_file_raises_input_error(name, data):
    with pytest.raises(InputError, match="is neither safetensors nor a state dict"):
        load_weights(data, name)


@pytest.mark.parametrize("value", [{}, [torch.zeros(1)], {"a": 1}, {"state_dict": {}}, 3])
def test_weights_without_state_dict_raise_input_error(value):
    with pytest.raises(InputError, match=r"w\.pth holds no state dict of tensors"):
        load_weights(serialize_pth(value), "w.pth")
