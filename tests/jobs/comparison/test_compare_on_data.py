"""Test `compare --data`: measures, resuming after a kill, and refused inputs."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from jobs.cli import _command
from jobs.comparison import candidates, compare_on_data
from jobs.comparison.compare import start
from jobs.config.settings import CompareSettings
from retrieval.core.errors import InputError, Mismatch, TooManyFailures, UsageError
from retrieval.core.schemas import COMPARISON
from retrieval.models.bundle import read_bundle, write_bundle
from retrieval.models.pooling import POOLINGS
from retrieval.models.registry import build_network
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store, read_vectors
from tests.commands import run_command_in_process
from tests.conftest import draw_photos
from tests.file_tree import read_tree
from tests.jobs.in_process import embed_in_process, without_ray
from tests.retrieval.evaluation.test_leave_one_out import brute_force_measures
from tests.retrieval.models.onnx_writer import small_network
from tests.retrieval.models.test_own_model import SOURCE
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, record_operations

QUICK_SETTINGS = {"weights": "random", "image_size": 32, "engine": "torch", "chunk_rows": 8}
COMBINATIONS = 4 * len(POOLINGS)
"""Results per network: three metrics, and cosine after a PCA, for each pooling."""


def run_compare(data, output, **settings):
    """Run `compare --data` in this process, by default with a small random network."""
    defaults = {"backbones": "scratch", "pca": 4, **QUICK_SETTINGS, **settings}
    with without_ray():
        return start(CompareSettings(data=str(data), output=str(output), **defaults))


def read_comparison(output):
    return pq.read_table(output / "compare.parquet")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("labelled"), 18)


@pytest.fixture(scope="module")
def finished_comparison(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("compared") / "out"
    return output, run_compare(photos, output)


def l2_normalize(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def project_in_numpy(vectors, pca, metric):
    """Project vectors by PCA with L2 normalisation before and after; without `pca` return them."""
    if pca is None:
        return vectors
    centred = l2_normalize(vectors.astype(np.float64))
    centred -= centred.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:pca]
    return l2_normalize(centred @ axes.T)


def test_measures_of_each_combination_equal_numpy(finished_comparison):
    output, result = finished_comparison
    blocks = list(open_store(open_folder(str(output / "stores" / "scratch"))).blocks())
    stored = np.concatenate([read_vectors(block) for block in blocks])
    labels = [label for block in blocks for label in block["label"].to_pylist()]
    assert stored.shape == (18, len(POOLINGS) * 192)
    assert stored.dtype == np.float32
    rows = read_comparison(output).to_pylist()
    names = {"top1": "Success@1", "top3": "Success@3", "top10": "Success@10", "map": "AP"}
    for row, reported in zip(rows, result.values["combinations"], strict=True):
        columns = [(f"{key}{suffix}", f"{name}{suffix}") for key, name in names.items()
                for suffix in ("", "_low", "_high")]  # fmt: skip
        assert [row[column] for column, _ in columns] == [reported[name] for _, name in columns]
        assert {*reported} - {name for _, name in columns} == {*row} - {
            column for column, _ in columns
        }
    combinations = {(row["pooling"], row["pca"], row["metric"]) for row in rows}
    assert combinations == {
        (pooling, pca, metric)
        for pooling in POOLINGS
        for pca, metric in ((None, "cosine"), (None, "ip"), (None, "l2"), (4, "cosine"))
    }
    for row in rows:
        first = 192 * list(POOLINGS).index(row["pooling"])
        vectors = project_in_numpy(stored[:, first : first + 192], row["pca"], row["metric"])
        values = [
            brute_force_measures(vectors, labels, query, row["metric"]) for query in range(18)
        ]
        actual = [row[name] for name in ("top1", "top3", "top10", "map")]
        assert actual == pytest.approx(
            np.mean(values, 0).tolist(), abs=1e-9 if not row["pca"] else 0.01
        )
        assert row["dimension"] == vectors.shape[1]
        assert row["map_low"] <= row["map"] <= row["map_high"]
    assert [row["map"] for row in rows] == sorted((row["map"] for row in rows), reverse=True)


def test_single_pooling_gives_the_same_vectors(photos, finished_comparison, tmp_path):
    """The store of `embed --pooling max` equals the max columns of the comparison's store."""
    from jobs.cluster.resources import Cluster
    from jobs.config.settings import EmbedSettings
    from jobs.embedding.embed import embed

    with without_ray():
        embed(
            EmbedSettings(
                input=str(photos), output=str(tmp_path / "s"), backbone="scratch", pooling="max",
                normalize=False, embedding_dtype="float32", **QUICK_SETTINGS,
            ),
            Cluster("nowhere", 1),
        )  # fmt: skip
    single_pooling, all_poolings = (
        np.concatenate(
            [read_vectors(block) for block in open_store(open_folder(str(path))).blocks()]
        )
        for path in (tmp_path / "s", finished_comparison[0] / "stores" / "scratch")
    )
    first = 192 * list(POOLINGS).index("max")
    np.testing.assert_allclose(all_poolings[:, first : first + 192], single_pooling, rtol=1e-6)


