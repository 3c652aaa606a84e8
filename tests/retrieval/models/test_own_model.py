"""Tests of the user's own models: in memory, and by a factory that the user names."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.core.errors import Mismatch, UsageError
from retrieval.core.records import Transform
from retrieval.models import registry
from retrieval.models.bundle import read_bundle, write_bundle
from retrieval.models.embedder import Embedder
from retrieval.models.engine_plan import EnginePlan
from retrieval.models.own_model import FactoryModel, Model
from retrieval.models.resolve import check_runnable, resolve_bundle
from retrieval.storage.local import open_folder
from tests.retrieval.sample_vectors import one_thread  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

TORCH = EnginePlan("torch", "fp32", "cpu", 2)
OPENVINO = EnginePlan("openvino", "fp32", "cpu", 2)
DESCRIPTION = {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
HALF, QUARTER = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

SOURCE = """
import torch
from torch import nn

__version__ = "1.2"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Conv2d(3, 8, 4, stride=4)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, images):
        return self.model(images).relu().mean((-2, -1)) * self.scale


def make():
    return Net(), {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
"""


class Net(nn.Module):
    """A network whose keys begin like those of a wrapper, and whose output is chosen."""

    def __init__(self, output: str = "vectors") -> None:
        super().__init__()
        self.output = output
        self.model = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, images):
        features = self.model(images).relu()
        if self.output == "fail":
            raise KeyError("no such layer")
        return {
            "vectors": features.mean((-2, -1)), "map": features, "tokens": features.flatten(2),
            "dictionary": {"embeds": features},
        }[self.output]  # fmt: skip


def resolve(backbone, **changes):
    defaults = {
        "weights": None, "bundle": None, "pooling": "avg", "normalize": False, "image_size": None,
        "resize": None, "seed": 0,
    }  # fmt: skip
    return resolve_bundle(backbone=backbone, **{**defaults, **changes})


def in_memory(name="net", *, output="vectors", version="1", transform=DESCRIPTION):
    torch.manual_seed(3)
    model = Model(Net(output), transform, name=name, version=version)
    registry.add_model(model)
    return model


@pytest.fixture
def new_registry(monkeypatch):
    """Return a function that forgets own models and their modules, as in another process."""

    def replace() -> None:
        for backbone in ("model:net", "model:tied", "python:own_net:make"):
            registry.remove_model(backbone)
        for name in [name for name in sys.modules if name.startswith("own_net")]:
            del sys.modules[name]

    monkeypatch.setattr(sys, "path", list(sys.path))
    replace()
    yield replace
    replace()


@pytest.fixture
def folder(tmp_path, new_registry):
    (tmp_path / "own_net.py").write_text(SOURCE)
    return tmp_path


def images(count=2, side=32):
    generator = torch.Generator().manual_seed(0)
    return list(
        torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    )


# --- models in memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [TORCH, OPENVINO], ids=["torch", "openvino"])
def test_vectors_are_those_of_the_module(new_registry, plan):
    model = in_memory()
    bundle = resolve(model.backbone)
    with torch.inference_mode():
        expected = model.module((torch.stack(images()) / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(Embedder(bundle, plan).embed(images()), expected, atol=1e-5)
    assert bundle.transform == Transform("crop", 37, 32, "bilinear", HALF, QUARTER)


@pytest.mark.parametrize(("pooling", "reduce"), [("avg", torch.mean), ("max", torch.amax)])
def test_feature_map_is_pooled(new_registry, pooling, reduce):
    model = in_memory(output="map")
    with torch.inference_mode():
        expected = reduce(model.module((torch.stack(images()) / 255 - 0.5) / 0.25), (-2, -1))
    embedded = Embedder(resolve(model.backbone, pooling=pooling), TORCH).embed(images())
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "pooling", "message"),
    [
        ("vectors", "gem", "returns vectors, not a map .* --pooling avg only"),
        ("tokens", "avg", r"returns \(1, 8, 64\); return vectors \(n, d\) or a feature map"),
        ("dictionary", "avg", "returns no tensor"),
        ("fail", "avg", "fails on an image .KeyError: 'no such layer'"),
    ],
)
def test_unsuitable_output_is_refused(new_registry, output, pooling, message):
    with pytest.raises(UsageError, match=f"--backbone model:net {message}"):
        resolve(in_memory(output=output).backbone, pooling=pooling)


def test_output_holds_parameters_and_identity_but_no_code(new_registry, tmp_path):
    model = in_memory()
    bundle = resolve(model.backbone)
    target = open_folder(str(tmp_path))
    write_bundle(target, bundle)
    assert read_bundle(target) == bundle
    assert (bundle.code.name, bundle.code.version, len(bundle.code.sha256)) == ("net", "1", 64)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"bundle.json", "weights.safetensors"}


def test_later_changes_of_the_module_do_not_change_the_bundle(new_registry):
    model = in_memory()
    bundle = resolve(model.backbone)
    expected = Embedder(bundle, TORCH).embed(images())
    with torch.no_grad():
        model.module.model.weight.zero_()
    np.testing.assert_array_equal(Embedder(bundle, TORCH).embed(images()), expected)


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"name": "net", "version": "1", "output": "map"}], ids=str
)
def test_digest_depends_on_version_and_parameters(new_registry, change):
    first = resolve(in_memory().backbone)
    second = resolve(in_memory(**{"version": "1", **change}).backbone)
    is_same = change.get("version") == "1"  # the module differs by a value of Python alone
    assert (first.digest == second.digest) == is_same


def test_model_travels_to_workers_by_pickling(new_registry):
    model = in_memory()
    bundle = resolve(model.backbone)
    expected = Embedder(bundle, TORCH).embed(images())
    sent = pickle.loads(pickle.dumps(registry.find_own_model(bundle.backbone)))
    new_registry()
    with pytest.raises(UsageError, match=r"never chosen by an output; pass its lookalike\.Model"):
        Embedder(bundle, TORCH)
    registry.add_model(sent)
    np.testing.assert_array_equal(Embedder(bundle, TORCH).embed(images()), expected)


def test_tied_parameters_and_buffers_are_kept(new_registry):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, batch):
            return self.second(self.first(batch.mean((-2, -1))))

    registry.add_model(Model(Tied(), DESCRIPTION, name="tied", version="1"))
    bundle = resolve("model:tied")
    assert set(bundle.state()) == {
        "first.weight", "first.bias", "second.weight", "second.bias"
    }  # fmt: skip
    assert Embedder(bundle, TORCH).embed(images()).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a/b"}, "write a name of letters"),
        ({"name": ""}, "write a name of letters"),
        ({"module": "resnet50"}, "is no torch module with a transform, but str"),
        ({"transform": None}, "has no transform: describe it as a mapping"),
        ({"transform": {}}, "needs image_size"),
        ({"transform": {"image_size": 8}}, "needs image_size"),
        ({"transform": {"image_size": 32, "crop": 1}}, "unknown fields crop; write some of"),
        ({"transform": {"image_size": 32, "resize": "zoom"}}, "resize 'zoom'; write one of crop"),
        ({"transform": {"image_size": 32, "mean": [0.5]}}, "needs mean and std of three channels"),
        ({"transform": {"image_size": 32, "std": [1, 1, 0]}}, "a std is greater than 0"),
        ({"transform": {"image_size": 32, "resize_size": 16}}, "write at least image_size, 32"),
        ({"transform": {"image_size": 32, "interpolation": "box"}}, "interpolation 'box'"),
    ],
    ids=str,
)
def test_invalid_model_is_refused(new_registry, arguments, message):
    values = {"module": Net(), "transform": DESCRIPTION, "name": "net", "version": "1", **arguments}
    with pytest.raises(UsageError, match=message):
        Model(values.pop("module"), values.pop("transform"), **values).load()


def test_preset_of_torchvision_is_a_transform(new_registry):
    from torchvision import models

    preset = models.EfficientNet_B0_Weights.DEFAULT.transforms()
    transform = in_memory(transform=preset).load().transform
    assert transform == registry.find_provider("efficientnet_b0").pretrained_transform(
        "efficientnet_b0", None
    )


# --- factories ------------------------------------------------------------------------------------


def test_factory_in_a_folder_is_called(folder):
    bundle = resolve("python:own_net:make", python_path=str(folder))
    assert (bundle.backbone, bundle.dimension) == ("python:own_net:make", 8)
    assert (bundle.code.name, bundle.code.version) == ("make", "1.2")
    assert set(bundle.state()) == {"model.weight", "model.bias", "scale"}
    assert Embedder(bundle, TORCH).embed(images()).shape == (2, 8)


def test_parameters_that_a_factory_draws_are_the_same_each_time(folder, new_registry):
    first = resolve("python:own_net:make", python_path=str(folder))
    new_registry()
    torch.manual_seed(99)
    assert resolve("python:own_net:make", python_path=str(folder)).digest == first.digest


def test_options_override_the_described_transform(folder):
    bundle = resolve(
        "python:own_net:make", python_path=str(folder), image_size=64, resize="pad", mean="0.1",
        interpolation="bicubic",
    )  # fmt: skip
    assert bundle.transform == Transform("pad", 74, 64, "bicubic", (0.1, 0.1, 0.1), QUARTER)


def test_weights_file_replaces_the_parameters_of_a_factory(folder):
    from safetensors.torch import save_file

    state = {"model.weight": torch.ones(8, 3, 4, 4), "model.bias": torch.zeros(8),
             "scale": torch.ones(1)}  # fmt: skip
    save_file(state, folder / "trained.safetensors")
    bundle = resolve(
        "python:own_net:make", python_path=str(folder), weights=str(folder / "trained.safetensors")
    )
    assert torch.equal(bundle.state()["model.weight"], state["model.weight"])


def test_output_never_chooses_code(folder, new_registry):
    """Reading and copying the bundle of an own model imports nothing; running it is refused."""
    target = open_folder(str(folder / "out"))
    write_bundle(target, resolve("python:own_net:make", python_path=str(folder)))
    new_registry()
    stored = read_bundle(target)
    for run in (check_runnable, lambda bundle: Embedder(bundle, TORCH)):
        with pytest.raises(UsageError, match="never chosen by an output; name it with --backbone"):
            run(stored)
    with pytest.raises(UsageError, match="never chosen by an output"):
        resolve("resnet50", bundle=str(folder / "out"))
    assert "own_net" not in sys.modules


def test_bundle_runs_with_the_same_source_only(folder, new_registry):
    out = str(folder / "out")
    named = {"python_path": str(folder), "bundle": out}
    write_bundle(open_folder(out), resolve("python:own_net:make", python_path=str(folder)))
    new_registry()
    bundle = resolve("python:own_net:make", **named)
    expected = Embedder(bundle, TORCH).embed(images())
    new_registry()
    (folder / "own_net.py").write_text(SOURCE.replace(".relu()", ".abs()  # a change"))
    with pytest.raises(Mismatch, match=r"made by make 1\.2 \(source .*\), but .* is make 1\.2"):
        resolve("python:own_net:make", **named)
    with pytest.raises(Mismatch, match="use the same source, or embed the images again"):
        Embedder(bundle, TORCH)
    new_registry()
    (folder / "own_net.py").write_text(SOURCE)
    resolve("python:own_net:make", **named)
    np.testing.assert_array_equal(Embedder(bundle, TORCH).embed(images()), expected)


def test_source_that_changed_after_its_import_is_refused(folder):
    """The process would still run the old code."""
    resolve("python:own_net:make", python_path=str(folder))
    (folder / "own_net.py").write_text(SOURCE + "# changed in an editor\n")
    with pytest.raises(UsageError, match="has changed since this process imported it"):
        resolve("python:own_net:make", python_path=str(folder))


def test_bundle_without_recorded_source_is_refused(folder):
    bundle = resolve("python:own_net:make", python_path=str(folder))
    with pytest.raises(Mismatch, match="records no source"):
        check_runnable(dataclasses.replace(bundle, code=None))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("python:own_net", "write python:package.module:factory"),
        ("python:own_net:make()", "write python:package.module:factory"),
        ("python:own-net:make", "write python:package.module:factory"),
        (
            "python:own_net_missing:make",
            "no module own_net_missing; install it, or",
        ),
        ("python:own_net:other", "own_net.py has no function other"),
        ("python:own_net:__version__", "has no function __version__"),
        ("python:own_net_fails:make", "importing own_net_fails fails .ZeroDivisionError"),
        ("python:own_net_exits:make", "importing own_net_exits fails .SystemExit: 3"),
        ("python:own_net_odd:make", "the factory fails .ValueError: no weights"),
        ("python:own_net_odd:none", "what the factory returned is no torch module .* NoneType"),
        ("python:own_net_odd:alone", "has no transform: describe it"),
    ],
)
def test_unusable_factory_is_refused(folder, backbone, message):
    (folder / "own_net_fails.py").write_text("1 / 0")
    (folder / "own_net_exits.py").write_text("raise SystemExit(3)")
    (folder / "own_net_odd.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def make():
            raise ValueError("no weights")

        def none():
            return None

        def alone():
            return nn.Linear(1, 1), None
    """)
    )
    with pytest.raises(UsageError, match=message):
        resolve(backbone, python_path=str(folder))


