"""Test `train` in this process: output files, resuming, refused options and messages."""

import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jobs.commands import predict
from jobs.config.settings import PredictSettings, TrainSettings
from jobs.training import train
from retrieval.core.errors import InputError, LookalikeError, Mismatch, UsageError
from retrieval.core.schemas import HISTORY
from retrieval.models import registry
from retrieval.models.bundle import read_bundle
from retrieval.storage import finished_output, transaction
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import without_ray
from tests.retrieval.models.test_own_model import SOURCE
from tests.retrieval.storage.faults import Killed

FILES = {
    "job.json",
    "manifest.json",
    "files.parquet",
    "run.json",
    "history.parquet",
    "split.parquet",
    "confusion.parquet",
    "classifier.json",
    "classifier.safetensors",
    "curves.png",
    "png.sum.json",
    "model/bundle.json",
    "model/weights.safetensors",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Limit PyTorch to one thread; synchronising threads dominates in these small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, train.Result]:
    """Return photos of three classes, the bundle trained on them, and the result."""
    root = tmp_path_factory.mktemp("made")
    photos = draw_photos(root / "photos", 18)
    return photos, root / "bundle", start(photos, root / "bundle")


def start(photos: Path, output: Path, **options) -> train.Result:
    options = {"epochs": 2, "image_size": 32, **options}
    return train.start(TrainSettings(data=str(photos), output=str(output), **options))


def test_bundle_is_a_verified_output(trained):
    _, output, _ = trained
    assert set(read_tree(output, exclude=())) - {"confusion.png"} == FILES  # optional
    assert [verdict.state for verdict in verify(open_folder(str(output)))] == ["finished"]
    bundle = read_bundle(open_folder(str(output)))
    assert (bundle.backbone, bundle.pooling, bundle.normalize) == ("scratch", "gem", True)
    assert (bundle.dimension, bundle.transform.image_size) == (192, 32)
    assert bundle.transform.resize == "squash"
    assert not any(key.startswith("classifier") for key in bundle.state())
    run = json.loads((output / "run.json").read_text())
    assert run["settings"]["epochs"] == 2
    assert run["threads"] == 1
    assert run["seconds"] > 0


def test_result_agrees_with_manifest_and_history(trained):
    _, output, result = trained
    expected = {"epochs": 2, "classes": 3, "images": 18, "training": 12, "validation": 6}
    assert {key: result.values[key] for key in expected} == expected
    assert result.values["failures"] == 0
    assert result.values["output"] == str(output)
    history = pq.read_table(io.BytesIO((output / "history.parquet").read_bytes()))
    assert history.schema.equals(HISTORY.schema)
    rows = history.to_pylist()
    assert [row["epoch"] for row in rows] == [1, 2]
    best = rows[result.values["best_epoch"] - 1]
    assert (best["top1"], best["accuracy"]) == (
        result.values["Success@1"],
        result.values["accuracy"],
    )
    counts = finished_output.read_manifest(open_folder(str(output)), kind="bundle").counts
    names = {"top1": "Success@1", "map": "AP"}  # names of ir-measures, printed by --json
    values = {names.get(key, key): value for key, value in counts.items()}
    assert {"output": str(output), **values} == result.values
    assert json.loads(result.as_json()) == result.values
    assert "trained on 12 images for 2 epochs" in result.as_text()
    assert best["map"] == result.values["AP"]


def test_finished_bundle_is_not_rewritten(trained, capsys):
    photos, output, result = trained
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    second_result = start(photos, output)
    assert second_result == result
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert "epoch" not in capsys.readouterr().err


def test_progress_is_one_line_per_epoch_on_stderr(trained, tmp_path, capsys):
    start(trained[0], tmp_path / "bundle")
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("train: epoch ")]
    assert [line.split(",")[0] for line in lines] == ["train: epoch 1/2", "train: epoch 2/2"]
    assert out == ""


