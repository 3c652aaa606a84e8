"""Tests of ONNX files as backbones: their vectors, their transform, and their external data."""

from __future__ import annotations

import contextlib
import hashlib
import os

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from retrieval.core.errors import InputError, UsageError
from retrieval.core.records import Transform
from retrieval.models.bundle import read_bundle, write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.onnx_file import inline_external_data, read_onnx
from retrieval.models.registry import find_provider
from retrieval.models.resolve import check_runnable, resolve_all_poolings, resolve_bundle
from retrieval.storage.local import open_folder
from tests.retrieval.models import onnx_writer as onnx
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHT = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resolve(path, **changes):
    defaults = {
        "weights": None, "bundle": None, "pooling": "avg", "normalize": False, "image_size": None,
        "resize": None, "seed": 0,
    }  # fmt: skip
    return resolve_bundle(backbone=f"onnx:{path}", **{**defaults, **changes})


def plan(batch=2):
    return EnginePlan("openvino", "fp32", "cpu", batch)


def pictures(count=3, side=32):
    import torch

    pixels = np.random.default_rng(1).integers(0, 256, (count, 3, side, side), np.uint8)
    return pixels, [torch.from_numpy(picture) for picture in pixels]


def expected_vectors(pixels, mean=MEAN, std=STD):
    """Return the vectors of `small_network` with WEIGHT, computed by numpy."""
    channels = [np.reshape(values, (3, 1, 1)) for values in (mean, std)]
    images = (pixels / 255 - channels[0]) / channels[1]
    patches = sliding_window_view(images, (4, 4), axis=(2, 3))[:, :, ::4, ::4]
    return np.einsum("nchwij,fcij->nfhw", patches, WEIGHT).clip(0).mean((2, 3))


