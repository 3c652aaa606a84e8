"""`lookalike compare --data`: the figures, what is kept after a kill, and what is refused."""

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
from retrieval.models.registry import build_network
from retrieval.storage.local import open_folder
from retrieval.storage.verify import verify
from retrieval.store.reader import open_store, read_vectors
from tests.commands import lookalike_here
from tests.conftest import draw_photos
from tests.jobs.here import embed_here, without_ray
from tests.retrieval.evaluation.test_leave_one_out import by_hand
from tests.retrieval.storage.faults import FailAt, Killed, inject_faults, operations
from tests.trees import tree

QUICK = {"weights": "random", "image_size": 32, "engine": "torch", "chunk_rows": 8}


def compared(data, output, **settings):
    """Compare in this process; small networks of random parameters unless others are named."""
    asked = {"backbones": "scratch", "pca": 4, **QUICK, **settings}
    with without_ray():
        return start(CompareSettings(data=str(data), output=str(output), **asked))


def table_of(output):
    return pq.read_table(output / "compare.parquet")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("labelled"), 18)


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("compared") / "out"
    return output, compared(photos, output)


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def in_numpy(vectors, pca, metric):
    """L2, the axes of largest variance by a singular value decomposition, L2."""
    if pca is None:
        return vectors
    centred = unit(vectors.astype(np.float64))
    centred -= centred.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:pca]
    return unit(centred @ axes.T)


def test_each_combination_is_what_numpy_makes_of_the_vectors(done):
    output, result = done
    blocks = list(open_store(open_folder(str(output / "stores" / "scratch"))).blocks())
    stored = np.concatenate([read_vectors(block) for block in blocks])
    labels = [label for block in blocks for label in block["label"].to_pylist()]
    assert stored.shape == (18, 3 * 192)
    assert stored.dtype == np.float32
    rows = table_of(output).to_pylist()
    names = {"top1": "Success@1", "top3": "Success@3", "top10": "Success@10", "map": "AP"}
    for row, told in zip(rows, result.values["combinations"], strict=True):
        ends = [(f"{key}{end}", f"{name}{end}") for key, name in names.items()
                for end in ("", "_low", "_high")]  # fmt: skip
        assert [row[column] for column, _ in ends] == [told[name] for _, name in ends]
        assert {*told} - {name for _, name in ends} == {*row} - {column for column, _ in ends}
    ways = {(row["pooling"], row["pca"], row["metric"]) for row in rows}
    assert ways == {
        (pooling, pca, metric)
        for pooling in ("avg", "max", "gem")
        for pca, metric in ((None, "cosine"), (None, "ip"), (None, "l2"), (4, "cosine"))
    }
    for row in rows:
        first = 192 * ["avg", "max", "gem"].index(row["pooling"])
        vectors = in_numpy(stored[:, first : first + 192], row["pca"], row["metric"])
        values = [by_hand(vectors, labels, query, row["metric"]) for query in range(18)]
        found = [row[name] for name in ("top1", "top3", "top10", "map")]
        assert found == pytest.approx(
            np.mean(values, 0).tolist(), abs=1e-9 if not row["pca"] else 0.01
        )
        assert row["dimension"] == vectors.shape[1]
        assert row["map_low"] <= row["map"] <= row["map_high"]
    assert [row["map"] for row in rows] == sorted((row["map"] for row in rows), reverse=True)


def test_a_pooling_alone_gives_the_same_vectors(photos, done, tmp_path):
    """The store of `embed --pooling max` and the middle columns of the one that serves all."""
    from jobs.cluster.resources import Cluster
    from jobs.config.settings import EmbedSettings
    from jobs.embedding.embed import embed

    with without_ray():
        embed(
            EmbedSettings(
                input=str(photos), output=str(tmp_path / "s"), backbone="scratch", pooling="max",
                normalize=False, embedding_dtype="float32", **QUICK,
            ),
            Cluster("nowhere", 1),
        )  # fmt: skip
    alone, every = (
        np.concatenate(
            [read_vectors(block) for block in open_store(open_folder(str(path))).blocks()]
        )
        for path in (tmp_path / "s", done[0] / "stores" / "scratch")
    )
    np.testing.assert_allclose(every[:, 192:384], alone, rtol=1e-6)