def test_comparison_output_is_verified_and_not_rewritten(photos, finished_comparison):
    output, result = finished_comparison
    assert read_comparison(output).schema.equals(COMPARISON.schema)
    assert {verdict.kind: verdict.state for verdict in verify(open_folder(str(output)))} == {
        "comparison": "finished", "store": "finished",
    }  # fmt: skip
    assert verify(open_folder(str(output)))[0].progress == "1 network"
    before = read_tree(output)
    assert run_compare(photos, output).values == result.values
    assert read_tree(output) == before
    with pytest.raises(Mismatch, match=r"pca was 4, is 5"):
        run_compare(photos, output, pca=5)
    (output / "compare.html").write_bytes(b"x" + before["compare.html"][1:])
    assert verify(open_folder(str(output)))[0].state == "damaged"
    (output / "compare.html").write_bytes(before["compare.html"])


def test_printed_table_and_page(finished_comparison):
    output, result = finished_comparison
    text = "\n".join(result.lines)
    assert result.lines[0].startswith("18 images of 3 classes in ")
    assert len([line for line in result.lines if line.startswith("scratch ")]) == COMBINATIONS
    assert "fitted on the compared images themselves" in text
    assert max(map(len, result.lines[1:14])) <= 120
    page = (output / "compare.html").read_text()
    assert page.count('<tr><th scope="row">') == 1 + COMBINATIONS  # the best one, and all
    assert "<svg" not in page.split("data:image/svg+xml")[0]
    assert f"{result.values['combinations'][0]['AP']:.3f}" in page


def omit_throughput(patch):
    """Remove the throughput, which differs from run to run."""
    patch.setattr(compare_on_data, "_images_per_second", lambda store: None)


def test_killed_comparison_resumes_without_repeating_networks(photos, tmp_path, monkeypatch):
    omit_throughput(monkeypatch)
    settings = {"backbones": "scratch", "limit": 8, "bundle": str(tmp_path / "bundle")}
    embed_in_process(photos, tmp_path / "bundle")

    def run(output):
        return run_compare(photos, output, **settings)

    operations = record_operations(lambda: run(tmp_path / "whole"))
    write_operations = [
        number for number, (_, _, path) in enumerate(operations)
        if path.endswith(("backbones/scratch.json", "backbones/bundle-0.json", "compare.html"))
    ]  # fmt: skip
    expected = read_tree(tmp_path / "whole")
    assert len(write_operations) >= 6

    def kill(*_):
        raise Killed

    middle = write_operations[len(write_operations) // 2]
    sampled = range(60, len(operations), 240)
    for number in {write_operations[0], middle, write_operations[-1], *sampled}:
        output = tmp_path / f"killed{number}"
        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            run(output)
        finished = {path.stem for path in (output / "backbones").glob("[!.]*.json")}
        built = []

        def build_and_record(compare_settings, candidate, built=built):
            built.append(candidate.file)
            return candidates.build_bundle(compare_settings, candidate)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare_on_data, "build_bundle", build_and_record)
            run(output)
        assert not finished & set(built)
        after = {
            path: data for path, data in read_tree(output).items() if "/.lookalike" not in path
        }
        assert after.keys() == expected.keys()
        assert [path for path in expected if after[path] != expected[path]] == []