@pytest.fixture
def write(tmp_path):
    def write(data, name="net.onnx"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["vectors", "map", "map,vectors"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_vectors_equal_the_network_in_numpy(write, output, batch):
    pixels, images = pictures(batch)
    bundle = resolve(write(onnx.small_network(WEIGHT, output=output)))
    assert bundle.dimension == 5
    embedded = Embedder(bundle, plan(batch)).embed(images)
    np.testing.assert_allclose(embedded, expected_vectors(pixels), rtol=1e-4, atol=1e-5)


def test_transform_comes_from_options_with_defaults(write):
    fixed = write(onnx.small_network(WEIGHT))
    any_size = write(onnx.small_network(WEIGHT, shape=["n", 3, "h", "w"]), "any.onnx")
    assert resolve(fixed).transform == Transform("crop", 37, 32, "bilinear", MEAN, STD)
    assert resolve(any_size).transform.image_size == 224
    options = {"image_size": 64, "resize": "pad", "mean": "0.5,0.4,0.3", "std": "0.2",
               "interpolation": "bicubic"}  # fmt: skip
    bundle = resolve(any_size, **options)
    assert bundle.transform == Transform("pad", 73, 64, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    pixels, images = pictures(2, side=64)
    np.testing.assert_allclose(
        Embedder(bundle, plan()).embed(images),
        expected_vectors(pixels, bundle.transform.mean, bundle.transform.std), rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_channels_last_input_is_transposed(write):
    nodes = [
        onnx.node("Transpose", ["images"], "first", onnx.integers("perm", [0, 3, 1, 2])),
        onnx.node("Conv", ["first", "weight"], "map", onnx.integers("strides", [4, 4])),
        onnx.node("Relu", ["map"], "positive"),
        onnx.node("GlobalAveragePool", ["positive"], "pooled"),
        onnx.node("Flatten", ["pooled"], "vectors"),
    ]
    data = onnx.model(
        nodes, [onnx.tensor("weight", WEIGHT)], [onnx.value("images", ["n", 32, 32, 3])],
        [onnx.value("vectors", ["n", 5])],
    )  # fmt: skip
    pixels, images = pictures(2)
    np.testing.assert_allclose(
        Embedder(resolve(write(data)), plan()).embed(images), expected_vectors(pixels),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_network_for_single_images_is_refused_in_batches(write):
    """The shape of the last step is a constant for one image."""
    shape = onnx.tensor("shape", np.array([1, -1]))
    nodes = [
        onnx.node("Conv", ["images", "weight"], "map", onnx.integers("strides", [4, 4])),
        onnx.node("GlobalAveragePool", ["map"], "pooled"),
        onnx.node("Reshape", ["pooled", "shape"], "vectors"),
    ]
    data = onnx.model(
        nodes, [onnx.tensor("weight", WEIGHT), shape], [onnx.value("images", [1, 3, 32, 32])],
        [onnx.value("vectors", [1, 5])],
    )  # fmt: skip
    bundle = resolve(write(data))
    assert Embedder(bundle, plan(1)).embed(pictures(1)[1]).shape == (1, 5)
    with pytest.raises(Exception, match="use --batch-size 1"):
        Embedder(bundle, plan(2))


# --- the bundle -----------------------------------------------------------------------------------


def test_output_holds_the_file_and_needs_it_no_more(write, tmp_path):
    path = write(onnx.small_network(WEIGHT))
    bundle = resolve(path)
    target = open_folder(str(tmp_path / "out"))
    write_bundle(target, bundle)
    stored = read_bundle(target)
    assert stored == bundle
    assert stored.backbone == "onnx:net.onnx"
    assert (tmp_path / "out/model/weights.onnx").read_bytes() == path.read_bytes()
    path.unlink()
    check_runnable(stored)
    pixels, images = pictures(2)
    np.testing.assert_allclose(
        Embedder(stored, plan()).embed(images), expected_vectors(pixels), rtol=1e-4, atol=1e-5
    )
    assert resolve("elsewhere.onnx", bundle=str(tmp_path / "out")) == bundle


def test_digest_depends_on_the_file(write):
    first = resolve(write(onnx.small_network(WEIGHT)))
    assert resolve(write(onnx.small_network(WEIGHT * 2))).digest != first.digest
    assert resolve(write(onnx.small_network(WEIGHT))).digest == first.digest


def test_comparison_has_one_pooling(write):
    bundle, dimensions = resolve_all_poolings(
        f"onnx:{write(onnx.small_network(WEIGHT))}", None, image_size=None, resize=None, seed=0
    )
    assert (bundle.pooling, dimensions) == ("avg", {"avg": 5})


@pytest.mark.parametrize("options", [{"weights": "random"}, {"pooling": "gem"}], ids=str)
def test_options_of_other_networks_are_refused(write, options):
    with pytest.raises(UsageError, match="omit --weights and --pooling"):
        resolve(write(onnx.small_network(WEIGHT)), **options)


def test_training_is_refused(write):
    with pytest.raises(UsageError, match="no network of torch, which training needs"):
        find_provider(f"onnx:{write(onnx.small_network(WEIGHT))}")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["n", 3, 32, 48], "not square images of three channels"),
        (["n", 4, 32, 32], "not square images of three channels"),
        (["n", 3], "export it with one input"),
    ],
)
def test_other_inputs_are_refused(write, shape, message):
    data = onnx.model(
        [onnx.node("Flatten", ["images"], "vectors")], [], [onnx.value("images", shape)],
        [onnx.value("vectors", ["n", "d"])],
    )  # fmt: skip
    with pytest.raises(UsageError, match=message):
        resolve(write(data))


def test_unsupported_image_size_is_refused(write):
    """The convolution needs at least four pixels, and the file states 32."""
    nodes = [
        onnx.node("Flatten", ["images"], "flat"), onnx.node("MatMul", ["flat", "matrix"], "vectors")
    ]  # fmt: skip
    matrix = np.ones((3 * 32 * 32, 2), np.float32)
    data = onnx.model(
        nodes, [onnx.tensor("matrix", matrix)], [onnx.value("images", ["n", 3, 32, 32])],
        [onnx.value("vectors", ["n", 2])],
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"on images of 48 pixels .*; change --image-size"):
        resolve(write(data), image_size=48)


# --- the file and its external data ---------------------------------------------------------------


def external(location="net.data", *, offset=8, length=WEIGHT.nbytes):
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    return onnx.small_network(WEIGHT, external={k: v for k, v in entries.items() if v != "None"})


@pytest.mark.parametrize("location", ["net.data", "parts/net.data"])
@pytest.mark.parametrize("length", [WEIGHT.nbytes, None])
def test_external_data_are_read_from_the_folder_of_the_file(write, tmp_path, location, length):
    (tmp_path / "parts").mkdir()
    (tmp_path / location).write_bytes(b"padding." + WEIGHT.tobytes())
    data = read_onnx(str(write(external(location, length=length))))
    assert location.encode() not in data
    bundle = resolve(write(external(location, length=length)))
    assert hashlib.sha256(bundle.weights).digest() == hashlib.sha256(data).digest()
    pixels, images = pictures(2)
    np.testing.assert_allclose(
        Embedder(bundle, plan()).embed(images), expected_vectors(pixels), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/hostname", "parts/../../secret", "", ".", "a//b", "C:\\secret", "a\\b",
     "file:///etc/hostname", "s3://bucket/key", "link", "linked/secret"],
)  # fmt: skip
def test_external_data_outside_the_folder_are_refused(write, tmp_path, location):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1 << 12))
    os.symlink(tmp_path / "secret", inner / "link")
    os.symlink(tmp_path, inner / "linked")
    path = write(external(location), "inner/net.onnx")
    with pytest.raises(InputError, match=r"not a file in its folder|a link to another folder"):
        resolve(path)


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        (8, WEIGHT.nbytes + 1, "too few or too many for its tensor"),
        (1 << 40, 4, "too few or too many"),
        (0, 1 << 40, "larger than"),
        (-8, WEIGHT.nbytes, "at a negative position"),
        (0, -1, "at a negative position"),
        ("x", 4, "not a usable ONNX file"),
    ],
)
def test_external_data_beyond_the_file_are_refused(write, tmp_path, offset, length, message):
    (tmp_path / "net.data").write_bytes(b"padding." + WEIGHT.tobytes())
    with pytest.raises(InputError, match=message):
        resolve(write(external(offset=offset, length=length)))