def test_an_output_like_the_others(photos, done):
    output, result = done
    assert table_of(output).schema.equals(COMPARISON.schema)
    assert {one.kind: one.state for one in verify(open_folder(str(output)))} == {
        "comparison": "finished", "store": "finished",
    }  # fmt: skip
    assert verify(open_folder(str(output)))[0].done == "1 networks"
    before = tree(output)
    assert compared(photos, output).values == result.values
    assert tree(output) == before
    with pytest.raises(Mismatch, match=r"pca was 4, is 5"):
        compared(photos, output, pca=5)
    (output / "compare.html").write_bytes(b"x" + before["compare.html"][1:])
    assert verify(open_folder(str(output)))[0].state == "damaged"
    (output / "compare.html").write_bytes(before["compare.html"])


def test_what_is_told(done):
    output, result = done
    text = "\n".join(result.lines)
    assert result.lines[0].startswith("18 images of 3 classes in ")
    assert len([line for line in result.lines if line.startswith("scratch ")]) == 12
    assert "fitted on the compared images themselves" in text
    assert max(map(len, result.lines[1:14])) <= 120
    page = (output / "compare.html").read_text()
    assert page.count('<tr><th scope="row">') == 13  # the best of each, and all
    assert "<svg" not in page.split("data:image/svg+xml")[0]
    assert f"{result.values['combinations'][0]['AP']:.3f}" in page


def steady(patch):
    """Let the one thing that differs from run to run stay away."""
    patch.setattr(compare_on_data, "_images_per_second", lambda store: None)


