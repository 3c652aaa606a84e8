"""A bundle is data: it comes back as it was, is found altered, and never runs code."""

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
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, operations

TRANSFORM = Transform("pad", 256, 224, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def state_of(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator)
    return {"a.weight": weight, "a.count": torch.tensor(7), "b.bias": weight.t()}


def bundle_of(**changes: object) -> Bundle:
    plain = Bundle("resnet18", "gem", True, TRANSFORM, 512, serialize_state(state_of()))
    return dataclasses.replace(plain, **changes)


def projection_of(seed: int = 0, dimensions: int = 3, numbers: int = 512) -> Projection:
    axes = np.random.default_rng(seed).normal(size=(dimensions, numbers)).astype(np.float32)
    return Projection(axes.mean(0), axes)


def projected(**changes: object) -> Bundle:
    return bundle_of(**changes).with_projection(projection_of())


@pytest.fixture
def folder(tmp_path) -> Folder:
    return open_folder(str(tmp_path / "output"))


def test_a_bundle_comes_back_as_it_was(folder):
    write_bundle(folder, bundle_of())
    read = read_bundle(folder)
    assert read == bundle_of()
    assert read.digest == bundle_of().digest
    state = read.state()
    assert state.keys() == state_of().keys()
    assert all(torch.equal(state[key], value) for key, value in state_of().items())


def test_a_bundle_is_read_from_the_folder_that_holds_it_too(folder):
    write_bundle(folder, bundle_of())
    assert read_bundle(folder.child(MODEL)) == bundle_of()


def test_the_same_parameters_are_the_same_bytes_in_whatever_order_and_layout():
    state = state_of()
    again = {key: state[key].clone() for key in reversed(state)}
    again["b.bias"] = again["b.bias"].contiguous()
    assert serialize_state(again) == serialize_state(state)
    assert serialize_state(state_of(seed=1)) != serialize_state(state)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet34"},
        {"pooling": "avg"},
        {"normalize": False},
        {"dimension": 2048},
        {"weights": serialize_state(state_of(seed=1))},
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
def test_whatever_changes_a_vector_changes_the_digest(change):
    assert bundle_of(**change).digest != bundle_of().digest


@pytest.mark.parametrize("name", [BUNDLE, WEIGHTS])
def test_an_altered_byte_is_found(folder, name):
    write_bundle(folder, bundle_of())
    path = f"{MODEL}/{name}"
    data = bytearray(folder.read(path))
    data[len(data) // 2] ^= 1
    folder.put(path, bytes(data))
    with pytest.raises(Damaged, match=f"{name} was altered"):
        read_bundle(folder)


def test_weights_of_another_bundle_are_found(folder):
    write_bundle(folder, bundle_of())
    folder.put(f"{MODEL}/{WEIGHTS}", serialize_state(state_of(seed=1)))
    with pytest.raises(Damaged, match=f"{WEIGHTS} was altered"):
        read_bundle(folder)


def test_another_format_is_refused(folder):
    write_bundle(folder, bundle_of())
    values = parse_checksummed_json(bundle_of().json)
    folder.put(f"{MODEL}/{BUNDLE}", checksummed_json({**values, "format": 2}))
    with pytest.raises(Mismatch, match="has format 2, but this version reads format 1"):
        read_bundle(folder)


@pytest.mark.parametrize("missing", [(BUNDLE,), (WEIGHTS,), (BUNDLE, WEIGHTS)])
def test_where_there_is_no_bundle_it_says_what_writes_one(folder, missing):
    write_bundle(folder, bundle_of())
    for name in missing:
        folder.delete(f"{MODEL}/{name}")
    with pytest.raises(
        InputError, match=r"holds no bundle .* `lookalike train` or `lookalike embed`"
    ):
        read_bundle(folder)


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match="holds no bundle"):
        read_bundle(open_folder(str(tmp_path / "weights.pth")))


def test_a_bundle_that_is_there_is_kept(folder):
    write_bundle(folder, bundle_of())
    write_bundle(folder, bundle_of(pooling="max"))
    assert read_bundle(folder) == bundle_of()


def test_bundle_json_can_be_read_by_eye():
    """Whoever opens it sees what made the vectors; the digest is that of these bytes."""
    values = json.loads(bundle_of().json)
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


# --- with a projection --------------------------------------------------------------------------


def test_a_projection_comes_back_with_its_bundle(folder):
    write_bundle(folder, projected())
    read = read_bundle(folder)
    assert read == projected()
    assert read.digest == projected().digest
    assert read.dimension == 3
    np.testing.assert_array_equal(read.projection.mean, projection_of().mean)
    np.testing.assert_array_equal(read.projection.axes, projection_of().axes)
    assert list(parse_checksummed_json(read.json)["files"]) == [PROJECTION, WEIGHTS]


def test_without_one_a_bundle_is_what_it_was_before_there_were_any(folder):
    assert bundle_of(weights=b"weights").digest == (
        "7dbd165120465bdcb08754d89f6a12a43604576adc58ead25a978f1bd76748a5"
    )
    write_bundle(folder, bundle_of())
    assert sorted(e.path for e in folder.child(MODEL).entries()) == [BUNDLE, WEIGHTS]
    assert read_bundle(folder).projection is None


def test_another_projection_is_another_digest():
    other = bundle_of().with_projection(projection_of(seed=1))
    digests = {made.digest for made in (bundle_of(), bundle_of(dimension=3), projected(), other)}
    assert len(digests) == 4


def test_the_bundle_that_it_was_fitted_for_stays_as_it_was():
    plain = bundle_of()
    made = plain.with_projection(projection_of())
    assert plain == bundle_of()
    assert made.weights == plain.weights
    assert dataclasses.replace(made, dimension=512, projection_bytes=None) == plain


def test_one_projection_a_bundle():
    with pytest.raises(UsageError, match=r"--pca: the bundle has a projection .*leave --pca out"):
        projected().with_projection(projection_of(numbers=3))


def test_a_projection_of_other_vectors_is_refused():
    with pytest.raises(Mismatch, match=r"vectors of 7 numbers does not fit .* gives 512; fit it"):
        bundle_of().with_projection(projection_of(numbers=7))


@pytest.mark.parametrize("place", [0, 100, -1])
def test_an_altered_projection_is_found(folder, place):
    write_bundle(folder, projected())
    path = f"{MODEL}/{PROJECTION}"
    data = bytearray(folder.read(path))
    data[place] ^= 1
    folder.put(path, bytes(data))
    with pytest.raises(Damaged, match=f"{PROJECTION} was altered") as caught:
        read_bundle(folder)
    assert caught.value.exit_code == 7


def test_the_projection_of_another_bundle_is_found(folder):
    write_bundle(folder, projected())
    folder.put(f"{MODEL}/{PROJECTION}", projection_of(seed=1).to_bytes())
    with pytest.raises(Damaged, match=f"{PROJECTION} was altered"):
        read_bundle(folder)


def test_a_missing_projection_is_as_missing_weights(folder):
    write_bundle(folder, projected())
    folder.delete(f"{MODEL}/{PROJECTION}")
    with pytest.raises(
        InputError, match=r"holds no bundle \(.* and projection\.safetensors\); name"
    ):
        read_bundle(folder)


def test_killed_at_any_moment_it_is_whole_or_none_and_writing_again_completes_it(tmp_path):
    def kill(*moment: object) -> None:
        raise Killed

    moments = operations(lambda: write_bundle(open_folder(str(tmp_path / "whole")), projected()))
    assert len(moments) >= 6  # before and after each of three files
    for number in range(len(moments)):
        folder = open_folder(str(tmp_path / str(number)))
        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            write_bundle(folder, projected())
        if folder.exists(f"{MODEL}/{BUNDLE}"):
            assert read_bundle(folder) == projected()
        write_bundle(folder, projected())
        assert read_bundle(folder) == projected()


@pytest.mark.parametrize("kind", ["bundle", "store", "index"])
def test_every_output_that_holds_a_bundle_may_hold_its_projection(folder, kind):
    """Finished or not, verify takes it as the output's own and finds it altered."""
    path = f"{MODEL}/{PROJECTION}"
    counts = {"store": {"segments": 0}, "index": {"shards": 0}}.get(kind, {})
    transaction.claim_output(folder, kind, {})
    write_bundle(folder, projected())
    for state in ("unfinished", "finished"):
        (verdict,) = verify(folder)
        assert (verdict.state, verdict.problems) == (state, ())
        kept = folder.read(path)
        folder.put(path, kept[:-1] + bytes([kept[-1] ^ 1]))
        (verdict,) = verify(folder)
        assert verdict.state == "damaged"
        assert verdict.problems[0].startswith(f"{folder.uri(path)} was altered")
        if state == "unfinished":
            with pytest.raises(Damaged, match=f"{PROJECTION} was altered"):
                transaction.finish_output(folder, kind, counts)
        folder.put(path, kept)
        transaction.finish_output(folder, kind, counts)


# --- weights from elsewhere ---------------------------------------------------------------------


def pth(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def plain(state: State) -> State:
    return {key: value.contiguous() for key, value in state.items()}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.safetensors", save_safetensors(plain(state_of()))),
        ("W.SafeTensors", save_safetensors(plain(state_of()))),
        ("w.pth", pth(state_of())),
        ("w.pt", pth({"state_dict": state_of(), "epoch": 3})),
        ("w.bin", pth({"model": state_of(), "optimizer": {}})),
        ("w.ckpt", pth({"state_dict": {"model": state_of()}})),
        ("w.pt", pth({"model_state_dict": state_of(), "epoch": 3})),
        ("w.pt", pth({"model": {"state_dict": state_of()}})),
    ],
)
def test_state_dicts_are_understood_as_programs_write_them(name, data):
    state = load_weights(data, name)
    assert state.keys() == state_of().keys()
    assert all(torch.equal(state[key], value) for key, value in state_of().items())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"mkdir {self.path}",)


@pytest.mark.parametrize("how", ["zip", "pickle"])
def test_code_in_weights_is_refused_and_does_not_run(tmp_path, how):
    mark = tmp_path / "ran"
    value = {**state_of(), "bomb": Bomb(str(mark))}
    data = pth(value) if how == "zip" else pickle.dumps({"bomb": Bomb(str(mark))})
    with pytest.raises(InputError, match=r"w\.pth is neither .* without running code"):
        load_weights(data, "w.pth")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(str(mark))))  # it would have
    assert mark.exists()


@pytest.mark.parametrize("data", [b"", b"GIF89a", pth(state_of())[:-100]])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_file_of_weights_is_refused(name, data):
    with pytest.raises(InputError, match="is neither safetensors nor a state dict"):
        load_weights(data, name)


@pytest.mark.parametrize("value", [{}, [torch.zeros(1)], {"a": 1}, {"state_dict": {}}, 3])
def test_what_is_no_state_dict_is_refused(value):
    with pytest.raises(InputError, match=r"w\.pth holds no state dict of tensors"):
        load_weights(pth(value), "w.pth")
