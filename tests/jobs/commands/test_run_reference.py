"""Compare `run` on labelled photos with measures from an independent implementation.

`make test` takes a sample of the photos, `make nightly` all of them, with every pooling, on Ray.
"""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.cluster.resources import open_cluster
from jobs.commands import run
from jobs.config.settings import RankSettings, RunSettings
from jobs.evaluation.evaluate_matches import evaluate_by_labels
from jobs.ranking import rank
from retrieval.storage.local import open_folder
from retrieval.store.reader import open_store, read_vectors
from tests.jobs.in_process import without_ray

REFERENCE = {
    ("squeezenet1_0", "avg", None): (0.6833, 0.8389, 0.9333, 0.2930),
    ("timm:tf_efficientnet_lite0", "avg", 256): (0.9000, 0.9722, 1.0000, 0.6974),
    ("timm:tf_efficientnet_lite0", "avg", None): (0.9222, 0.9833, 1.0000, 0.6803),
    ("timm:tf_efficientnet_lite0", "max", None): (0.8889, 0.9778, 1.0000, 0.6566),
    ("timm:tf_efficientnet_lite0", "gem", None): (0.9000, 0.9944, 1.0000, 0.6840),
    ("timm:tf_efficientnet_lite0", "max", 256): (0.8944, 0.9611, 0.9944, 0.6946),
    ("timm:tf_efficientnet_lite0", "gem", 256): (0.8833, 0.9722, 1.0000, 0.7057),
    ("mobilenet_v2", "avg", 256): (0.8222, 0.9278, 0.9778, 0.5857),
    ("squeezenet1_0", "max", None): (0.6222, 0.8278, 0.9389, 0.2716),
    ("squeezenet1_0", "gem", None): (0.7111, 0.8278, 0.9667, 0.3179),
    ("squeezenet1_0", "avg", 256): (0.6889, 0.8111, 0.9222, 0.3232),
    ("squeezenet1_0", "max", 256): (0.6333, 0.8167, 0.9278, 0.3258),
    ("squeezenet1_0", "gem", 256): (0.6833, 0.8500, 0.9722, 0.3648),
    ("mobilenet_v2", "avg", None): (0.8278, 0.9056, 0.9778, 0.5346),
    ("mobilenet_v2", "max", None): (0.7833, 0.9000, 0.9667, 0.4313),
    ("mobilenet_v2", "gem", None): (0.8222, 0.9056, 0.9722, 0.5080),
    ("mobilenet_v2", "gem", 256): (0.8222, 0.9389, 0.9778, 0.5868),
}
"""top-1, top-3, top-10 and mAP over the whole gallery, from plain PyTorch and numpy."""

GALLERY_STEP, QUERY_STEP = 4, 2
SAMPLE_REFERENCE = (0.6000, 0.7778, 0.9333, 0.3346)
"""The same for squeezenet1_0 with avg, every fourth gallery photo and every second query."""


@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("backbone", "pooling", "pca"), REFERENCE)
def test_measures_and_ranking_equal_the_reference(data, tmp_path, backbone, pooling, pca):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
    images, expected = data / "images", REFERENCE[backbone, pooling, pca]
    outcome = check_run(
        data, images, tmp_path, expected, backbone=backbone, pooling=pooling, pca=pca
    )
    assert _expanded_map(tmp_path) > outcome.result.values["AP"] + 0.01


def test_measures_and_ranking_of_sampled_photos_equal_the_reference(data, tmp_path):
    for name, step in (("gallery", GALLERY_STEP), ("queries", QUERY_STEP)):
        for path in sorted((data / "images" / name).rglob("*.jpg"))[::step]:
            copy = tmp_path / path.relative_to(data / "images")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    with without_ray():
        check_run(data, tmp_path, tmp_path, SAMPLE_REFERENCE, backbone="squeezenet1_0")


def check_run(data, images, root, expected, *, backbone, **options):
    """Run on the photos in `images`, check measures and ranking, and return the outcome."""
    weights = data / "weights" / f"{backbone.removeprefix('timm:')}.safetensors"
    outcome = run.run(
        RunSettings(
            gallery=str(images / "gallery"), queries=str(images / "queries"),
            labels=str(data / "images" / "labels.csv"), output=str(root / "out"), recipe="plain",
            backbone=backbone, weights=str(weights), top_k=1372, rows_per_shard=500, **options,
        )
    )  # fmt: skip
    measures = [
        outcome.result.values[name] for name in ("Success@1", "Success@3", "Success@10", "AP")
    ]
    assert measures == pytest.approx(expected, abs=0.01)
    assert outcome.result.values["recall"] == 1.0
    assert _read_ranking(root / "out") == _exact_ranking(root / "out")
    return outcome


def _expanded_map(root):
    """Return the mAP of the same queries expanded by their five best matches."""
    settings = RankSettings(
        index=str(root / "out/index"), queries=str(root / "out/queries"),
        output=str(root / "expanded"), top_k=1372, rerank="expand:5", workers=1,
    )  # fmt: skip
    with open_cluster(settings) as cluster:
        manifest = rank.rank(settings, cluster)
    evaluation, _ = evaluate_by_labels(open_folder(str(root / "expanded")), manifest)
    return next(measure.value for measure in evaluation.measures if measure.key == "map")


def _read_ranking(output):
    table = pq.read_table(output / "matches/matches/part-00000.parquet")
    ranking = {}
    for query, image in zip(*(table[n].to_pylist() for n in ("query_id", "image_id")), strict=True):
        ranking.setdefault(query, []).append(image)
    return ranking


def _exact_ranking(output):
    """Return the image ids of each query by a brute-force cosine search in float64."""
    gallery, queries = (_read_vectors(output / name) for name in ("gallery", "queries"))
    ids = np.array(list(gallery))
    rows = np.stack(list(gallery.values()))
    squares = (rows * rows).sum(-1)
    ranking = {}
    for name, vector in queries.items():
        scores = (vector * rows).sum(-1) / np.sqrt((vector * vector).sum() * squares)
        ranking[name] = ids[np.lexsort((ids, -scores))].tolist()
    return ranking


def _read_vectors(path):
    vectors_by_id = {}
    for table in open_store(open_folder(str(path))).blocks():
        vectors = read_vectors(table).astype(np.float64)
        vectors_by_id |= dict(zip(table["image_id"].to_pylist(), vectors, strict=True))
    return vectors_by_id
