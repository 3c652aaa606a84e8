"""lookalike train, without a process of its own: what it writes, keeps, refuses and says."""

import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jobs import train
from jobs.settings import TrainSettings
from retrieval.errors import InputError, LookalikeError, Mismatch, UsageError
from retrieval.model.bundle import read_bundle
from retrieval.storage import commit, finished
from retrieval.storage.files import open_folder
from retrieval.storage.verify import verify
from retrieval.tables import HISTORY
from tests.conftest import draw_photos
from tests.trees import tree

FILES = {
    "job.json",
    "manifest.json",
    "files.parquet",
    "run.json",
    "history.parquet",
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
    assert set(tree(output, but=())) == FILES
    assert [verdict.state for verdict in verify(open_folder(str(output)))] == ["finished"]
    bundle = read_bundle(open_folder(str(output)))
    assert (bundle.backbone, bundle.pooling, bundle.normalize) == ("scratch", "avg", True)
    assert (bundle.dimension, bundle.transform.image_size) == (192, 32)
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
    assert (best["top1"], best["accuracy"]) == (result.values["top1"], result.values["accuracy"])
    counts = finished.read_manifest(open_folder(str(output)), kind="bundle").counts
    assert {"output": str(output), **counts} == result.values
    assert json.loads(result.as_json()) == result.values
    assert "12 images of 3 classes for 2 epochs" in result.as_text()


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
    "given", [{"epochs": 3}, {"learning_rate": 0.1}, {"image_size": 48}, {"leave_out": "class0"}]
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


@pytest.mark.parametrize("killed_at", ["finish", "records", "put_named"])
def test_a_killed_run_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch, killed_at):
    photos, output, _ = made

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit, killed_at, die)
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
    result = start(photos, tmp_path / "bundle", epochs=1, leave_out="class3, class1")
    assert (result.values["classes"], result.values["images"]) == (2, 8)
    again = start(photos, tmp_path / "bundle", epochs=1, leave_out="class1,class3,")
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


@pytest.mark.parametrize(
    ("given", "error", "names"),
    [
        ({"data": "nowhere"}, InputError, "nowhere does not exist"),
        ({"labels": "nowhere.csv"}, InputError, "--labels nowhere.csv"),
        ({"leave_out": "owl"}, UsageError, "--leave-out owl"),
        ({"learning_rate": 1e30}, LookalikeError, "--learning-rate 1e+30"),
    ],
)
def test_refusals_are_one_sentence(made, tmp_path, given, error, names):
    given = {"data": made[0], **given}
    with pytest.raises(error) as refused:
        start(given.pop("data"), tmp_path / "bundle", **given)
    assert names in str(refused.value)
    assert not (tmp_path / "bundle" / "manifest.json").exists()