def test_training_is_deterministic_for_a_seed(trained, tmp_path):
    photos, output, _ = trained
    start(photos, tmp_path / "again")
    assert read_tree(tmp_path / "again") == read_tree(output)
    start(photos, tmp_path / "other", seed=1)
    weights = "model/weights.safetensors"
    assert read_tree(tmp_path / "other")[weights] != read_tree(output)[weights]


@pytest.mark.parametrize(
    "options",
    [{"epochs": 3}, {"learning_rate": 0.1}, {"image_size": 48}, {"exclude_classes": "class0"}],
)
def test_changed_settings_are_refused(trained, options):
    photos, output, _ = trained
    before = read_tree(output, exclude=())
    with pytest.raises(Mismatch, match=next(iter(options))):
        start(photos, output, **options)
    assert read_tree(output, exclude=()) == before


def test_changed_photos_need_overwrite(trained, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "bundle"
    shutil.copytree(trained[0], photos)
    start(photos, output, epochs=1)
    shutil.copy(photos / "class0" / "photo0000.jpg", photos / "class0" / "new.jpg")
    with pytest.raises(Mismatch, match="images was 18, is 19"):
        start(photos, output, epochs=1)
    result = start(photos, output, epochs=1, overwrite=True)
    assert result.values["images"] == 19


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.nightly)])
def test_training_killed_at_any_write_resumes(trained, tmp_path, monkeypatch, step):
    """Network and optimizer resume from the last complete epoch."""
    photos, output, _ = trained
    folder = type(open_folder(str(tmp_path)))
    original_put, original_put_new_file = folder.put, folder.put_new_file
    writes: list[str] = []

    def train_with(name, before_write):
        def put(self, path, data):
            before_write(path)
            return original_put(self, path, data)

        def put_new_file(self, path, write):
            before_write(path)
            return original_put_new_file(self, path, write)

        with monkeypatch.context() as patch:
            patch.setattr(folder, "put", put)
            patch.setattr(folder, "put_new_file", put_new_file)
            start(photos, tmp_path / name)

    train_with("whole", writes.append)
    assert read_tree(tmp_path / "whole") == read_tree(output)
    assert sum(path.startswith("work/epoch") for path in writes) == 4
    for number in range(0, len(writes), step):
        remaining = [number]

        def die(path, remaining=remaining):
            remaining[0] -= 1
            if remaining[0] < 0:
                raise Killed

        with pytest.raises(Killed):
            train_with(f"m{number}", die)
        train_with(f"m{number}", lambda path: None)
        assert read_tree(tmp_path / f"m{number}") == read_tree(output), writes[number]


@pytest.mark.parametrize(
    "killed_function", ["finish_output", "collect_records", "put_with_checksums"]
)
def test_training_killed_while_finishing_resumes(trained, tmp_path, monkeypatch, killed_function):
    photos, output, _ = trained

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transaction, killed_function, die)
        with pytest.raises(KeyboardInterrupt):
            start(photos, tmp_path / "bundle")
    weights = tmp_path / "bundle" / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # as if written with another number of threads
    start(photos, tmp_path / "bundle")
    assert read_tree(tmp_path / "bundle") == read_tree(output)


def test_altered_curves_are_detected(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "bundle")
    (tmp_path / "bundle" / "curves.png").write_bytes(b"other")
    (verdict,) = verify(open_folder(str(tmp_path / "bundle")))
    assert verdict.state == "damaged"
    (tmp_path / "bundle" / "manifest.json").unlink()
    (verdict,) = verify(open_folder(str(tmp_path / "bundle")))
    assert [problem.split(" ")[-2:] for problem in verdict.problems] == [["was", "altered"]]


def test_excluded_classes_are_not_trained_in_any_order(trained, tmp_path):
    photos = draw_photos(tmp_path / "photos", 16, classes=4)
    result = start(photos, tmp_path / "bundle", epochs=1, exclude_classes="class3, class1")
    assert (result.values["classes"], result.values["images"]) == (2, 8)
    second_result = start(photos, tmp_path / "bundle", epochs=1, exclude_classes="class1,class3,")
    assert second_result == result