def test_missing_external_data_are_named(write):
    with pytest.raises(InputError, match=r"net\.data"):
        resolve(write(external()))


@pytest.mark.parametrize(
    "place",
    [
        lambda t: onnx.message(7, onnx.message(5, t)),  # initializer
        lambda t: onnx.message(7, onnx.message(15, onnx.message(1, t))),  # sparse initializer
        lambda t: onnx.message(7, onnx.message(1, onnx.message(5, onnx.message(5, t)))),  # constant
        lambda t: onnx.message(7, onnx.message(1, onnx.message(5, onnx.message(10, t)))),
        lambda t: onnx.message(
            7, onnx.message(1, onnx.message(5, onnx.message(6, onnx.message(5, t))))
        ),  # branch
        lambda t: onnx.message(
            25, onnx.message(7, onnx.message(5, onnx.message(5, t)))
        ),  # function
        lambda t: onnx.message(20, onnx.message(1, onnx.message(5, t))),  # training
    ],
)
def test_external_data_are_resolved_wherever_a_tensor_may_be(place):
    requests = []

    def read(*part):
        requests.append(part)
        return b"abcd"

    entries = {"location": "data", "offset": "2", "length": "4"}
    array = np.zeros(1, np.float32)
    inlined = inline_external_data(place(onnx.tensor("w", array, entries)), read)
    assert requests == [("data", 2, 4)]
    assert inlined == place(
        onnx.tensor("w", array, {}).removesuffix(onnx.number(14, 1)) + onnx.message(9, b"abcd")
    )


@pytest.mark.parametrize(
    "fields",
    [
        onnx.number(14, 1),
        onnx.message(13, onnx.message(1, "location"), onnx.message(2, "data")),
        onnx.message(14, b"\x01"),
    ],
    ids=["location without entries", "entries without location", "location of another type"],
)
def test_reference_that_parsers_could_merge_is_refused(fields):
    """A parser merges repeated fields, so that two halves of a reference make a whole one."""
    data = onnx.message(7, onnx.message(5, fields))
    with pytest.raises(ValueError, match="refers to external data incompletely"):
        inline_external_data(data, lambda *_: b"")


def test_one_file_named_repeatedly_stays_within_the_limit():
    entries = {"location": "data", "length": str(1 << 30)}
    part = onnx.message(5, onnx.tensor("w", np.zeros(1, np.float32), entries))
    data = onnx.message(7, part, part, part)
    reads = []
    with pytest.raises(ValueError, match="with its external data it is larger than"):
        inline_external_data(data, lambda *request: reads.append(request) or _Large())
    assert len(reads) <= 1


class _Large(bytes):
    """Bytes that state a length of 2^30 without memory for them."""

    def __len__(self) -> int:
        return 1 << 30


@pytest.mark.parametrize(
    "data",
    [b"", b"not an ONNX file", b"\xff" * 100, onnx.message(7, b"\x0a\xff\x01"),
     onnx.message(7) * 3 + b"\x07", b"\x3a" + onnx.varint(1 << 40)],
)  # fmt: skip
def test_damaged_file_is_refused(write, data):
    with pytest.raises((InputError, UsageError), match=r"not a usable ONNX file|cannot be read"):
        resolve(write(data))


def test_deeply_nested_messages_are_refused():
    data = b""
    for _ in range(200):
        data = onnx.message(1, onnx.message(5, onnx.message(6, data)))
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        inline_external_data(onnx.message(7, data), lambda *_: b"")


@pytest.mark.parametrize("damage", range(20))
def test_damaged_bytes_raise_documented_errors(write, damage):
    random = np.random.default_rng(damage)
    data = bytearray(onnx.small_network(WEIGHT))
    for position in random.integers(0, len(data), 3):
        data[position] = random.integers(256)
    with contextlib.suppress(InputError, UsageError):
        resolve(write(bytes(data)))


def test_missing_or_large_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read .No such file"):
        resolve(tmp_path / "missing.onnx")
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(InputError, match="is larger than 2147483647 bytes"):
        resolve(tmp_path / "large.onnx")


def test_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InputError, match="named pipe"):
        resolve(tmp_path / "pipe.onnx")
