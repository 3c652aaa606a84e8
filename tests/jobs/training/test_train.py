"""lookalike train, without a process of its own: what it writes, keeps, refuses and says."""

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
from tests.jobs.here import without_ray
from tests.retrieval.storage.faults import Killed
from tests.trees import tree

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
    """Let threads not wait for one another, which costs these small networks most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, train.Result]:
    """Photos of three classes, the bundle that was trained on them, and what was answered."""
    root = tmp_path_factory.mktemp("made")
    photos = draw_photos(root / "photos", 18)
    return photos, root / "bundle", start(photos, root / "bundle")


def start(photos: Path, output: Path, **given) -> train.Result:
    given = {"epochs": 2, "image_size": 32, **given}
    return train.start(TrainSettings(data=str(photos), output=str(output), **given))


def test_a_bundle_is_an_output_like_any_other(made):
    _, output, _ = made
    assert set(tree(output, but=())) - {"confusion.png"} == FILES  # which may have nothing to show
    assert [verdict.state for verdict in verify(open_folder(str(output)))] == ["finished"]
    bundle = read_bundle(open_folder(str(output)))
    assert (bundle.backbone, bundle.pooling, bundle.normalize) == ("scratch", "gem", True)
    assert (bundle.dimension, bundle.transform.image_size) == (192, 32)
    assert bundle.transform.resize == "pad"
    assert not any(key.startswith("classifier") for key in bundle.state())
    run = json.loads((output / "run.json").read_text())
    assert run["settings"]["epochs"] == 2
    assert run["threads"] == 1
    assert run["seconds"] > 0


def test_the_answer_is_what_the_manifest_and_the_history_say(made):
    _, output, result = made
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
    names = {"top1": "Success@1", "map": "AP"}  # of ir-measures, in what --json prints
    values = {names.get(key, key): value for key, value in counts.items()}
    assert {"output": str(output), **values} == result.values
    assert json.loads(result.as_json()) == result.values
    assert "trained on 12 images for 2 epochs" in result.as_text()
    assert best["map"] == result.values["AP"]


def test_a_second_call_leaves_all_as_it_is(made, capsys):
    photos, output, result = made
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    again = start(photos, output)
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert "epoch" not in capsys.readouterr().err


def test_progress_is_a_line_an_epoch_on_stderr(made, tmp_path, capsys):
    start(made[0], tmp_path / "bundle")
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("train: epoch ")]
    assert [line.split(",")[0] for line in lines] == ["train: epoch 1/2", "train: epoch 2/2"]
    assert out == ""


def test_the_same_job_elsewhere_gives_the_same_bytes_and_another_seed_others(made, tmp_path):
    photos, output, _ = made
    start(photos, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(output)
    start(photos, tmp_path / "other", seed=1)
    weights = "model/weights.safetensors"
    assert tree(tmp_path / "other")[weights] != tree(output)[weights]


@pytest.mark.parametrize(
    "given",
    [{"epochs": 3}, {"learning_rate": 0.1}, {"image_size": 48}, {"exclude_classes": "class0"}],
)
def test_other_settings_are_refused_and_name_what_differs(made, given):
    photos, output, _ = made
    before = tree(output, but=())
    with pytest.raises(Mismatch, match=next(iter(given))):
        start(photos, output, **given)
    assert tree(output, but=()) == before


def test_changed_photos_make_another_job(made, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "bundle"
    shutil.copytree(made[0], photos)
    start(photos, output, epochs=1)
    shutil.copy(photos / "class0" / "photo0000.jpg", photos / "class0" / "new.jpg")
    with pytest.raises(Mismatch, match="images was 18, is 19"):
        start(photos, output, epochs=1)
    result = start(photos, output, epochs=1, overwrite=True)
    assert result.values["images"] == 19


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_killed_at_any_file_it_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch, every):
    """The network as it was after the last whole epoch, its optimizer and all."""
    photos, output, _ = made
    folder = type(open_folder(str(tmp_path)))
    plain, real = folder.put, folder.put_new_file
    puts: list[str] = []

    def go(name, before):
        def put(self, path, data):
            before(path)
            return plain(self, path, data)

        def put_new_file(self, path, write):
            before(path)
            return real(self, path, write)

        with monkeypatch.context() as patch:
            patch.setattr(folder, "put", put)
            patch.setattr(folder, "put_new_file", put_new_file)
            start(photos, tmp_path / name)

    go("whole", puts.append)
    assert tree(tmp_path / "whole") == tree(output)
    assert sum(path.startswith("work/epoch") for path in puts) == 4
    for moment in range(0, len(puts), every):
        left = [moment]

        def dies(path, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        with pytest.raises(Killed):
            go(f"m{moment}", dies)
        go(f"m{moment}", lambda path: None)
        assert tree(tmp_path / f"m{moment}") == tree(output), puts[moment]


@pytest.mark.parametrize("killed_at", ["finish_output", "collect_records", "put_with_checksums"])
def test_a_killed_run_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch, killed_at):
    photos, output, _ = made

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transaction, killed_at, die)
        with pytest.raises(KeyboardInterrupt):
            start(photos, tmp_path / "bundle")
    left = tmp_path / "bundle" / "model" / "weights.safetensors"
    left.write_bytes(left.read_bytes()[:-1])  # as another number of threads would have left it
    start(photos, tmp_path / "bundle")
    assert tree(tmp_path / "bundle") == tree(output)


def test_the_curves_are_named_with_their_checksum(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "bundle")
    (tmp_path / "bundle" / "curves.png").write_bytes(b"other")
    (verdict,) = verify(open_folder(str(tmp_path / "bundle")))
    assert verdict.state == "damaged"
    (tmp_path / "bundle" / "manifest.json").unlink()
    (verdict,) = verify(open_folder(str(tmp_path / "bundle")))
    assert [problem.split(" ")[-2:] for problem in verdict.problems] == [["was", "altered"]]


def test_left_out_classes_are_not_trained_and_their_order_does_not_matter(made, tmp_path):
    photos = draw_photos(tmp_path / "photos", 16, classes=4)
    result = start(photos, tmp_path / "bundle", epochs=1, exclude_classes="class3, class1")
    assert (result.values["classes"], result.values["images"]) == (2, 8)
    again = start(photos, tmp_path / "bundle", epochs=1, exclude_classes="class1,class3,")
    assert again == result


def test_labels_stand_instead_of_folders(made, tmp_path):
    photos = made[0]
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    labels = tmp_path / "labels.csv"
    lines = [f"{name},{'odd' if place % 2 else 'even'}" for place, name in enumerate(names[:10])]
    labels.write_text("\n".join(["image_id,label", *lines]) + "\n")
    result = start(photos, tmp_path / "bundle", epochs=1, labels=str(labels))
    assert (result.values["classes"], result.values["images"]) == (2, 10)


def test_unreadable_photos_are_counted_and_named(made, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(made[0], photos)
    (photos / "class1" / "photo0001.jpg").write_bytes(b"no photo")
    result = start(photos, tmp_path / "bundle", epochs=1)
    assert (result.values["images"], result.values["failures"]) == (18, 1)
    assert result.values["training"] + result.values["validation"] == 17
    assert "class1/photo0001.jpg" in capsys.readouterr().err


def test_the_split_is_written_down(made):
    photos, output, result = made
    rows = pq.read_table(output / "split.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == sorted(
        path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg")
    )
    parts = [row["part"] for row in rows]
    assert parts.count("training") == result.values["training"]
    assert parts.count("validation") == result.values["validation"]


def test_whole_classes_may_be_held_out(tmp_path):
    photos = draw_photos(tmp_path / "photos", 24, classes=6)
    result = start(photos, tmp_path / "bundle", epochs=1, split_by="class")
    assert result.values["accuracy"] is None
    assert "was best on 8 images of 2 other classes: mAP" in result.lines[1]
    assert not (tmp_path / "bundle/confusion.parquet").exists()
    rows = pq.read_table(tmp_path / "bundle/split.parquet").to_pylist()
    held = {row["label"] for row in rows if row["part"] == "validation"}
    assert len(held) == 2
    assert not held & {row["label"] for row in rows if row["part"] == "training"}


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
def test_any_backbone_goes_on_learning_where_its_weights_are(tmp_path, backbone, unfreeze, frozen):
    """With random weights: what is frozen stays, what learns does not, and it is a bundle."""
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
    learnt = [
        key
        for key, value in after.items()
        if "running" not in key and "num_batches" not in key and not torch.equal(value, before[key])
    ]
    assert bool(learnt) == (unfreeze != "none")
    assert result.values["epochs"] == 1


def test_a_cache_is_kept_for_the_next_training(made, tmp_path):
    photos, output, _ = made
    start(photos, tmp_path / "one", cache=str(tmp_path / "cache"))
    assert {path.name for path in (tmp_path / "cache").glob("*/*")} == {
        "exact.npy", "wide.npy", "photos.json",
    }  # fmt: skip
    assert tree(tmp_path / "one") == tree(output)


def test_classes_are_told_with_a_confidence(made, tmp_path):
    photos, output, _ = made
    with without_ray():
        asked = PredictSettings(input=str(photos), bundle=str(output), output=str(tmp_path / "p"))
        result = predict.start(asked)
        again = predict.start(asked)
    assert result.values == again.values
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


def test_a_bundle_without_a_classifier_tells_nothing(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "bundle")
    (tmp_path / "bundle/classifier.json").unlink()
    with pytest.raises(InputError, match="holds no classifier"):
        predict.start(
            PredictSettings(input="x", bundle=str(tmp_path / "bundle"), output=str(tmp_path / "p"))
        )


@pytest.mark.parametrize(
    ("given", "error", "names"),
    [
        ({"augment": "wobble"}, UsageError, "--augment 'wobble'"),
        ({"unfreeze": "last:99"}, UsageError, "--unfreeze last:99: the backbone has 8 layers"),
        ({"split_by": "class"}, InputError, "--split-by class needs four classes"),
        ({"data": "nowhere"}, InputError, "nowhere does not exist"),
        ({"labels": "nowhere.csv"}, InputError, "--labels nowhere.csv"),
        ({"exclude_classes": "owl"}, UsageError, "--exclude-classes owl"),
        ({"learning_rate": 1e30}, LookalikeError, "--learning-rate 1e+30"),
        pytest.param(
            {"device": "cuda"},
            UsageError,
            "--device cuda: there are fewer GPUs",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_refusals_are_one_sentence(made, tmp_path, given, error, names):
    given = {"data": made[0], **given}
    with pytest.raises(error) as refused:
        start(given.pop("data"), tmp_path / "bundle", **given)
    assert names in str(refused.value)
    assert not (tmp_path / "bundle" / "manifest.json").exists()