def test_unavailable_network_is_left_out_with_a_note(photos, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(dict(build_network("scratch").state_dict()), weights / "scratch.safetensors")
    (weights / "resnet18.pth").write_bytes(b"no state dict")
    result = run_compare(
        photos, tmp_path / "out", backbones="resnet18,alexnet,scratch", weights=str(weights)
    )
    assert {row["backbone"] for row in result.values["combinations"]} == {"scratch"}
    resnet18_note, alexnet_note = (
        note for note in result.values["notes"] if "is left out: --weights" in note
    )
    assert resnet18_note.startswith("resnet18 is left out: --weights ")
    assert alexnet_note.endswith("holds neither alexnet.safetensors nor alexnet.pth")
    with pytest.raises(InputError, match="none of the networks could be compared: alexnet is left"):
        run_compare(photos, tmp_path / "none", backbones="alexnet", weights=str(weights))


def test_network_that_fails_on_all_images_leaves_no_store(photos, tmp_path):
    embed_in_process(photos, tmp_path / "store")
    bundle = read_bundle(open_folder(str(tmp_path / "store")))
    transform = dataclasses.replace(bundle.transform, interpolation="nonsense")
    write_bundle(
        open_folder(str(tmp_path / "odd")), dataclasses.replace(bundle, transform=transform)
    )
    settings = {"backbones": None, "bundle": str(tmp_path / "odd")}
    with pytest.raises(TooManyFailures, match="18 of 18 images failed"):
        run_compare(photos, tmp_path / "alone", **settings)
    result = run_compare(photos, tmp_path / "out", bundle=settings["bundle"])
    assert result.values["notes"] == [f"{tmp_path}/odd is left out: 18 of 18 images failed"]
    verdicts = verify(open_folder(str(tmp_path / "out")))
    assert [(verdict.kind, verdict.state) for verdict in verdicts] == [
        ("comparison", "finished"), ("store", "finished"),
    ]  # fmt: skip


def test_all_selects_backbones_with_weights(photos, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("scratch", "squeezenet1_1"):
        save_file(dict(build_network(name).state_dict()), weights / f"{name}.safetensors")
    settings = CompareSettings(data="x", backbones="all", weights=str(weights))
    assert [c.name for c in candidates.list_candidates(settings)] == ["scratch", "squeezenet1_1"]
    result = run_compare(photos, tmp_path / "out", backbones="all", weights=str(weights))
    assert len(result.values["combinations"]) == 2 * COMBINATIONS
    table = [line for line in result.lines if line.startswith(("scratch ", "squeezenet1_1 "))]
    assert len(table) == 2
    heading = f"the best of each network; all {2 * COMBINATIONS}"
    assert any(line.startswith(heading) for line in result.lines)
    without_weights = candidates.list_candidates(CompareSettings(data="x", backbones="all"))
    assert "scratch" not in [c.name for c in without_weights]
    assert "resnet50" in [c.name for c in without_weights]


def test_own_modules_and_onnx_files_are_compared(photos, tmp_path):
    (tmp_path / "own_compared.py").write_text(SOURCE)
    weight = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    (tmp_path / "net.onnx").write_bytes(small_network(weight))
    names = ["python:own_compared:make", f"onnx:{tmp_path / 'net.onnx'}"]
    result = run_compare(
        photos, tmp_path / "out", backbones=",".join(names), python_path=str(tmp_path),
        weights=None, engine=None,
    )  # fmt: skip
    assert f"{names[0]} has no feature map: only pooling avg is compared" in result.values["notes"]
    rows = result.values["combinations"]
    # weights of the convolutions, of the bias, and a scale
    expected = {names[0]: 8 * 3 * 4 * 4 + 8 + 1, names[1]: weight.size}
    assert {row["backbone"]: row["parameters"] for row in rows} == expected
    job = json.loads((tmp_path / "out/job.json").read_text())["settings"]
    assert list(job["own_sources"]) == names[:1]


def test_bundle_keeps_its_pooling_and_projection(photos, tmp_path):
    embed_in_process(photos, tmp_path / "plain")
    with without_ray():
        from jobs.cluster.resources import Cluster
        from jobs.config.settings import EmbedSettings
        from jobs.embedding.embed import embed

        embed(
            EmbedSettings(
                input=str(photos), output=str(tmp_path / "short"), backbone="scratch",
                pooling="gem", pca=5, **QUICK_SETTINGS,
            ),
            Cluster("nowhere", 1),
        )  # fmt: skip
    names = f"{tmp_path / 'plain'},{tmp_path / 'short'}"
    rows = run_compare(photos, tmp_path / "out", backbones=None, bundle=names).values[
        "combinations"
    ]
    rows_by_bundle = {
        name: [row for row in rows if row["backbone"].endswith(name)] for name in ("plain", "short")
    }
    assert {(row["pooling"], row["pca"], row["metric"]) for row in rows_by_bundle["plain"]} == {
        ("avg", None, "cosine"), ("avg", None, "ip"), ("avg", None, "l2"), ("avg", 4, "cosine"),
    }  # fmt: skip
    [projected] = rows_by_bundle["short"]
    columns = ("pooling", "pca", "metric", "dimension")
    assert [projected[column] for column in columns] == ["gem", 5, "cosine", 5]
    with pytest.raises(InputError, match="is of a comparison; name its backbone"):
        run_compare(
            photos, tmp_path / "again", backbones=None,
            bundle=str(make_comparison_store(photos, tmp_path)),
        )  # fmt: skip


def make_comparison_store(photos, tmp_path):
    run_compare(photos, tmp_path / "first", limit=8)
    return tmp_path / "first" / "stores" / "scratch"


def test_hostile_names_are_escaped(photos, tmp_path):
    hostile_names = ["<script>alert(1)</script>", "a\"b'c&d", "\u202egnp.exe", "distractor"]
    data = tmp_path / "<b>data</b>"
    for position, path in enumerate(sorted(photos.rglob("*.jpg"))):
        class_folder = data / hostile_names[position % 4].replace("/", "\u2215")
        class_folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, class_folder)
    bundle = tmp_path / "<img src=x onerror=alert(1)>"
    embed_in_process(photos, bundle)
    result = run_compare(data, tmp_path / "out", bundle=str(bundle))
    assert result.values["classes"] == 3
    assert any("distractors, are ranked but are not queries" in n for n in result.values["notes"])
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<img src=x" not in page
    assert "<b>data" not in page
    assert "&lt;img src=x" in page
    assert {verdict.state for verdict in verify(open_folder(str(tmp_path / "out")))} == {"finished"}


def test_labels_file_and_sampled_queries(photos, tmp_path, monkeypatch):
    ids = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    lines = [
        f"{name},{'ab'[position % 2] if position < 12 else ''}" for position, name in enumerate(ids)
    ]
    lines[3] = f"{ids[3]},alone"
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image_id,label", *lines]))
    from jobs.comparison import dataset

    monkeypatch.setattr(dataset, "MAX_QUERIES", 7)
    monkeypatch.setattr(compare_on_data, "MAX_QUERIES", 7)
    result = run_compare(photos, tmp_path / "out", labels=str(labels))
    assert {row["queries"] for row in result.values["combinations"]} == {7}
    assert {row["images"] for row in result.values["combinations"]} == {18}
    assert result.values["notes"] == [
        "7 of 11 queries are used, sampled by their image_id",
        "1 classes of one image are not evaluated",
        "6 images without label, or distractors, are ranked but are not queries",
    ]


def test_unreadable_images_are_left_out_with_a_note(photos, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    for name in ("class0/photo0000.jpg", "class1/photo0001.jpg"):
        (data / name).write_bytes(b"no image")
    with pytest.raises(TooManyFailures):
        run_compare(data, tmp_path / "out")
    result = run_compare(data, tmp_path / "out", max_error_rate=0.5)
    assert "scratch: 2 images could not be embedded and are left out" in result.values["notes"]
    assert {(row["queries"], row["images"]) for row in result.values["combinations"]} == {(16, 16)}
    for path in data.rglob("*.jpg"):
        if path.name > "photo0002.jpg":
            path.write_bytes(b"no image")
    (data / "class2" / "photo0005.jpg").unlink()
    with pytest.raises(Mismatch, match="images_listed was"):
        run_compare(data, tmp_path / "out", max_error_rate=0.5)
    with pytest.raises(InputError, match="too few of its images could be embedded"):
        run_compare(data, tmp_path / "few", max_error_rate=1.0)


def test_invalid_inputs_are_refused(photos, tmp_path):
    unlabelled = tmp_path / "flat"
    unlabelled.mkdir()
    for path in photos.rglob("*.jpg"):
        shutil.copy(path, unlabelled)
    single_images = tmp_path / "alone"
    for position, path in enumerate(photos.rglob("*.jpg")):
        (single_images / f"class{position}").mkdir(parents=True)
        shutil.copy(path, single_images / f"class{position}")
    for data, error, settings, message in [
        (unlabelled, InputError, {}, "has no labels; put the images into one folder per class"),
        (photos, InputError, {"limit": 4}, "has one class only.*or raise --limit"),
        (single_images, InputError, {}, "has no class of two images"),
        (tmp_path / "nothing", InputError, {}, "nothing"),
        (photos, UsageError, {"backbones": None}, "--backbones names no network to compare"),
        (photos, UsageError, {"backbones": " , "}, "--backbones names no network to compare"),
        (photos, UsageError, {"backbones": "scratc"}, "--backbones scratc is not known; did you"),
        (
            photos,
            InputError,
            {"backbones": "all", "weights": str(unlabelled)},
            "holds no file of a backb",
        ),
    ]:
        with pytest.raises(error, match=message):
            run_compare(data, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
    for arguments, message in [
        (["--data", photos, "--backbones", "scratch"], "--data needs --output"),
        (["--output", tmp_path / "out"], "--output needs --data"),
        (["--bundle", tmp_path / "out"], "--bundle needs --data"),
    ]:
        result = run_command_in_process("compare", *arguments)
        assert (result.exit_code, message in result.error) == (2, True)


def test_pooling_each_is_not_a_command_line_choice():
    [option] = [p for p in _command("embed").params if p.name == "pooling"]
    assert option.type.choices == tuple(POOLINGS)


@pytest.mark.nightly  # `make test` tests each stage with Ray
@pytest.mark.usefixtures("local_ray")
def test_compare_command_with_ray(photos, tmp_path):
    arguments = [
        "--data", photos, "--output", tmp_path / "out", "--backbones", "scratch",
        "--weights", "random", "--image-size", 32, "--pca", 4, "--json",
    ]  # fmt: skip
    result = run_command_in_process("compare", *arguments)
    assert result.exit_code == 0, result.stderr
    assert len(result.values["combinations"]) == COMBINATIONS
    assert all(row["images_per_second"] > 0 for row in result.values["combinations"])
    run = json.loads((tmp_path / "out" / "stores" / "scratch" / "run.json").read_text())
    assert run["embedded"] == 18
    assert run["worker_seconds"] > 0


def test_pretrained_networks_reach_expected_precision(data, tmp_path):
    """Five photos of each of five classes are compared."""
    selected = tmp_path / "photos"
    for folder in sorted((data / "images" / "gallery").iterdir())[:5]:
        (selected / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:5]:
            shutil.copy(path, selected / folder.name)
    result = run_compare(
        selected, tmp_path / "out", backbones="squeezenet1_0,mobilenet_v2", pca=16,
        weights=str(data / "weights"), image_size=None,
    )  # fmt: skip
    best_ap = {
        name: max(r["AP"] for r in result.values["combinations"] if r["backbone"] == name)
        for name in ("squeezenet1_0", "mobilenet_v2")
    }
    assert best_ap["mobilenet_v2"] > best_ap["squeezenet1_0"] > 0.4
