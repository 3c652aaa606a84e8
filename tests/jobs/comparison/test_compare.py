"""Test `compare` without data: the table of backbones and their properties."""

import subprocess
import sys

import pytest
from torchvision import models

from jobs.comparison import compare
from jobs.config.settings import CompareSettings
from retrieval.core.errors import UsageError
from retrieval.models.resolve import RANDOM, resolve_bundle
from tests.commands import run_command_in_process

KEYS = ["backbone", "parameters", "dimension", "image_size", "gflops",
        "imagenet_top1", "imagenet_top5"]  # fmt: skip
SMALL_BACKBONES = ["mobilenet_v3_small", "scratch", "shufflenet_v2_x0_5", "squeezenet1_1"]


def list_backbones(names=None):
    return compare.start(CompareSettings(backbones=names))


def backbone_rows(result):
    return result.values["backbones"]


def test_all_torchvision_backbones_and_scratch_are_listed():
    names = [row["backbone"] for row in backbone_rows(list_backbones())]
    assert names == sorted([*models.list_models(module=models), "scratch"])


def test_properties_equal_torchvision_metadata():
    for row in backbone_rows(list_backbones()):
        assert list(row) == KEYS
        if row["backbone"] == "scratch":
            assert (row["gflops"], row["imagenet_top1"], row["imagenet_top5"]) == (None,) * 3
            continue
        weights = models.get_model_weights(row["backbone"]).DEFAULT
        accuracy = weights.meta["_metrics"]["ImageNet-1K"]
        assert row["parameters"] == weights.meta["num_params"]
        assert row["gflops"] == weights.meta["_ops"]
        assert row["imagenet_top1"] == pytest.approx(accuracy["acc@1"] / 100)
        assert row["imagenet_top5"] == pytest.approx(accuracy["acc@5"] / 100)
        assert [row["image_size"]] == weights.transforms().crop_size


@pytest.mark.parametrize("name", SMALL_BACKBONES)
def test_dimension_and_image_size_equal_the_bundle(name):
    """Other backbone families are tested in tests/retrieval/models/test_registry.py."""
    bundle = resolve_bundle(
        backbone=name, weights=RANDOM, bundle=None, pooling="avg", normalize=True,
        image_size=None, resize=None, seed=0,
    )  # fmt: skip
    [row] = backbone_rows(list_backbones(name))
    assert row["dimension"] == bundle.dimension
    assert row["image_size"] == bundle.transform.image_size


def test_selected_backbones_are_sorted_and_unique():
    result = list_backbones(" squeezenet1_1,scratch, resnet18,scratch ")
    assert [row["backbone"] for row in backbone_rows(result)] == [
        "resnet18",
        "scratch",
        "squeezenet1_1",
    ]


@pytest.mark.parametrize("names", ["", " , "])
def test_empty_backbone_list_is_refused(names):
    with pytest.raises(UsageError, match="--backbones names none; write a,b,c"):
        list_backbones(names)


def test_timm_models_are_listed():
    pytest.importorskip("timm", reason="timm is not installed")
    [first, second] = backbone_rows(list_backbones("timm:test_resnet,resnet18"))
    assert (first["backbone"], second["backbone"]) == ("resnet18", "timm:test_resnet")
    assert (second["dimension"], second["image_size"], second["imagenet_top1"]) == (96, 160, None)


def test_table_is_aligned_and_fits_100_columns():
    lines = list_backbones().lines
    assert max(map(len, lines)) <= 100
    heading, rows = lines[0], lines[1 : 2 + len(models.list_models(module=models))]
    for column in ("parameters", "dimension", "pixels", "GFLOPs", "top-1", "top-5"):
        end = heading.index(column) + len(column)
        cells = [row[:end].rsplit(" ", 1)[-1] for row in rows if len(row) >= end]
        assert all(cell.strip("%").replace(".", "", 1).isdigit() for cell in cells if cell)
        assert [row[end : end + 1] for row in rows if row[end : end + 1].strip()] == []


def test_compare_command():
    result = run_command_in_process("compare", "--json", "--backbones", "resnet50,scratch")
    assert result.exit_code == 0
    first, second = result.values["backbones"]
    assert first == {
        "backbone": "resnet50", "parameters": 25557032, "dimension": 2048, "image_size": 224,
        "gflops": 4.089, "imagenet_top1": 0.80858, "imagenet_top5": 0.95434,
    }  # fmt: skip
    assert second["backbone"] == "scratch"


def test_unknown_backbone_suggests_similar_names():
    result = run_command_in_process("compare", "--backbones", "scratch,resnet5")
    assert result.exit_code == 2
    assert "--backbones resnet5 is not known; did you mean resnet50" in result.error


def test_listing_imports_neither_ray_nor_timm():
    code = (
        "import sys; from jobs.comparison import compare; from jobs.config import settings;"
        "compare.start(settings.CompareSettings());"
        "print([name for name in ('ray', 'timm') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"