def test_a_kill_at_any_moment_leaves_no_trace_and_nothing_is_done_twice(
    photos, tmp_path, monkeypatch
):
    steady(monkeypatch)
    asked = {"backbones": "scratch", "limit": 8, "bundle": str(tmp_path / "bundle")}
    embed_here(photos, tmp_path / "bundle")

    def run(output):
        return compared(photos, output, **asked)

    moments = operations(lambda: run(tmp_path / "whole"))
    puts = [
        number for number, (_, _, path) in enumerate(moments)
        if path.endswith(("backbones/scratch.json", "backbones/bundle-0.json", "compare.html"))
    ]  # fmt: skip
    whole = tree(tmp_path / "whole")
    assert len(puts) >= 6

    def kill(*moment):
        raise Killed

    for number in {puts[0], puts[len(puts) // 2], puts[-1], *range(60, len(moments), 240)}:
        output = tmp_path / f"killed{number}"
        with inject_faults(FailAt(number, kill)), pytest.raises(Killed):
            run(output)
        finished = {path.stem for path in (output / "backbones").glob("[!.]*.json")}
        made = []

        def model_of(settings, contender, made=made):
            made.append(contender.file)
            return candidates.build_bundle(settings, contender)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare_on_data, "build_bundle", model_of)
            run(output)
        assert not finished & set(made)
        after = {path: data for path, data in tree(output).items() if "/.lookalike" not in path}
        assert after.keys() == whole.keys()
        assert [path for path in whole if after[path] != whole[path]] == []


def test_a_network_that_cannot_be_had_is_a_note_and_the_others_go_on(photos, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(dict(build_network("scratch").state_dict()), weights / "scratch.safetensors")
    (weights / "resnet18.pth").write_bytes(b"no state dict")
    result = compared(
        photos, tmp_path / "out", backbones="resnet18,alexnet,scratch", weights=str(weights)
    )
    assert {row["backbone"] for row in result.values["combinations"]} == {"scratch"}
    one, two = (note for note in result.values["notes"] if "is left out: --weights" in note)
    assert one.startswith("resnet18 is left out: --weights ")
    assert two.endswith("holds neither alexnet.safetensors nor alexnet.pth")
    with pytest.raises(InputError, match="none of the networks could be compared: alexnet is left"):
        compared(photos, tmp_path / "none", backbones="alexnet", weights=str(weights))


def test_a_network_that_embeds_nothing_leaves_no_store(photos, tmp_path):
    embed_here(photos, tmp_path / "store")
    good = read_bundle(open_folder(str(tmp_path / "store")))
    odd = dataclasses.replace(good.transform, interpolation="nonsense")
    write_bundle(open_folder(str(tmp_path / "odd")), dataclasses.replace(good, transform=odd))
    odd_alone = {"backbones": None, "bundle": str(tmp_path / "odd")}
    with pytest.raises(TooManyFailures, match="18 of 18 images failed"):
        compared(photos, tmp_path / "alone", **odd_alone)
    result = compared(photos, tmp_path / "out", bundle=odd_alone["bundle"])
    assert result.values["notes"] == [f"{tmp_path}/odd is left out: 18 of 18 images failed"]
    verdicts = verify(open_folder(str(tmp_path / "out")))
    assert [(one.kind, one.state) for one in verdicts] == [
        ("comparison", "finished"), ("store", "finished"),
    ]  # fmt: skip


def test_all_is_what_there_are_weights_for(photos, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("scratch", "squeezenet1_1"):
        save_file(dict(build_network(name).state_dict()), weights / f"{name}.safetensors")
    asked = CompareSettings(data="x", backbones="all", weights=str(weights))
    assert [c.name for c in candidates.list_candidates(asked)] == ["scratch", "squeezenet1_1"]
    result = compared(photos, tmp_path / "out", backbones="all", weights=str(weights))
    assert len(result.values["combinations"]) == 24
    table = [line for line in result.lines if line.startswith(("scratch ", "squeezenet1_1 "))]
    assert len(table) == 2
    assert any(line.startswith("the best of each network; all 24") for line in result.lines)
    without = candidates.list_candidates(CompareSettings(data="x", backbones="all"))
    assert "scratch" not in [c.name for c in without]
    assert "resnet50" in [c.name for c in without]


def test_a_bundle_keeps_its_pooling_and_its_projection(photos, tmp_path):
    embed_here(photos, tmp_path / "plain")
    with without_ray():
        from jobs.cluster.resources import Cluster
        from jobs.config.settings import EmbedSettings
        from jobs.embedding.embed import embed

        embed(
            EmbedSettings(
                input=str(photos), output=str(tmp_path / "short"), backbone="scratch",
                pooling="gem", pca=5, **QUICK,
            ),
            Cluster("nowhere", 1),
        )  # fmt: skip
    names = f"{tmp_path / 'plain'},{tmp_path / 'short'}"
    rows = compared(photos, tmp_path / "out", backbones=None, bundle=names).values["combinations"]
    of = {
        name: [row for row in rows if row["backbone"].endswith(name)] for name in ("plain", "short")
    }
    assert {(row["pooling"], row["pca"], row["metric"]) for row in of["plain"]} == {
        ("avg", None, "cosine"), ("avg", None, "ip"), ("avg", None, "l2"), ("avg", 4, "cosine"),
    }  # fmt: skip
    [short] = of["short"]
    assert (short["pooling"], short["pca"], short["metric"], short["dimension"]) == (
        "gem", 5, "cosine", 5,
    )  # fmt: skip
    with pytest.raises(InputError, match="is of a comparison; name its backbone"):
        compared(
            photos, tmp_path / "again", backbones=None,
            bundle=str(done_store(photos, tmp_path)),
        )  # fmt: skip


def done_store(photos, tmp_path):
    compared(photos, tmp_path / "first", limit=8)
    return tmp_path / "first" / "stores" / "scratch"


def test_names_from_anybody_do_no_harm(photos, tmp_path):
    hostile = ["<script>alert(1)</script>", "a\"b'c&d", "\u202egnp.exe", "distractor"]
    data = tmp_path / "<b>data</b>"
    for place, path in enumerate(sorted(photos.rglob("*.jpg"))):
        into = data / hostile[place % 4].replace("/", "\u2215")
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, into)
    bundle = tmp_path / "<img src=x onerror=alert(1)>"
    embed_here(photos, bundle)
    result = compared(data, tmp_path / "out", bundle=str(bundle))
    assert result.values["classes"] == 3
    assert any("distractors, can be found but are no queries" in n for n in result.values["notes"])
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<img src=x" not in page
    assert "<b>data" not in page
    assert "&lt;img src=x" in page
    assert {one.state for one in verify(open_folder(str(tmp_path / "out")))} == {"finished"}


def test_labels_of_a_file_and_a_sample_of_queries(photos, tmp_path, monkeypatch):
    ids = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    lines = [f"{name},{'ab'[place % 2] if place < 12 else ''}" for place, name in enumerate(ids)]
    lines[3] = f"{ids[3]},alone"
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image_id,label", *lines]))
    from jobs.comparison import dataset

    monkeypatch.setattr(dataset, "MAX_QUERIES", 7)
    monkeypatch.setattr(compare_on_data, "MAX_QUERIES", 7)
    result = compared(photos, tmp_path / "out", labels=str(labels))
    assert {row["queries"] for row in result.values["combinations"]} == {7}
    assert {row["images"] for row in result.values["combinations"]} == {18}
    assert result.values["notes"] == [
        "7 of 11 queries are asked, drawn by their names",
        "1 classes of one image are not judged",
        "6 images without label, or distractors, can be found but are no queries",
    ]


def test_images_that_cannot_be_read_are_left_out_and_said(photos, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    for name in ("class0/photo0000.jpg", "class1/photo0001.jpg"):
        (data / name).write_bytes(b"no image")
    with pytest.raises(TooManyFailures):
        compared(data, tmp_path / "out")
    result = compared(data, tmp_path / "out", max_error_rate=0.5)
    assert "scratch: 2 images could not be embedded and are left out" in result.values["notes"]
    assert {(row["queries"], row["images"]) for row in result.values["combinations"]} == {(16, 16)}
    for path in data.rglob("*.jpg"):
        if path.name > "photo0002.jpg":
            path.write_bytes(b"no image")
    (data / "class2" / "photo0005.jpg").unlink()
    with pytest.raises(Mismatch, match="images_listed was"):
        compared(data, tmp_path / "out", max_error_rate=0.5)
    with pytest.raises(InputError, match="too few of its images could be embedded"):
        compared(data, tmp_path / "few", max_error_rate=1.0)


def test_what_cannot_be_compared_is_said_in_a_sentence(photos, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.jpg"):
        shutil.copy(path, flat)
    alone = tmp_path / "alone"
    for place, path in enumerate(photos.rglob("*.jpg")):
        (alone / f"class{place}").mkdir(parents=True)
        shutil.copy(path, alone / f"class{place}")
    for data, error, settings, said in [
        (flat, InputError, {}, "has no labels; lay the images in a folder a class"),
        (photos, InputError, {"limit": 4}, "has one class only.*or raise --limit"),
        (alone, InputError, {}, "has no class of two images"),
        (tmp_path / "nothing", InputError, {}, "nothing"),
        (photos, UsageError, {"backbones": None}, "--backbones names no network to compare"),
        (photos, UsageError, {"backbones": " , "}, "--backbones names no network to compare"),
        (photos, UsageError, {"backbones": "scratc"}, "--backbones scratc is not known; did you"),
        (
            photos,
            InputError,
            {"backbones": "all", "weights": str(flat)},
            "holds no file of a backb",
        ),
    ]:
        with pytest.raises(error, match=said):
            compared(data, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
    for words, said in [
        (["--data", photos, "--backbones", "scratch"], "--data needs --output"),
        (["--output", tmp_path / "out"], "--output needs --data"),
        (["--bundle", tmp_path / "out"], "--bundle needs --data"),
    ]:
        ended = lookalike_here("compare", *words)
        assert (ended.code, said in ended.error) == (2, True)


def test_nobody_can_ask_for_each_pooling():
    [option] = [p for p in _command("embed").params if p.name == "pooling"]
    assert option.type.choices == ("avg", "max", "gem")


@pytest.mark.nightly  # the stages on Ray are tested by day each for itself
@pytest.mark.usefixtures("ray_here")
def test_as_a_command_on_ray(photos, tmp_path):
    words = ["--data", photos, "--output", tmp_path / "out", "--backbones", "scratch", "--weights",
             "random", "--image-size", 32, "--pca", 4, "--json"]  # fmt: skip
    ended = lookalike_here("compare", *words)
    assert ended.code == 0, ended.err
    assert len(ended.values["combinations"]) == 12
    assert all(row["images_per_second"] > 0 for row in ended.values["combinations"])
    run = json.loads((tmp_path / "out" / "stores" / "scratch" / "run.json").read_text())
    assert run["embedded"] == 18
    assert run["worker_seconds"] > 0


def test_real_networks_are_as_good_as_they_should_be(data, tmp_path):
    """Five photos of each of five classes; the same figures as by hand are tested above."""
    chosen = tmp_path / "photos"
    for folder in sorted((data / "images" / "gallery").iterdir())[:5]:
        (chosen / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:5]:
            shutil.copy(path, chosen / folder.name)
    result = compared(
        chosen, tmp_path / "out", backbones="squeezenet1_0,mobilenet_v2", pca=16,
        weights=str(data / "weights"), image_size=None,
    )  # fmt: skip
    best = {
        name: max(r["AP"] for r in result.values["combinations"] if r["backbone"] == name)
        for name in ("squeezenet1_0", "mobilenet_v2")
    }
    assert best["mobilenet_v2"] > best["squeezenet1_0"] > 0.4