def test_factory_may_return_a_model(folder):
    (folder / "own_net_model.py").write_text(
        SOURCE + "\n\ndef model():\n    from retrieval.models.own_model import Model\n"
        '    return Model(*make(), name="named", version="7")\n'
    )
    bundle = resolve("python:own_net_model:model", python_path=str(folder))
    assert (bundle.code.name, bundle.code.version) == ("named", "7")


def test_python_path_must_be_a_folder(folder):
    with pytest.raises(UsageError, match=r"--python-path .*own_net\.py is not a folder"):
        resolve("python:own_net:make", python_path=str(folder / "own_net.py"))


def test_random_weights_are_refused(folder):
    with pytest.raises(UsageError, match=r"--weights random: .* sets its own parameters"):
        resolve("python:own_net:make", python_path=str(folder), weights="random")


def test_python_path_cannot_shadow_installed_packages(folder):
    """Folders named like packages of this project and of its libraries are not imported."""
    for name in ("retrieval", "jobs", "safetensors", "json"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    program = f"""
        from retrieval.models.own_model import FactoryModel
        FactoryModel("python:own_net:make", {str(folder)!r}).load()
        import json, safetensors, retrieval.samples, jobs.cli
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_factory_model_is_sent_by_name(folder, new_registry):
    """Workers unpickle the name before the search path is extended, then import the module."""
    sent = pickle.dumps(FactoryModel("python:own_net:make", str(folder)))
    assert "own_net" not in sys.modules
    assert pickle.loads(sent).load().transform.image_size == 32