def test_labels_file_replaces_folder_names(trained, tmp_path):
    photos = trained[0]
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    labels = tmp_path / "labels.csv"
    lines = [
        f"{name},{'odd' if position % 2 else 'even'}" for position, name in enumerate(names[:10])
    ]
    labels.write_text("\n".join(["image_id,label", *lines]) + "\n")
    result = start(photos, tmp_path / "bundle", epochs=1, labels=str(labels))
    assert (result.values["classes"], result.values["images"]) == (2, 10)


def test_unreadable_photos_are_counted_and_named(trained, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(trained[0], photos)
    (photos / "class1" / "photo0001.jpg").write_bytes(b"no photo")
    result = start(photos, tmp_path / "bundle", epochs=1)
    assert (result.values["images"], result.values["failures"]) == (18, 1)
    assert result.values["training"] + result.values["validation"] == 17
    assert "class1/photo0001.jpg" in capsys.readouterr().err


def test_split_is_recorded(trained):
    photos, output, result = trained
    rows = pq.read_table(output / "split.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == sorted(
        path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg")
    )
    parts = [row["part"] for row in rows]
    assert parts.count("training") == result.values["training"]
    assert parts.count("validation") == result.values["validation"]


def test_validation_classes_are_disjoint_with_split_by_class(tmp_path):
    photos = draw_photos(tmp_path / "photos", 24, classes=6)
    result = start(photos, tmp_path / "bundle", epochs=1, split_by="class")
    assert result.values["accuracy"] is None
    assert "was best on 8 images of 2 other classes: mAP" in result.lines[1]
    assert not (tmp_path / "bundle/confusion.parquet").exists()
    rows = pq.read_table(tmp_path / "bundle/split.parquet").to_pylist()
    validation_labels = {row["label"] for row in rows if row["part"] == "validation"}
    assert len(validation_labels) == 2
    assert not validation_labels & {row["label"] for row in rows if row["part"] == "training"}


@pytest.mark.parametrize(
    ("backbone", "unfreeze", "frozen"),
    [
        ("squeezenet1_1", "none", "features.12.expand3x3.weight"),
        ("mobilenet_v2", "last:2", "features.0.0.weight"),
        ("timm:test_resnet", "last:2", "conv1.0.weight"),
        pytest.param("vgg16", "last:4", "features.14.weight", marks=pytest.mark.nightly),
        pytest.param("resnet50", "last:4", "layer4.1.conv1.weight", marks=pytest.mark.nightly),
    ],
)
def test_frozen_layers_of_each_backbone_are_unchanged(tmp_path, backbone, unfreeze, frozen):
    """With random weights, frozen parameters keep their values and others change."""
    if backbone.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
    photos = draw_photos(tmp_path / "photos", 8, classes=2)
    result = start(photos, tmp_path / "bundle", epochs=1, backbone=backbone, weights="random",
                   unfreeze=unfreeze, pooling="gem")  # fmt: skip
    bundle = read_bundle(open_folder(str(tmp_path / "bundle")))
    assert (bundle.backbone, bundle.pooling) == (backbone, "gem")
    torch.manual_seed(0)
    before = registry.fit_state(registry.build_network(backbone).state_dict(), backbone)
    after = bundle.state()
    assert torch.equal(after[frozen], before[frozen])
    changed_parameters = [
        key
        for key, value in after.items()
        if "running" not in key and "num_batches" not in key and not torch.equal(value, before[key])
    ]
    assert bool(changed_parameters) == (unfreeze != "none")
    assert result.values["epochs"] == 1


def test_own_module_is_trained_and_predicts(tmp_path):
    """The bundle holds the trained parameters; `predict` needs the code to be named again."""
    (tmp_path / "own_trained.py").write_text(SOURCE)
    named = {"backbone": "python:own_trained:make", "python_path": str(tmp_path)}
    photos = draw_photos(tmp_path / "photos", 8, classes=2)
    start(photos, tmp_path / "bundle", epochs=1, pooling="avg", **named)
    bundle = read_bundle(open_folder(str(tmp_path / "bundle")))
    assert (bundle.backbone, bundle.code.name) == (named["backbone"], "make")
    before = registry.build_network(named["backbone"]).state_dict()
    assert not torch.equal(bundle.state()["model.weight"], before["model.weight"])
    registry.remove_model(named["backbone"])
    predicting = {"input": str(photos), "bundle": str(tmp_path / "bundle"), "engine": "torch"}
    with without_ray():
        with pytest.raises(UsageError, match="name it with --backbone python:own_trained:make"):
            predict.start(PredictSettings(output=str(tmp_path / "unnamed"), **predicting))
        result = predict.start(
            PredictSettings(output=str(tmp_path / "classes"), **predicting, **named)
        )
    assert result.values["images"] == 8


def test_cache_is_kept(trained, tmp_path):
    photos, output, _ = trained
    start(photos, tmp_path / "one", cache=str(tmp_path / "cache"))
    assert {path.name for path in (tmp_path / "cache").glob("*/*")} == {
        "exact.npy", "wide.npy", "photos.json",
    }  # fmt: skip
    assert read_tree(tmp_path / "one") == read_tree(output)


def test_predict_writes_classes_and_confidences(trained, tmp_path):
    photos, output, _ = trained
    with without_ray():
        settings = PredictSettings(
            input=str(photos), bundle=str(output), output=str(tmp_path / "p")
        )
        result = predict.start(settings)
        second_result = predict.start(settings)
    assert result.values == second_result.values
    rows = pq.read_table(tmp_path / "p" / "predictions").to_pylist()
    assert len(rows) == result.values["images"] == 18
    right = sum(row["predicted"] == row["label"] for row in rows)
    assert result.values["right"] == right
    for row in rows:
        assert 1 / 3 <= row["confidence"] <= 1
        assert row["second_confidence"] <= row["confidence"]
        assert row["predicted"] != row["second"]
    assert all(v.state == "finished" for v in verify(open_folder(str(tmp_path / "p"))))
    assert f"{right / 18:.1%} of the 18" in result.as_text()


def test_predict_without_a_classifier_is_refused(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "bundle")
    (tmp_path / "bundle/classifier.json").unlink()
    with pytest.raises(InputError, match="holds no classifier"):
        predict.start(
            PredictSettings(input="x", bundle=str(tmp_path / "bundle"), output=str(tmp_path / "p"))
        )


@pytest.mark.parametrize(
    ("options", "error", "names"),
    [
        ({"augment": "wobble"}, UsageError, "--augment 'wobble'"),
        ({"unfreeze": "last:99"}, UsageError, "--unfreeze last:99: the backbone has 8 layers"),
        ({"split_by": "class"}, InputError, "--split-by class needs four classes"),
        ({"data": "nowhere"}, InputError, "nowhere does not exist"),
        ({"labels": "nowhere.csv"}, InputError, "--labels nowhere.csv"),
        ({"exclude_classes": "owl"}, UsageError, "--exclude-classes owl"),
        ({"learning_rate": 1e30}, LookalikeError, "--learning-rate from 1e+30"),
        pytest.param(
            {"device": "cuda"},
            UsageError,
            "--device cuda: there are fewer GPUs",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available"),
        ),
    ],
)
def test_invalid_options_are_refused(trained, tmp_path, options, error, names):
    options = {"data": trained[0], **options}
    with pytest.raises(error) as raised:
        start(options.pop("data"), tmp_path / "bundle", **options)
    assert names in str(raised.value)
    assert not (tmp_path / "bundle" / "manifest.json").exists()
